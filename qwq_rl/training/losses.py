"""The loss of a micro-batch from its log-probabilities: policy, KL and entropy terms, each row with its weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from qwq_rl.algorithms.losses import Clip, Policy, clipped, clipped_tokens
from qwq_rl.algorithms.penalties import kl_k3
from qwq_rl.algorithms.ratios import importance_weights, log_ratios
from qwq_rl.training.micro_batch import Batch
from qwq_rl.training.tally import Tally


@dataclass(frozen=True)
class Objective:
    """What the recipe asks of an update."""

    policy: Policy
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of `policy.loss`, such as its clip."""
    kl: float = 0.0
    """Weight of the KL divergence to the reference."""
    entropy: float = 0.0
    """Weight of the entropy bonus."""
    correction: Mapping[str, Any] | None = None
    """Keyword arguments of `importance_weights`, for a sampler whose log-probabilities are not the trainer's."""

    @property
    def needs_every_row(self) -> bool:
        """Whether a row without an advantage has a gradient."""
        return self.kl > 0 or self.entropy > 0


@dataclass(frozen=True)
class Targets:
    """What the loss compares the policy's log-probabilities with; (B, L - 1) unless said otherwise."""

    batch: Batch
    advantages: torch.Tensor
    """(B, 1) or (B, L - 1)."""
    weights: torch.Tensor
    """(B,), from `objective.weights.row_weights`."""
    old: torch.Tensor | None
    """Log-probabilities before the first update of the round; None where this is the first."""
    reference: torch.Tensor | None


def loss_of(
    objective: Objective, targets: Targets, logprobs: torch.Tensor, entropies: torch.Tensor | None, tally: Tally
) -> torch.Tensor:
    """sum over rows of weight times the sum over its trained tokens of their loss, a scalar; figures go to `tally`.

    `logprobs` and `entropies` (B, L - 1) are the policy's now; `entropies` may be None without an entropy bonus.
    """
    mask, advantages, sampled = targets.batch.mask, targets.advantages, targets.batch.sampled
    old = logprobs.detach() if targets.old is None else targets.old
    ratios = log_ratios(logprobs, old, mask, objective.policy.level)
    losses = objective.policy.loss(logprobs, ratios, advantages, mask, **objective.parameters)
    if objective.correction is not None:
        losses = losses * importance_weights(old, sampled, mask, **objective.correction)
    if objective.kl and targets.reference is not None:
        kl = kl_k3(logprobs, targets.reference, ratios if objective.policy.level == "token" else None)
        losses = losses + objective.kl * kl
        tally.add("kl", (kl * mask).sum())
    if objective.entropy and entropies is not None:
        losses = losses - objective.entropy * entropies
    _note(objective, targets, logprobs.detach(), ratios.detach(), tally)
    return (torch.where(mask, losses, 0.0).sum(-1) * targets.weights).sum()


def _note(objective: Objective, targets: Targets, logprobs: torch.Tensor, ratios: torch.Tensor, tally: Tally) -> None:
    mask, real = targets.batch.mask, targets.weights[:, None] > 0
    tally.add("tokens", (mask & real).sum())
    clip = objective.parameters.get("clip")
    if objective.policy.loss is clipped and isinstance(clip, Clip):
        low, high = clipped_tokens(ratios, targets.advantages, clip)
        tally.add("clipped", ((low | high) & mask & real).sum())
    if targets.old is None:  # the weights are those that sampled: what differs is the arithmetic
        gap = torch.where(mask & real, logprobs - targets.batch.sampled, 0.0).nan_to_num(nan=0.0).abs()
        tally.add("gap", gap.sum())
        tally.highest("gap_max", gap.max())
