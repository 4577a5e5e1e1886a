"""Muon: what it makes of a gradient, which parameters it takes, and that its state is enough to go on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import (
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

from qwq_rl.stages.muon import Muon, orthogonalised, parameter_groups

SIZES: dict[str, Any] = {"vocab_size": 37, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"head_dim": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
CONFIG = Qwen3Config(**SIZES, **HEADS, num_labels=1, pad_token_id=0)  # type: ignore[call-arg]
MODELS = (Qwen3ForCausalLM, Qwen3ForSequenceClassification)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 24), (2, 24, 8), (1, 5, 1)])
def test_the_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)

    singular = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))

    # Five steps with these coefficients bring them into about 0.7 to 1.2, and no nearer.
    assert singular.min() > 0.5
    assert singular.max() < 1.3


def test_the_directions_are_kept() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(1, 12, 8)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)

    overlap = (orthogonalised(matrix) * (u @ v)).sum() / 8

    assert overlap == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_size_of_a_gradient_plays_no_part(scale: float) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(1, 8, 8)

    torch.testing.assert_close(orthogonalised(matrix * scale), orthogonalised(matrix), atol=0.05, rtol=0)


def test_a_zero_gradient_moves_nothing() -> None:
    assert orthogonalised(torch.zeros(2, 4, 6)).abs().sum() == 0


def test_matrices_of_one_shape_are_treated_as_if_each_were_alone() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 8, 6)

    together = orthogonalised(matrices)

    torch.testing.assert_close(together, torch.cat([orthogonalised(one[None]) for one in matrices]))


@pytest.mark.parametrize("kind", MODELS)
def test_every_parameter_is_in_one_group(kind: Any) -> None:
    model = kind(CONFIG)

    groups = parameter_groups(model, 1e-3, 1e-2, 0.1)

    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("kind", MODELS)
def test_only_hidden_matrices_are_orthogonalised(kind: Any) -> None:
    model = kind(CONFIG)
    names = {id(p): name for name, p in model.named_parameters()}

    hidden, rest = ([names[id(p)] for p in group["params"]] for group in parameter_groups(model, 1e-3, 1e-2, 0.1))

    assert {name.split(".")[-2] for name in hidden} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert any("embed_tokens" in name for name in rest)
    assert all("norm" in name or "embed" in name or "head" in name or "score" in name for name in rest)


def test_a_parameter_that_is_frozen_is_left_out() -> None:
    model = Qwen3ForCausalLM(CONFIG)
    model.model.embed_tokens.weight.requires_grad = False

    grouped = [id(p) for group in parameter_groups(model, 1e-3, 1e-2, 0.0) for p in group["params"]]

    assert id(model.model.embed_tokens.weight) not in grouped


def steps(model: Qwen3ForCausalLM, optimizer: Muon, count: int, seed: int) -> None:
    torch.manual_seed(seed)
    for _ in range(count):
        ids = torch.randint(0, 37, (4, 9))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_saved_state_goes_on_to_the_same_weights() -> None:
    model = Qwen3ForCausalLM(CONFIG)
    optimizer = Muon(parameter_groups(model, 1e-3, 1e-2, 0.1))
    steps(model, optimizer, 3, seed=1)
    other = copy.deepcopy(model)
    state = copy.deepcopy(optimizer.state_dict())
    restored = Muon(parameter_groups(other, 1e-3, 1e-2, 0.1))
    restored.load_state_dict(state)

    steps(model, optimizer, 3, seed=2)
    steps(other, restored, 3, seed=2)

    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_the_rest_is_adamw() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(7, 5), torch.randn(4, 7, 5)
    mine, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    muon = Muon([{"params": [mine], "lr": 0.01, "muon": False, "weight_decay": 0.1}])
    adamw = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)

    for gradient in gradients:
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        muon.step()
        adamw.step()

    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


def test_a_step_on_a_matrix_is_as_long_as_its_learning_rate_says() -> None:
    torch.manual_seed(0)
    tall = torch.nn.Parameter(torch.zeros(32, 8))
    tall.grad = torch.randn(32, 8)

    Muon([{"params": [tall], "lr": 0.1, "muon": True, "weight_decay": 0.0}]).step()

    # sqrt(32 / 8) = 2 times the learning rate, along every direction.
    assert torch.linalg.svdvals(tall.detach()).mean() == pytest.approx(0.2, rel=0.25)


def test_it_lowers_a_loss() -> None:
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(CONFIG)
    optimizer = Muon(parameter_groups(model, 1e-2, 2e-2, 0.0))
    ids = torch.randint(0, 37, (4, 9))
    before = model(input_ids=ids, labels=ids).loss.item()

    for _ in range(20):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    assert model(input_ids=ids, labels=ids).loss.item() < 0.5 * before
