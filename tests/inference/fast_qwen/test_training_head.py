"""The compact head scores as TRL's own fused head does, gradients included."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl.trainer.utils import add_fused_lm_head

from qwq_rl.inference.fast_qwen.fit import fits_qwen_decoder
from qwq_rl.inference.fast_qwen.training_head import use_compact_head

FIELDS = ("log_probs", "entropy", "is_top1", "label_mask")


def small_model(**changes: Any) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=37, hidden_size=16, intermediate_size=24, num_hidden_layers=2, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.5, **changes,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def heads(temperature: float, **changes: Any) -> tuple[Qwen3ForCausalLM, Qwen3ForCausalLM]:
    """Two copies of a model: with TRL's head alone, and with ours on top of it."""
    trl, ours = small_model(**changes), small_model(**changes)
    for model in (trl, ours):
        add_fused_lm_head(model, temperature=temperature, outputs=("log_probs", "entropy", "is_top1"))
    use_compact_head(ours, temperature)
    return trl, ours


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(0, 37, (5, 11))
    mask = torch.ones_like(ids)
    mask[1, :4], mask[3, :6] = 0, 0
    labels = ids.clone()
    labels[:, :6] = -100
    labels[2, 8:] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("tied", [True, False])
def test_every_field_is_trls(batch: dict[str, torch.Tensor], temperature: float, tied: bool) -> None:
    trl, ours = heads(temperature, tie_word_embeddings=tied)

    expected, found = (model(**batch, fused_lm_head=True) for model in (trl, ours))

    for name in FIELDS:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("field", ["log_probs", "entropy"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradients_are_trls(batch: dict[str, torch.Tensor], temperature: float, field: str) -> None:
    models = heads(temperature, tie_word_embeddings=True)
    torch.manual_seed(2)
    weight = torch.randn(5, 10)

    for model in models:
        (model(**batch, fused_lm_head=True)[field] * weight).sum().backward()

    for (name, expected), found in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert expected.grad is not None, name
        torch.testing.assert_close(found.grad, expected.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_without_the_fused_head_the_model_answers_as_before(batch: dict[str, torch.Tensor]) -> None:
    _, ours = heads(0.6)
    asked = {name: batch[name] for name in ("input_ids", "attention_mask")}

    torch.testing.assert_close(ours(**asked).logits, small_model()(**asked).logits)


def test_a_batch_without_labels_costs_nothing_and_has_a_zero_gradient(batch: dict[str, torch.Tensor]) -> None:
    _, ours = heads(1.0)

    output = ours(**batch | {"labels": torch.full_like(batch["labels"], -100)}, fused_lm_head=True)
    (output.log_probs.sum() + output.loss).backward()

    assert output.log_probs.abs().sum() == 0
    assert all(p.grad is None or bool((p.grad == 0).all()) for p in ours.parameters())


@pytest.mark.parametrize("scale", ["final_logit_softcapping", "logit_scale", "logits_scaling"])
def test_a_model_that_changes_its_logits_keeps_trls_head(batch: dict[str, torch.Tensor], scale: str) -> None:
    model = small_model()
    setattr(model.config, scale, 2.0)
    add_fused_lm_head(model, outputs=("log_probs",))
    expected = copy.deepcopy(model)(**batch, fused_lm_head=True).log_probs

    use_compact_head(model)

    torch.testing.assert_close(model(**batch, fused_lm_head=True).log_probs, expected)


def test_a_model_with_it_is_still_sampled_by_the_fast_decoder() -> None:
    trl, ours = heads(1.0)

    assert fits_qwen_decoder(trl)
    assert fits_qwen_decoder(ours)
    ours.forward = lambda *args, **kwargs: None  # type: ignore[method-assign]
    assert not fits_qwen_decoder(ours)
