"""How far two policies are apart on the sampled tokens: the one that sampled, the one before the update, the one now.

Log-probabilities are natural, of the sampled tokens, (B, T); a `mask` (B, T) is 1 where the loss counts a token.
"""

from __future__ import annotations

from typing import Literal

import torch

Level = Literal["token", "sequence", "joint"]
"""One ratio a token, their geometric mean over the row, or their product over it."""

LARGEST_LOG = 20.0
"""Sums of log-ratios over a row are held within this: a ratio of 5e8, or one over it, is all the same."""


def log_ratios(logprobs: torch.Tensor, old_logprobs: torch.Tensor, mask: torch.Tensor, level: Level) -> torch.Tensor:
    """log(policy now / policy before the update), (B, T), 0 outside the mask at level "token"; gradients flow.

    "token" is PPO's ratio. "sequence" gives every token of a row the mean of its log-ratios (GSPO, arXiv 2507.18071,
    equation 7); "joint" their sum, the ratio of the whole response (RLOO in TRL).
    """
    each = torch.where(mask.bool(), logprobs - old_logprobs, 0.0)
    if level == "token":
        return each
    if level not in ("sequence", "joint"):
        raise ValueError(f"unknown level {level!r}; known are token, sequence, joint")
    whole = each.sum(-1, keepdim=True)
    if level == "sequence":
        whole = whole / mask.sum(-1, keepdim=True).clamp(min=1)
    return whole.expand_as(each)


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
    """Factors (B, T) for the per-token loss that make up for a sampler that is not quite the trainer's policy.

    The ratio is trainer / sampler on the same weights, a token's own or, at level "sequence", the product over the row.
    "truncate" holds it within [low, high] (truncated importance sampling); "mask" takes 0 for what lies outside
    (IcePop, arXiv 2510.18855, for tokens). None leaves a side open. The result is a constant: no gradient flows.
    A token whose sampler log-probability is NaN counts as ratio 1, as in TRL; so does what the mask leaves out.
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
