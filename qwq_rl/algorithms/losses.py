"""Per-token losses of the policy. Summed over the tokens of a row and weighted by `weights.row_weights`.

Shapes: `logprobs` of the policy now and `log_ratios` (`ratios.log_ratios`) are (B, T), `mask` (B, T) is 1 where a token
counts, `advantages` are (B, 1), or (B, T) where a critic gave each token its own. Every loss is (B, T) and means
nothing outside the mask. All take the same first four arguments, whether they need them or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from qwq_rl.algorithms.ratios import LARGEST_LOG

RowWeighting = Literal["sequence_mean", "sequence_sum", "token_mean", "constant"]
"""A mean over rows of each row's mean over tokens, the same of its sum, one mean over all tokens, a fixed divisor."""


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


def kl_k3(logprobs: torch.Tensor, reference: torch.Tensor, log_ratios: torch.Tensor | None = None) -> torch.Tensor:
    """KL(policy || reference) of each token, (B, T) in nats, never negative: q/p - log(q/p) - 1 on the sampled token.

    The k3 estimate of http://joschu.net/blog/kl-approx.html, GRPO's (arXiv 2402.03300, equation 4). It holds for tokens
    that the policy now would sample; where they come from the policy before the update, `log_ratios` (B, T) correct it:
    k3 times the ratio, gradient included (DeepSeek-V3.2, arXiv 2512.02556; TRL's `use_bias_correction_kl`).
    """
    gap = reference - logprobs
    found = gap.exp() - gap - 1
    return found if log_ratios is None else found * log_ratios.exp()


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """The entropy in nats of the distributions that `logits` (..., V) give, (...) in float32; gradients flow.

    A logit of minus infinity, a token that cannot be sampled, adds nothing.
    """
    logs = logits.float().log_softmax(-1)
    return -(logs.exp() * logs.clamp(min=torch.finfo(torch.float32).min)).sum(-1)


def row_weights(
    lengths: torch.Tensor,
    domains: torch.Tensor,
    domain_weights: torch.Tensor,
    kind: RowWeighting,
    constant: float | None = None,
) -> torch.Tensor:
    """w (N,), float32, so that the loss of an update is sum over rows i of w_i * sum over tokens t of mask_it loss_it.

    All N rows of the update on all processes are here, those without an advantage too, since they count in the
    denominators: `lengths` (N,) tokens that the mask leaves in, `domains` (N,) integers that index `domain_weights`
    (D,). Micro-batches add their parts; where gradients are averaged over processes, multiply by their number.

    With a weight of 1 for all, N rows in all and L tokens in the domain d of row i, of which N_d rows:

    - "sequence_mean", 1 / (N length_i): GRPO, GSPO, SAPO.
    - "sequence_sum", 1 / N: LUSPO.
    - "token_mean", (N_d / N) / L_d: DAPO, CISPO, BNPO, VESPO. With one domain that is 1 / L; with several each is
      divided by its own tokens and counts by its share of the rows, so that a domain of long responses does not
      outweigh one of short ones.
    - "constant", 1 / `constant`: Dr. GRPO with N times the longest allowed response (arXiv 2503.20783).

    A domain's weight multiplies that. A row without a token gets 0. Raises ValueError for an unknown kind, a missing
    or unasked `constant`, one that is not positive, and a domain without a weight.
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
