"""Per-token losses of the policy. Summed over the tokens of a row and weighted by `weights.row_weights`.

Shapes: `logprobs` of the policy now and `log_ratios` (`ratios.log_ratios`) are (B, T), `mask` (B, T) is 1 where a token
counts, `advantages` are (B, 1), or (B, T) where a critic gave each token its own. Every loss is (B, T) and means
nothing outside the mask. All take the same first four arguments, whether they need them or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from qwq_rl.algorithms.ratios import LARGEST_LOG, Level
from qwq_rl.algorithms.weights import Kind


@dataclass(frozen=True)
class Clip:
    """Ratios beyond [1 - low, 1 + high] earn nothing more; `delta` bounds those of negative advantages from above."""

    low: float = 0.2
    high: float = 0.2
    delta: float | None = None


def clipped(
    logprobs: torch.Tensor, log_ratios: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip: Clip
) -> torch.Tensor:
    """-min(r A, clip(r, 1 - low, 1 + high) A): PPO (arXiv 1707.06347, equation 7), GRPO, and what is built on them.

    Unequal bounds are DAPO's clip-higher (arXiv 2503.14476); `delta`, above 1 + high, is the second clip of INTELLECT-2
    (arXiv 2505.07291), min(r, delta) A, which keeps one token of a negative advantage from ruling an update.
    """
    ratio = log_ratios.exp()
    inner = ratio.clamp(1 - clip.low, 1 + clip.high)
    outer = ratio if clip.delta is None else ratio.clamp(max=clip.delta)
    return -torch.minimum(outer * advantages, inner * advantages)


def cispo(
    logprobs: torch.Tensor,
    log_ratios: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    ceiling: float = 5.0,
) -> torch.Tensor:
    """-sg(min(r, ceiling)) A log p: the weight is clipped, not the update, so that no token loses its gradient.

    CISPO, MiniMax-M1 (arXiv 2506.13585, equations 4 and 5) without a lower bound; `ceiling` is the ratio itself, not
    its distance from 1, and ScaleRL (arXiv 2510.13786) takes 5.
    """
    return -log_ratios.exp().clamp(max=ceiling).detach() * advantages * logprobs


def sapo(
    logprobs: torch.Tensor,
    log_ratios: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    positive: float = 1.0,
    negative: float = 1.05,
) -> torch.Tensor:
    """-(4 / tau) sigmoid(tau (r - 1)) A: a soft gate instead of a clip, slope 1 at r = 1 for any temperature.

    Soft Adaptive Policy Optimization (arXiv 2511.20347): tau is `positive` where A > 0 and `negative` elsewhere.
    """
    temperature = torch.where(advantages > 0, positive, negative)
    return -torch.sigmoid(temperature * (log_ratios.exp() - 1)) * 4 / temperature * advantages


def vespo(
    logprobs: torch.Tensor,
    log_ratios: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    importance: torch.Tensor | None = None,
    positive: tuple[float, float] = (2.0, 3.0),
    negative: tuple[float, float] = (3.0, 2.0),
) -> torch.Tensor:
    """-sg(phi(w)) A log p, phi(w) = w^k exp(lambda (1 - w)), w the ratio of the whole response.

    VESPO (arXiv 2602.10693) as TRL has it. `log_ratios` are a token's own; `importance` (B, T), from
    `importance_weights` at level "token", belongs into w here and must not multiply the loss as well. `positive` and
    `negative` are (k, lambda) by the advantage's sign. phi(1) = 1, and both tails vanish.
    """
    lowest = math.log(1e-8)
    with torch.no_grad():
        total = (log_ratios.clamp(-LARGEST_LOG, LARGEST_LOG) * mask).sum(-1, keepdim=True)
        if importance is not None:
            total = total + (importance.log().clamp(lowest, LARGEST_LOG) * mask).sum(-1, keepdim=True)
        total = total.clamp(lowest, LARGEST_LOG)
        power = torch.where(advantages >= 0, positive[0], negative[0])
        decay = torch.where(advantages >= 0, positive[1], negative[1])
        phi = (decay + power * total - decay * total.exp()).exp()
    return -phi * advantages * logprobs


def clipped_tokens(log_ratios: torch.Tensor, advantages: torch.Tensor, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens `clipped` gives no gradient: below 1 - low, and above 1 + high; bool (B, T) each."""
    ratio = log_ratios.exp()
    return (ratio < 1 - clip.low) & (advantages < 0), (ratio > 1 + clip.high) & (advantages > 0)


def truncated_tokens(log_ratios: torch.Tensor, ceiling: float) -> torch.Tensor:
    """Which tokens' weight `cispo` cut down to `ceiling`; bool (B, T)."""
    return log_ratios.exp() > ceiling


@dataclass(frozen=True)
class Policy:
    """What an algorithm is made of, its advantages aside: per-token loss, level of the ratio, weights of the rows."""

    loss: Callable[..., torch.Tensor]
    level: Level
    weights: Kind


POLICIES: Mapping[str, Policy] = {
    "grpo": Policy(clipped, "token", "sequence_mean"),
    "dr_grpo": Policy(clipped, "token", "constant"),
    "dapo": Policy(clipped, "token", "token_mean"),
    "bnpo": Policy(clipped, "token", "token_mean"),
    "gspo": Policy(clipped, "sequence", "sequence_mean"),
    "luspo": Policy(clipped, "sequence", "sequence_sum"),
    "cispo": Policy(cispo, "token", "token_mean"),
    "sapo": Policy(sapo, "token", "sequence_mean"),
    "vespo": Policy(vespo, "token", "token_mean"),
    "rloo": Policy(clipped, "joint", "sequence_mean"),
    "reinforce_pp": Policy(clipped, "token", "token_mean"),
    "reinforce_pp_baseline": Policy(clipped, "token", "token_mean"),
    "ppo": Policy(clipped, "token", "token_mean"),
}
"""Algorithm -> its policy loss; `advantages.ADVANTAGES` has the papers."""
