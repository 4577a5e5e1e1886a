"""Advantages from a critic (generalised advantage estimation), and the critic's loss.

Shapes are (B, T), one column per token of the response. `mask` is 1 where the policy chose the token. Padding is on the
right. Tokens in between that the policy did not choose (a tool's) are skipped, as if they were not there.
"""

from __future__ import annotations

import torch


def at_last_token(rewards: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Rewards per token, (B, T), from one per row, (B,): on the last token of the mask. A row without one loses it."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask.bool(), positions, -1).amax(-1, keepdim=True)
    return torch.where(positions == last, rewards.unsqueeze(-1), 0.0)


def gae(
    values: torch.Tensor, rewards: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns of each token, (B, T) in float32, 0 outside the mask. No gradient flows.

    A_t = d_t + gamma lam A_(t+1) with d_t = r_t + gamma V_(t+1) - V_t and V = 0 after the last token: generalised
    advantage estimation (arXiv 1506.02438, equation 16). Returns are A + V. `values` are V before each token.
    `rewards` count only on tokens of the mask. `lam` is one number, or one per row, (B,). With gamma = lam = 1 the
    result is A_t = (sum of the rewards from t on) - V_t. Where policy and critic use different lam (Decoupled-GAE,
    VAPO, arXiv 2504.05118), call it twice: take the advantages of one call and the returns of the other.
    """
    live = mask.bool()
    # Move the tokens of the mask to the left of each row, so that the next column is the next token of the policy.
    tokens_first = (~live).to(torch.uint8).argsort(dim=-1, stable=True)
    compact_values, compact_rewards = (
        torch.where(live, tensor, 0).gather(-1, tokens_first).detach().float() for tensor in (values, rewards)
    )
    next_values = torch.nn.functional.pad(compact_values[:, 1:], (0, 1))
    delta = compact_rewards + gamma * next_values - compact_values
    decay = gamma * (lam.float().unsqueeze(-1) if torch.is_tensor(lam) else torch.tensor(float(lam)).to(delta.device))
    compact_advantages = _discounted_sums(delta, decay)
    advantages = torch.zeros_like(compact_advantages).scatter(-1, tokens_first, compact_advantages)
    return advantages, torch.where(live, advantages + values.detach().float(), 0.0)


def _discounted_sums(terms: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """y_t = x_t + decay y_(t+1) along the last axis. Doubling the step takes log2(T) passes instead of T."""
    step = 1
    while step < terms.shape[-1]:
        terms = terms + decay**step * torch.nn.functional.pad(terms[:, step:], (0, step))
        step *= 2
    return terms


def adaptive_lambda(lengths: torch.Tensor, alpha: float = 0.05) -> torch.Tensor:
    """lam of each row for `gae`, (B,) in [0, 1), from its number of tokens: 1 - 1 / (alpha length).

    Length-adaptive GAE (VAPO, arXiv 2504.05118, section 4.2), used for the policy, not for the critic. The weights of a
    row's temporal differences then sum to about alpha * length. Rows of 1 / alpha tokens or fewer get 0.
    """
    return (1 - 1 / (alpha * lengths.float()).clamp(min=1e-6)).clamp(min=0.0)


def moments(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Count, sum and sum of squares of `x` in the mask: (3,) in float64. Moments of several processes can be added."""
    masked = torch.where(mask.bool(), x, 0.0).double()
    return torch.stack([mask.bool().sum().double(), masked.sum(), (masked**2).sum()])


def whiten(x: torch.Tensor, mask: torch.Tensor, shift: bool = True, total: torch.Tensor | None = None) -> torch.Tensor:
    """`x` divided by its unbiased standard deviation in the mask, 0 outside. With `shift` its mean becomes 0.

    `total`: the `moments` to use, the sum over all processes; None takes those of `x`. Fewer than two tokens have no
    deviation: they become 0 (with `shift`) or stay unchanged.
    """
    count, total_sum, squares = (moments(x, mask) if total is None else total).unbind()
    mean = total_sum / count.clamp(min=1)
    variance = (squares - total_sum * mean).clamp(min=0) / (count - 1).clamp(min=1)
    scale = torch.where(count > 1, (variance + 1e-8).rsqrt(), 1.0)
    whitened = (x.double() - mean) * scale + (0.0 if shift else mean)
    return torch.where(mask.bool(), whitened, 0.0).to(x.dtype)


def value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    clip: float | None = None,
) -> torch.Tensor:
    """Half the squared error of each token's value, (B, T), 0 outside the mask.

    `old_values` are the critic's before the update. With `clip` the loss is the larger of that error and the error of
    the value held within `clip` of `old_values`. This is PPO's value clipping (openai/baselines, ppo2): a value that
    has already moved towards its return by more than `clip` gets no gradient.
    """
    error = (values - returns) ** 2
    if clip is not None:
        error = torch.maximum(error, (old_values + (values - old_values).clamp(-clip, clip) - returns) ** 2)
    return torch.where(mask.bool(), error / 2, 0.0)
