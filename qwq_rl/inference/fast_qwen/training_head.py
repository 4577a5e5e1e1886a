"""TRL's fused language-model head for CPUs, scoring only the positions that have a label.

TRL 1.16 scores every position where Triton is absent, prompts and padding included, tile by tile in Python
(`trl/trainer/utils.py`, `add_fused_lm_head`). For a model of 0.1 M parameters that is half of a training step. Under
the head a dense Qwen in float32 takes `qwen_states`, any other model its own forward.
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
"""Settings of models whose logits are more than the head's product; TRL's own head knows what to make of each."""


def use_compact_head(model: nn.Module, temperature: float = 1.0, *, every_field: bool = True) -> None:
    """Replace the forward that TRL patched into `model`, keeping its interface (`fused_lm_head=True`).

    `temperature` divides the logits. Without `every_field` only log-probabilities are worked out, at half the cost;
    entropy and hits are None. Call it after the trainer is built, on CPU only. A model that rescales its logits or
    routes between experts is left as it is.
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
            whole = self.base_model(*args, **(kwargs | {"use_cache": False})).last_hidden_state
            hidden = whole[:, :-1][mask]
        logits = self.get_output_embeddings()(hidden).float() / temperature
        return _score(logits, labels[:, 1:][mask], mask, every_field)

    model.forward = types.MethodType(compact_forward, model)  # qwen_fit knows its name


def shares_prompts(model: Any) -> bool:
    """Whether `model`, unwrapped, reads the prompts that a batch names only once each."""
    forward = getattr(vars(model).get("forward"), "__func__", None)
    return getattr(forward, "__name__", None) == "compact_forward" and has_qwen_states(model)


def _padded_on_the_right(inputs: Mapping[str, Any]) -> bool:
    """Whether there is nothing but tokens and a mask that only hides what follows them."""
    mask = inputs.get("attention_mask")
    known = set(inputs) <= {"input_ids", "attention_mask", "use_cache"}
    return known and (mask is None or bool((mask[:, :-1] >= mask[:, 1:]).all()))


def _score(logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor, every_field: bool) -> FusedCausalLMOutput:
    """The per-token fields, each (B, T) with zeros where `mask` is False, from logits (N, V) of the N labelled ones."""

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    chosen = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return FusedCausalLMOutput(
        loss=-chosen.sum() / mask.sum().clamp(min=1),
        log_probs=spread(chosen),
        entropy=spread(entropy(logits)) if every_field else None,
        log_sum_sq_probs=None,
        mean_logits=None,
        is_top1=spread(logits.argmax(-1) == targets) if every_field else None,
        label_mask=mask,
        aux_loss=None,
    )
