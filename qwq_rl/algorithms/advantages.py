"""The advantages of an update, one per row: a reward minus a baseline, divided by a scale."""

from __future__ import annotations

from typing import Literal, get_args

import torch

Baseline = Literal["group", "leave_one_out", "none"]
"""What is subtracted: the mean of the row's group, the mean of the other rows in its group, or nothing."""
Scale = Literal["group", "domain", "none"]
"""The divisor: the standard deviation in the row's group, in its domain over the whole batch, or none."""

EPSILON = 1e-4
"""Added to every standard deviation, as TRL does."""


def advantages(
    rewards: torch.Tensor, groups: torch.Tensor, domains: torch.Tensor, *, baseline: Baseline, scale: Scale
) -> torch.Tensor:
    """The advantage of each row, (N,), in the type of `rewards`.

    `rewards` (N,): NaN marks a row that could not be judged. It gets 0 and is left out of all statistics. `groups` and
    `domains` (N,) are integers: rows with the same number belong together, in any order. A group lies in one domain.
    All rows of the update must be given, also those of other processes. Standard deviations are unbiased.

    - A row that is alone in its group or domain, where that is used, gets 0. With a group baseline a row whose group
      has equal rewards gets exactly 0. Such rows can be left out of the forward pass.
    - Scale "domain" divides by the standard deviation, per domain, of the rewards minus the baseline, so a domain with
      widely spread rewards does not shrink the advantages of another. Without a baseline the domain's mean is
      subtracted too. Together that is REINFORCE++'s whitening of the global batch, where a row counts once, however
      long it is. With a baseline this mean is already 0, which is REINFORCE++ w/ Baseline.

    Sums are computed in float64. On a GPU their order, and so the last bit, may differ between runs: pass CPU tensors.
    Raises ValueError for an unknown baseline or scale, unequal shapes, and rewards that are integers or infinite.
    """
    _check(rewards, groups, domains, baseline, scale)
    judged = ~rewards.isnan()
    judged_rewards = rewards[judged].double()
    group = groups[judged].unique(return_inverse=True)[1]
    domain = domains[judged].unique(return_inverse=True)[1]
    values = judged_rewards if baseline == "none" else judged_rewards - _mean(judged_rewards, group)
    if baseline == "leave_one_out":
        # r - mean of the others = (r - mean of all) * n / (n - 1)
        group_size = _count(group)
        values = torch.where(group_size > 1, values * group_size / (group_size - 1).clamp(min=1), 0.0)
    if scale == "group":
        values = _scaled(values, judged_rewards, group)
    elif scale == "domain":
        centred = values - _mean(values, domain) if baseline == "none" else values
        values = _scaled(centred, values, domain)
    result = torch.zeros_like(rewards)
    result[judged] = values.to(rewards.dtype)
    return result


def _check(rewards: torch.Tensor, groups: torch.Tensor, domains: torch.Tensor, baseline: str, scale: str) -> None:
    if baseline not in get_args(Baseline):
        raise ValueError(f"unknown baseline {baseline!r}; known are {', '.join(get_args(Baseline))}")
    if scale not in get_args(Scale):
        raise ValueError(f"unknown scale {scale!r}; known are {', '.join(get_args(Scale))}")
    if rewards.dim() != 1 or rewards.shape != groups.shape or rewards.shape != domains.shape:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (rewards, groups, domains))
        raise ValueError(f"rewards, groups and domains have the shapes {shapes}; all must be (N,)")
    if not rewards.is_floating_point():
        raise ValueError(f"rewards are {rewards.dtype}; they must be floating-point numbers")
    if bool(rewards.isinf().any()):
        raise ValueError(f"the reward of row {int(rewards.isinf().nonzero()[0])} is infinite")


def _count(parts: torch.Tensor) -> torch.Tensor:
    """For each row the number of rows in its part."""
    return parts.bincount()[parts].double()


def _mean(values: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    """For each row the mean of its part; exactly the row's value where all values of the part are equal."""
    size = int(parts.max()) + 1 if len(parts) else 0
    # Subtracting the lowest value first makes the sum of equal values exactly 0, without rounding.
    lowest = values.new_zeros(size).scatter_reduce(0, parts, values, "amin", include_self=False)[parts]
    return lowest + values.new_zeros(size).index_add(0, parts, values - lowest)[parts] / _count(parts)


def _scaled(values: torch.Tensor, spread_of: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    """`values` divided by the unbiased standard deviation of `spread_of` in each row's part; 0 if it has one row."""
    size = _count(parts)
    deviation = (_mean((spread_of - _mean(spread_of, parts)) ** 2, parts) * size / (size - 1).clamp(min=1)).sqrt()
    return torch.where(size > 1, values / (deviation + EPSILON), 0.0)
