"""A replacement of TRL's fused language-model head on a CPU, which scores only the positions that have a label.

Without Triton TRL 1.16 scores every position, prompts and padding included, tile by tile in Python
(`trl/trainer/utils.py`, `add_fused_lm_head`). For a model of 0.1 M parameters that is half of a training step. The
hidden states below the head come from `training_states` for a dense Qwen in float32, else from the model's own forward.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from trl.trainer.utils import FusedCausalLMOutput

from qwq_rl.algorithms.losses import entropy
from qwq_rl.inference.fast_qwen.training_states import has_qwen_states, states

_RESCALED = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
"""Settings of models that change the head's output before it becomes logits; TRL's own head handles each of them."""


def use_compact_head(model: nn.Module, temperature: float = 1.0, *, every_field: bool = True) -> None:
    """Replace the forward that TRL patched into `model`, with the same interface (`fused_lm_head=True`).

    `temperature` divides the logits. Without `every_field` only log-probabilities are computed, at half the cost;
    `entropy` and `is_top1` are then None. Call it after the trainer is built, on a CPU only. A model that rescales its
    logits or routes between experts is left unchanged.
    """
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    if getattr(config, "output_router_logits", False) or any(getattr(config, name, None) for name in _RESCALED):
        return
    patched = model.forward

    def compact_forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return patched(*args, **kwargs)
        labels, prompts = kwargs.pop("labels"), kwargs.pop("prompts", None)
        kwargs.pop("num_items_in_batch", None)
        mask = labels[:, 1:] != -100
        if not args and _padded_on_the_right(kwargs) and has_qwen_states(self):
            hidden = states(self, kwargs["input_ids"], mask, prompts)
        else:
            all_hidden = self.base_model(*args, **(kwargs | {"use_cache": False})).last_hidden_state
            hidden = all_hidden[:, :-1][mask]
        logits = self.get_output_embeddings()(hidden).float() / temperature
        return _score(logits, labels[:, 1:][mask], mask, every_field)

    model.forward = types.MethodType(compact_forward, model)  # `fit._UNDER` has its name, and that of `patched`


def shares_prompts(model: Any) -> bool:
    """Whether `model` (unwrapped) computes each prompt of a batch only once, where the batch has `prompts`."""
    forward = getattr(vars(model).get("forward"), "__func__", None)
    return getattr(forward, "__name__", None) == "compact_forward" and has_qwen_states(model)


def _padded_on_the_right(inputs: Mapping[str, Any]) -> bool:
    """Whether the inputs are only tokens and a mask that hides nothing but padding after them."""
    mask = inputs.get("attention_mask")
    only_known = set(inputs) <= {"input_ids", "attention_mask", "use_cache"}
    return only_known and (mask is None or bool((mask[:, :-1] >= mask[:, 1:]).all()))


def _score(logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor, every_field: bool) -> FusedCausalLMOutput:
    """TRL's output from the logits (N, V) of the N labelled tokens; fields are (B, T), zeros where `mask` is False."""

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    target_logprobs = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return FusedCausalLMOutput(
        loss=-target_logprobs.sum() / mask.sum().clamp(min=1),
        log_probs=spread(target_logprobs),
        entropy=spread(entropy(logits)) if every_field else None,
        log_sum_sq_probs=None,
        mean_logits=None,
        is_top1=spread(logits.argmax(-1) == targets) if every_field else None,
        label_mask=mask,
        aux_loss=None,
    )
