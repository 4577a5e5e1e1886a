"""What is added to the policy loss: distance to a reference policy, and entropy."""

from __future__ import annotations

import math

import torch


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


def entropy_threshold(entropies: torch.Tensor, mask: torch.Tensor, share: float) -> float:
    """The entropy that the `share` (0 to 1) most uncertain tokens reach, of all tokens in the mask.

    The loss of tokens below it is left out (Beyond the 80/20 Rule, arXiv 2506.01939; TRL's `top_entropy_quantile`).
    `entropies` and `mask` have one shape and hold the tokens of all processes. Without a token: 0.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share is {share}; it must be above 0 and at most 1")
    found = entropies[mask.bool()].float()
    if found.numel() == 0:
        return 0.0
    # Rounded first, for 1 - share is not exact; torch.quantile itself refuses more than 16 million tokens.
    place = math.ceil(round((1 - share) * (found.numel() - 1), 6))
    return float(found.kthvalue(place + 1).values)
