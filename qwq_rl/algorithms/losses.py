"""Losses of the policy, per token. An update sums them over the tokens of a row and weights rows by `row_weights`.

Shapes: `logprobs` of the current policy and `log_ratios` (`ratios.log_ratios`) are (B, T). `mask` (B, T) is 1 where a
token counts. `advantages` are (B, 1), or (B, T) where a critic gave one per token. Every loss is (B, T) and has no
meaning outside the mask. All take the same first four arguments, even those they do not use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from qwq_rl.algorithms.ratios import LARGEST_LOG

RowWeighting = Literal["sequence_mean", "sequence_sum", "token_mean", "constant"]
"""The mean over rows of a row's mean over tokens, or of its sum; one mean over all tokens; or a fixed divisor."""


@dataclass(frozen=True)
class Clip:
    """Ratios outside [1 - low, 1 + high] improve the loss no further. `delta` limits the ratio where A < 0."""

    low: float = 0.2
    high: float = 0.2
    delta: float | None = None


def clipped(
    logprobs: torch.Tensor, log_ratios: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip: Clip
) -> torch.Tensor:
    """-min(r A, clip(r, 1 - low, 1 + high) A): PPO (arXiv 1707.06347, equation 7), GRPO and their successors.

    Unequal bounds are DAPO's clip-higher (arXiv 2503.14476). `delta`, above 1 + high, is the second clip of INTELLECT-2
    (arXiv 2505.07291), min(r, delta) A: without it one token of a negative advantage could dominate an update.
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
    """-sg(min(r, ceiling)) A log p (sg: no gradient). Only the weight is clipped, so that no token loses its gradient.

    CISPO, MiniMax-M1 (arXiv 2506.13585, equations 4 and 5), without a lower bound. `ceiling` is the ratio itself, not
    its distance from 1; ScaleRL (arXiv 2510.13786) uses 5.
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
    """-(4 / tau) sigmoid(tau (r - 1)) A: a soft gate instead of a clip. Its slope at r = 1 is 1 for any tau.

    Soft Adaptive Policy Optimization (arXiv 2511.20347): tau is `positive` where A > 0, else `negative`.
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
    """-sg(phi(w)) A log p (sg: no gradient), phi(w) = w^k exp(lambda (1 - w)), w the ratio of the whole response.

    VESPO (arXiv 2602.10693) as in TRL. `log_ratios` are those of single tokens. `importance` (B, T), from
    `importance_weights` at level "token", becomes part of w; do not multiply the loss by it again. `positive` and
    `negative` are (k, lambda) for the sign of the advantage. phi(1) = 1, and phi goes to 0 on both sides.
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
    """The tokens that get no gradient from `clipped`: ratios below 1 - low, and above 1 + high. Two bool (B, T)."""
    ratio = log_ratios.exp()
    return (ratio < 1 - clip.low) & (advantages < 0), (ratio > 1 + clip.high) & (advantages > 0)


def kl_k3(logprobs: torch.Tensor, reference: torch.Tensor, log_ratios: torch.Tensor | None = None) -> torch.Tensor:
    """KL(policy || reference) of each token, (B, T) in nats, never negative: q/p - log(q/p) - 1 on the sampled token.

    The k3 estimate of http://joschu.net/blog/kl-approx.html, GRPO's (arXiv 2402.03300, equation 4). It is unbiased for
    tokens sampled by the current policy. For tokens sampled by the policy before the update, `log_ratios` (B, T)
    correct it: k3 times the ratio, gradient included (DeepSeek-V3.2, arXiv 2512.02556; TRL's `use_bias_correction_kl`).
    """
    gap = reference - logprobs
    kl = gap.exp() - gap - 1
    return kl if log_ratios is None else kl * log_ratios.exp()


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """The entropy in nats of the distributions of `logits` (..., V): (...) in float32. Gradients flow.

    A logit of minus infinity (a token that cannot be sampled) adds 0.
    """
    logs = logits.float().log_softmax(-1)
    # Clamped, since 0 times minus infinity would be NaN.
    return -(logs.exp() * logs.clamp(min=torch.finfo(torch.float32).min)).sum(-1)


def row_weights(
    lengths: torch.Tensor,
    domains: torch.Tensor,
    domain_weights: torch.Tensor,
    kind: RowWeighting,
    constant: float | None = None,
) -> torch.Tensor:
    """w (N,), float32: the loss of an update is the sum over rows i of w_i * (sum over tokens t of mask_it loss_it).

    The arguments describe all N rows of the update on all processes. Rows without an advantage belong to them, since
    they count in the denominators. `lengths` (N,): tokens in the mask. `domains` (N,): integers that index
    `domain_weights` (D,). The losses of micro-batches are added; where gradients are averaged over processes, multiply
    the loss by the number of processes.

    Row i is of domain d, which has N_d rows and L_d tokens; L is the number of all tokens. If all domains weigh 1:

    - "sequence_mean", 1 / (N length_i): GRPO, GSPO, SAPO.
    - "sequence_sum", 1 / N: LUSPO.
    - "token_mean", (N_d / N) / L_d: DAPO, CISPO, BNPO, VESPO. With one domain that is 1 / L. With several, a domain is
      divided by its own tokens and counts by its share of the rows: long responses in one domain do not outweigh short
      ones in another.
    - "constant", 1 / `constant`: Dr. GRPO, where it is N times the longest allowed response (arXiv 2503.20783).

    This is multiplied by the domain's weight. A row without tokens gets 0. Raises ValueError for an unknown kind, a
    `constant` that is missing, not wanted or not positive, and a domain without a weight.
    """
    if (kind == "constant") != (constant is not None):
        raise ValueError(
            f"kind {kind!r} with constant {constant!r}: a constant belongs to kind 'constant', and only there"
        )
    if constant is not None and not constant > 0:
        raise ValueError(f"the constant is {constant}; it must be positive")
    if lengths.shape != domains.shape or (len(domains) and int(domains.max()) >= len(domain_weights)):
        raise ValueError(f"{len(lengths)} lengths, {len(domains)} domains, {len(domain_weights)} weights do not match")
    rows, exact = len(lengths), lengths.double()
    if kind == "sequence_mean":
        share = 1 / (rows * exact.clamp(min=1))
    elif kind == "sequence_sum":
        share = torch.full_like(exact, 1 / max(rows, 1))
    elif kind == "token_mean":
        size = len(domain_weights)
        tokens = exact.new_zeros(size).index_add(0, domains, exact).clamp(min=1)
        share = (domains.bincount(minlength=size) / max(rows, 1) / tokens)[domains]
    elif constant is not None:
        share = torch.full_like(exact, 1 / constant)
    else:
        raise ValueError(f"unknown kind {kind!r}; known are sequence_mean, sequence_sum, token_mean, constant")
    return torch.where(lengths > 0, share * domain_weights.double()[domains], 0.0).float()
