"""TRL's fused language-model head for CPUs, scoring only the positions that have a label.

TRL 1.16 scores every position where Triton is absent, prompts and padding included, tile by tile in Python
(`trl/trainer/utils.py`, `add_fused_lm_head`). For a model of 0.1 M parameters that is half of a training step.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import nn
from trl.trainer.utils import FusedCausalLMOutput

_RESCALED = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
"""Settings of models whose logits are more than the head's product; TRL's own head knows what to make of each."""


def use_compact_head(model: nn.Module, temperature: float = 1.0) -> None:
    """Replace the forward that TRL patched into `model`, keeping its interface (`fused_lm_head=True`).

    `temperature` divides the logits. Call it after the trainer is built, on CPU only. A model that rescales its logits
    or routes between experts is left as it is.
    """
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    if getattr(config, "output_router_logits", False) or any(getattr(config, name, None) for name in _RESCALED):
        return
    patched = model.forward

    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return patched(*args, **kwargs)
        labels = kwargs.pop("labels")
        kwargs.pop("num_items_in_batch", None)
        hidden = self.base_model(*args, **(kwargs | {"use_cache": False})).last_hidden_state[:, :-1]
        mask = labels[:, 1:] != -100
        logits = self.get_output_embeddings()(hidden[mask]).float() / temperature
        return _score(logits, labels[:, 1:][mask], mask)

    model.forward = types.MethodType(forward, model)


def _score(logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> FusedCausalLMOutput:
    """The per-token fields, each (B, T) with zeros where `mask` is False, from logits (N, V) of the N labelled ones."""
    log_probs = torch.log_softmax(logits, dim=-1)
    chosen = log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    top1 = logits.argmax(-1) == targets

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    return FusedCausalLMOutput(
        loss=-chosen.sum() / mask.sum().clamp(min=1),
        log_probs=spread(chosen),
        entropy=spread(entropy),
        log_sum_sq_probs=None,
        mean_logits=None,
        is_top1=spread(top1),
        label_mask=mask,
        aux_loss=None,
    )
