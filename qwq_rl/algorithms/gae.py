"""Advantages from a critic, and the critic's own loss.

Shapes: (B, T), one column a token of the response; `mask` is 1 where the policy chose the token. Padding lies on the
right; tokens in between that the policy did not choose (a tool's) are passed over as if they were not there.
"""

from __future__ import annotations

import torch


def at_last_token(rewards: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One reward a row, (B,), as rewards a token, (B, T): on the last token of the mask. A row without one loses it."""
    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask.bool(), places, -1).amax(-1, keepdim=True)
    return torch.where(places == last, rewards.unsqueeze(-1), 0.0)


def gae(
    values: torch.Tensor, rewards: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns of each token, (B, T) in float32, 0 outside the mask; no gradient flows.

    A_t = d_t + gamma lam A_(t+1) with d_t = r_t + gamma V_(t+1) - V_t and V = 0 after the last token: generalised
    advantage estimation (arXiv 1506.02438, equation 16). Returns are A + V. `values` are V before each token,
    `rewards` lie on tokens of the mask (others are lost), `lam` is one number or one a row, (B,). With gamma = lam = 1
    this closes to A_t = (sum of the rewards from t on) - V_t. Where policy and critic want their own lam
    (Decoupled-GAE, VAPO, arXiv 2504.05118), call twice: advantages from one, returns from the other.
    """
    live = mask.bool()
    order = (~live).to(torch.uint8).argsort(dim=-1, stable=True)
    known, earned = (torch.where(live, part, 0).gather(-1, order).detach().float() for part in (values, rewards))
    following = torch.nn.functional.pad(known[:, 1:], (0, 1))
    delta = earned + gamma * following - known
    decay = gamma * (lam.float().unsqueeze(-1) if torch.is_tensor(lam) else torch.tensor(float(lam)).to(delta.device))
    found = _discounted_sums(delta, decay)
    advantages = torch.zeros_like(found).scatter(-1, order, found)
    return advantages, torch.where(live, advantages + values.detach().float(), 0.0)


def _discounted_sums(terms: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """y_t = x_t + decay y_(t+1) along the last axis, by doubling: log2(T) passes instead of T."""
    step = 1
    while step < terms.shape[-1]:
        terms = terms + decay**step * torch.nn.functional.pad(terms[:, step:], (0, step))
        step *= 2
    return terms


def adaptive_lambda(lengths: torch.Tensor, alpha: float = 0.05) -> torch.Tensor:
    """lam of each row for `gae`, (B,) in [0, 1), from its number of tokens: 1 - 1 / (alpha length).

    Length-adaptive GAE (VAPO, arXiv 2504.05118, section 4.2), for the policy alone: the weights of a row's temporal
    differences then add up to about alpha * length. Rows of 1 / alpha tokens or fewer get 0.
    """
    return (1 - 1 / (alpha * lengths.float()).clamp(min=1e-6)).clamp(min=0.0)


def moments(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Count, sum and sum of squares of `x` in the mask: (3,) in float64. Those of several processes add up."""
    kept = torch.where(mask.bool(), x, 0.0).double()
    return torch.stack([mask.bool().sum().double(), kept.sum(), (kept**2).sum()])


def whiten(x: torch.Tensor, mask: torch.Tensor, shift: bool = True, total: torch.Tensor | None = None) -> torch.Tensor:
    """`x` over its unbiased standard deviation in the mask, 0 outside; with `shift` its mean becomes 0, else stays.

    `total` are the `moments` to use, those of all processes added up; without it, those of `x`. Fewer than two tokens
    have no deviation and come back 0 (with `shift`) or as they are.
    """
    count, summed, squares = (moments(x, mask) if total is None else total).unbind()
    mean = summed / count.clamp(min=1)
    variance = (squares - summed * mean).clamp(min=0) / (count - 1).clamp(min=1)
    scale = torch.where(count > 1, (variance + 1e-8).rsqrt(), 1.0)
    found = (x.double() - mean) * scale + (0.0 if shift else mean)
    return torch.where(mask.bool(), found, 0.0).to(x.dtype)


def value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    clip: float | None = None,
) -> torch.Tensor:
    """Half the squared error of each token's value, (B, T), 0 outside the mask.

    With `clip`, the larger of that and the error of a value held within `clip` of `old_values`, the critic's before the
    update: PPO's value clipping (openai/baselines, ppo2), which takes the gradient from values that have moved on.
    """
    error = (values - returns) ** 2
    if clip is not None:
        error = torch.maximum(error, (old_values + (values - old_values).clamp(-clip, clip) - returns) ** 2)
    return torch.where(mask.bool(), error / 2, 0.0)
