"""Hidden states with shared prompts against the model's own forward: the same states, the same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen2 import Qwen2Config, Qwen2ForCausalLM

from qwq_rl.inference.fast_qwen.training_states import has_qwen_states, states
from qwq_rl.training.micro_batch import BLANK, MicroBatch, TrainingSample, collate

SHAPE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3,
}  # fmt: skip


def build(kind: str) -> Any:
    torch.manual_seed(1)
    if kind == "qwen2":
        model: Any = Qwen2ForCausalLM(Qwen2Config(**SHAPE))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=kind == "tied"))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def sample(prompt: int, own: int, seed: int, hole: bool = False) -> TrainingSample:
    """Two seeds: samples of one `prompt` length share it, whatever follows. A `hole` is what a tool wrote."""
    first = torch.randint(97, (prompt,), generator=torch.Generator().manual_seed(prompt))
    rest = torch.randint(97, (own,), generator=torch.Generator().manual_seed(seed))
    mask = torch.tensor([False] * (prompt - 1) + [True] * own)
    if hole:
        mask[prompt + 1 : prompt + 3] = False
    return TrainingSample(torch.cat([first, rest]), mask, torch.zeros(prompt + own - 1), 0)


TRACES = {
    "groups": [sample(7, 5, 1), sample(7, 9, 2), sample(4, 6, 3), sample(4, 1, 4), sample(7, 3, 5)],
    "one token each": [sample(5, 1, 1), sample(3, 1, 2)],
    "a prompt of one token": [sample(1, 4, 1), sample(1, 6, 2)],
    "turns of a tool": [sample(6, 9, 1, hole=True), sample(6, 7, 2, hole=True), sample(5, 8, 3)],
}


def own_states(model: Any, batch: MicroBatch) -> torch.Tensor:
    """What the model's own forward gives at the same places."""
    found: torch.Tensor = model.model(batch.ids, use_cache=False).last_hidden_state[:, :-1][batch.mask]
    return found


def gradients(model: Any, found: torch.Tensor) -> dict[str, torch.Tensor]:
    """Those of a loss that weighs every number differently."""
    model.zero_grad()
    (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("samples", TRACES.values(), ids=TRACES.keys())
@pytest.mark.parametrize("kind", ["qwen3", "tied", "qwen2"])
def test_the_states_are_those_of_the_models_forward(kind: str, samples: list[TrainingSample], share: bool) -> None:
    model, batch = build(kind), collate(samples, torch.device("cpu"), share)
    found = states(model, batch.ids, batch.mask, batch.prompts)
    torch.testing.assert_close(found, own_states(model, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("samples", TRACES.values(), ids=TRACES.keys())
@pytest.mark.parametrize("kind", ["qwen3", "tied", "qwen2"])
def test_the_gradients_are_those_of_the_models_forward(kind: str, samples: list[TrainingSample], share: bool) -> None:
    model, batch = build(kind), collate(samples, torch.device("cpu"), share)
    wanted = gradients(model, own_states(model, batch))
    found = gradients(model, states(model, batch.ids, batch.mask, batch.prompts))
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()), msg=name)


def work(model: Any, batch: MicroBatch) -> int:
    with FlopCounterMode(display=False) as counter:
        states(model, batch.ids, batch.mask, batch.prompts)
    return counter.get_total_flops()


def test_a_prompt_is_read_once() -> None:
    model, samples = build("qwen3"), [sample(40, 5, seed) for seed in range(8)]
    shared, alone = (work(model, collate(samples, torch.device("cpu"), share)) for share in (True, False))
    assert shared < 0.25 * alone  # 40 + 8 x 4 tokens against 8 x 44


@pytest.mark.parametrize("share", [True, False])
def test_without_a_wanted_place_there_are_no_states_and_no_gradient(share: bool) -> None:
    model, batch = build("qwen3"), collate([BLANK], torch.device("cpu"), share)
    found = states(model, batch.ids, batch.mask, batch.prompts)
    assert found.shape == (0, 48)
    assert all(float(one.abs().max()) == 0.0 for one in gradients(model, found).values())


class TestWhichModels:
    def test_a_dense_qwen_in_float32(self) -> None:
        assert has_qwen_states(build("qwen3"))

    def test_none_in_bf16_whose_own_forward_rounds_elsewhere(self) -> None:
        assert not has_qwen_states(build("qwen3").bfloat16())

    def test_none_whose_activations_are_worked_out_again(self) -> None:
        model = build("qwen3")
        model.gradient_checkpointing_enable()
        assert not has_qwen_states(model)

    def test_none_that_drops_attention_in_training(self) -> None:
        model = build("qwen3")
        model.config.attention_dropout = 0.1
        assert not has_qwen_states(model.train())
        assert has_qwen_states(model.eval())


def test_which_prompt_a_trace_has_is_the_same_in_every_process() -> None:
    """It orders the rows of an update: a resumed stage must add them up as the one before it did."""
    assert sample(3, 2, 1).extent.key == sample(3, 5, 9).extent.key == 12592495163112314332
