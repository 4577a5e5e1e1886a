"""From the rewards of an update to one advantage a row: what to subtract, and what to divide by."""

from __future__ import annotations

from typing import Literal, get_args

import torch

Baseline = Literal["group", "leave_one_out", "none"]
"""What is subtracted: the mean of the row's group, the mean of the others in it, or nothing."""
Scale = Literal["group", "domain", "none"]
"""What is divided by: the standard deviation in the row's group, in its domain over the whole batch, or nothing."""

EPSILON = 1e-4
"""Added to every standard deviation, as TRL does."""


def advantages(
    rewards: torch.Tensor, groups: torch.Tensor, domains: torch.Tensor, *, baseline: Baseline, scale: Scale
) -> torch.Tensor:
    """The advantage of each row, (N,) in the type of `rewards`.

    `rewards` (N,): NaN marks a row that could not be judged; it gets 0 and takes no part in any statistic. `groups`
    and `domains` (N,) integers: rows with the same number belong together, in any order; a group lies in one domain.
    All rows of the update must be here, those of other processes too. Standard deviations are unbiased.

    - A row alone in what it is compared with or scaled by gets 0, and so does, exactly, every row of a group with equal
      rewards where a group baseline is used: such rows can be left out of the forward pass.
    - Scale "domain" is the standard deviation of what the baseline left over, per domain: rewards of a wide-ranging
      domain do not shrink the advantages of another. Without a baseline the domain's mean is subtracted as well, which
      together is REINFORCE++'s whitening of the global batch, a row counting once however long it is; with one, that
      mean is 0 already, which is REINFORCE++ w/ Baseline.

    Sums run in float64; on a GPU their order, and so the last bit, may differ between runs: pass CPU tensors.
    Raises ValueError for an unknown baseline or scale, unequal shapes, and rewards that are integers or infinite.
    """
    _check(rewards, groups, domains, baseline, scale)
    judged = ~rewards.isnan()
    kept = rewards[judged].double()
    group = groups[judged].unique(return_inverse=True)[1]
    domain = domains[judged].unique(return_inverse=True)[1]
    found = kept if baseline == "none" else kept - _mean(kept, group)
    if baseline == "leave_one_out":
        rows = _count(group)
        found = torch.where(rows > 1, found * rows / (rows - 1).clamp(min=1), 0.0)
    if scale == "group":
        found = _scaled(found, kept, group)
    elif scale == "domain":
        centred = found - _mean(found, domain) if baseline == "none" else found
        found = _scaled(centred, found, domain)
    result = torch.zeros_like(rewards)
    result[judged] = found.to(rewards.dtype)
    return result


def _check(rewards: torch.Tensor, groups: torch.Tensor, domains: torch.Tensor, baseline: str, scale: str) -> None:
    if baseline not in get_args(Baseline):
        raise ValueError(f"unknown baseline {baseline!r}; known are {', '.join(get_args(Baseline))}")
    if scale not in get_args(Scale):
        raise ValueError(f"unknown scale {scale!r}; known are {', '.join(get_args(Scale))}")
    if rewards.dim() != 1 or rewards.shape != groups.shape or rewards.shape != domains.shape:
        shapes = ", ".join(str(tuple(part.shape)) for part in (rewards, groups, domains))
        raise ValueError(f"rewards, groups and domains have the shapes {shapes}; all must be (N,)")
    if not rewards.is_floating_point():
        raise ValueError(f"rewards are {rewards.dtype}; they must be floating-point numbers")
    if bool(rewards.isinf().any()):
        raise ValueError(f"the reward of row {int(rewards.isinf().nonzero()[0])} is infinite")


def _count(parts: torch.Tensor) -> torch.Tensor:
    """How many rows the part of each row has."""
    return parts.bincount()[parts].double()


def _mean(values: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    """The mean of each row's part; exactly the value itself where all of the part are equal."""
    size = int(parts.max()) + 1 if len(parts) else 0
    lowest = values.new_zeros(size).scatter_reduce(0, parts, values, "amin", include_self=False)[parts]
    return lowest + values.new_zeros(size).index_add(0, parts, values - lowest)[parts] / _count(parts)


def _scaled(values: torch.Tensor, of: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    """`values` over the unbiased standard deviation of `of` in each row's part; 0 where a row is alone in it."""
    rows = _count(parts)
    deviation = (_mean((of - _mean(of, parts)) ** 2, parts) * rows / (rows - 1).clamp(min=1)).sqrt()
    return torch.where(rows > 1, values / (deviation + EPSILON), 0.0)
