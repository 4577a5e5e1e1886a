"""Ratios of two policies on the sampled tokens: the sampler's, the one before the update, and the current one.

Log-probabilities are natural, those of the sampled tokens, (B, T). A `mask` (B, T) is 1 where a token counts.
"""

from __future__ import annotations

from typing import Literal

import torch

Level = Literal["token", "sequence", "joint"]
"""One ratio per token, their geometric mean over the row, or their product over the row."""

LARGEST_LOG = 20.0
"""Sums of log-ratios over a row are held within plus and minus this (a ratio of 5e8, or 1 / 5e8), against overflow."""


def log_ratios(logprobs: torch.Tensor, old_logprobs: torch.Tensor, mask: torch.Tensor, level: Level) -> torch.Tensor:
    """log(current policy / policy before the update), (B, T), 0 outside the mask at level "token". Gradients flow.

    "token" is PPO's ratio. "sequence" gives every token of a row the mean of the row's log-ratios (GSPO, arXiv
    2507.18071, equation 7). "joint" gives their sum, the ratio of the whole response (RLOO in TRL).
    """
    per_token = torch.where(mask.bool(), logprobs - old_logprobs, 0.0)
    if level == "token":
        return per_token
    if level not in ("sequence", "joint"):
        raise ValueError(f"unknown level {level!r}; known are token, sequence, joint")
    per_row = per_token.sum(-1, keepdim=True)
    if level == "sequence":
        per_row = per_row / mask.sum(-1, keepdim=True).clamp(min=1)
    return per_row.expand_as(per_token)


def importance_weights(
    trainer_logprobs: torch.Tensor,
    sampler_logprobs: torch.Tensor,
    mask: torch.Tensor,
    *,
    level: Literal["token", "sequence"],
    mode: Literal["truncate", "mask"],
    low: float | None = None,
    high: float | None = None,
) -> torch.Tensor:
    """Factors (B, T) for the loss of each token, which correct for a sampler that differs slightly from the trainer.

    The ratio is trainer / sampler on the same weights: per token or, at level "sequence", the product over the row.
    "truncate" holds it within [low, high] (truncated importance sampling); "mask" replaces a ratio outside by 0
    (IcePop, arXiv 2510.18855, for tokens). None leaves a side open. No gradient flows.
    A token whose sampler log-probability is NaN has ratio 1, as in TRL; so has a token outside the mask.
    """
    difference = _gaps(trainer_logprobs, sampler_logprobs, mask).nan_to_num(nan=0.0)
    if level == "sequence":
        difference = difference.sum(-1, keepdim=True).expand_as(difference)
    elif level != "token":
        raise ValueError(f"unknown level {level!r}; known are token, sequence")
    ratio = difference.clamp(-LARGEST_LOG, LARGEST_LOG).exp()
    if mode == "truncate":
        return ratio if low is None and high is None else ratio.clamp(min=low, max=high)
    if mode != "mask":
        raise ValueError(f"unknown mode {mode!r}; known are truncate, mask")
    outside = torch.zeros_like(ratio, dtype=torch.bool)
    if low is not None:
        outside = outside | (ratio < low)
    if high is not None:
        outside = outside | (ratio > high)
    return ratio.masked_fill(outside, 0.0)


def _gaps(trainer_logprobs: torch.Tensor, sampler_logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask.bool(), trainer_logprobs - sampler_logprobs, 0.0).detach()
