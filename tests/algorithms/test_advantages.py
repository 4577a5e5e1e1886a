"""Advantages, in numbers that can be worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwq_rl.algorithms.advantages import EPSILON, advantages
from qwq_rl.algorithms.named import ALGORITHMS

NAN = math.nan
WAYS = sorted({(one.baseline, one.scale) for one in ALGORITHMS.values() if one.baseline and one.scale})


def found(rewards: list[float], groups: list[int], domains: list[int] | None = None, **how: Any) -> list[float]:
    domains = domains if domains is not None else [0] * len(groups)
    given = torch.tensor(rewards, dtype=torch.float64)
    return advantages(given, torch.tensor(groups), torch.tensor(domains), **how).tolist()


def test_group_baseline_and_scale_are_those_of_grpo() -> None:
    deviation = math.sqrt(1 / 3)  # of 0, 0, 1, 1, unbiased

    assert found([0, 1, 0, 1], [0, 0, 0, 0], baseline="group", scale="group") == pytest.approx(
        [-0.5 / (deviation + EPSILON), 0.5 / (deviation + EPSILON)] * 2
    )


def test_groups_need_not_lie_side_by_side() -> None:
    assert found([0, 5, 1, 9], [7, 2, 7, 2], baseline="group", scale="none") == [-0.5, -2, 0.5, 2]


def test_leave_one_out_compares_with_the_others() -> None:
    assert found([3, 1, 2], [0, 0, 0], baseline="leave_one_out", scale="none") == pytest.approx([1.5, -1.5, 0])


def test_no_baseline_and_no_scale_is_the_reward() -> None:
    assert found([3, -1], [0, 1], baseline="none", scale="none") == [3, -1]


def test_whitening_without_baseline_takes_mean_and_deviation_of_the_domain() -> None:
    rewards, domains = [0.0, 2.0, 100.0, 300.0], [0, 0, 1, 1]

    math_part, chat_part = math.sqrt(2), math.sqrt(20000)
    assert found(rewards, [0, 1, 2, 3], domains, baseline="none", scale="domain") == pytest.approx(
        [
            -1 / (math_part + EPSILON),
            1 / (math_part + EPSILON),
            -100 / (chat_part + EPSILON),
            100 / (chat_part + EPSILON),
        ]
    )


def test_the_scale_of_a_domain_is_the_deviation_of_what_the_group_baseline_left() -> None:
    # Two easy and hard groups: their means differ by 10, which is no reason to shrink the advantages.
    rewards, groups = [0.0, 2.0, 10.0, 12.0], [0, 0, 1, 1]

    deviation = math.sqrt(4 / 3)
    assert found(rewards, groups, baseline="group", scale="domain") == pytest.approx(
        [-1 / (deviation + EPSILON), 1 / (deviation + EPSILON)] * 2
    )


def test_a_domain_of_wide_rewards_leaves_the_advantages_of_another_as_they_are() -> None:
    alone = found([0, 1, 1, 1], [0, 0, 1, 1], baseline="group", scale="domain")

    both = found([0, 1, 1, 1, -50, 70], [0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 1, 1], baseline="group", scale="domain")

    assert both[:4] == alone


@pytest.mark.parametrize(("baseline", "scale"), WAYS)
def test_an_unjudged_row_gets_nothing_and_changes_nothing(baseline: Any, scale: Any) -> None:
    without = found([0, 1, 1, 4, 2], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1], baseline=baseline, scale=scale)

    with_them = found(
        [0, NAN, 1, 1, 4, 2, NAN, NAN],
        [0, 0, 0, 0, 1, 1, 2, 2],
        [0, 0, 0, 0, 1, 1, 1, 1],
        baseline=baseline,
        scale=scale,
    )

    assert with_them == [without[0], 0, *without[1:], 0, 0]


@pytest.mark.parametrize(("baseline", "scale"), [way for way in WAYS if way[0] != "none"])
@given(reward=st.floats(-10, 10, width=32), rows=st.integers(1, 9))
def test_rows_of_a_group_with_equal_rewards_get_exactly_nothing(
    baseline: Any, scale: Any, reward: float, rows: int
) -> None:
    result = advantages(
        torch.tensor([reward] * rows + [0.1, 0.7, 0.9]),
        torch.tensor([0] * rows + [1, 1, 1]),
        torch.zeros(rows + 3, dtype=torch.long),
        baseline=baseline,
        scale=scale,
    )

    assert result[:rows].tolist() == [0] * rows
    assert (result[rows:] != 0).all()


@pytest.mark.parametrize(("baseline", "scale"), WAYS)
def test_a_batch_where_nothing_could_be_judged_teaches_nothing(baseline: Any, scale: Any) -> None:
    assert found([NAN, NAN], [0, 0], baseline=baseline, scale=scale) == [0, 0]
    assert found([], [], baseline=baseline, scale=scale) == []


@pytest.mark.parametrize(("baseline", "scale"), [("leave_one_out", "none"), ("group", "group"), ("none", "domain")])
def test_a_row_with_nothing_to_compare_it_with_gets_nothing(baseline: Any, scale: Any) -> None:
    assert found([3, NAN], [0, 0], baseline=baseline, scale=scale) == [0, 0]


@pytest.mark.parametrize(("baseline", "scale"), WAYS)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, NAN]), min_size=8, max_size=8))
def test_advantages_of_a_domain_add_up_to_nothing(baseline: Any, scale: Any, rewards: list[float]) -> None:
    result = found(rewards, [0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 0, 0, 1, 1, 1, 1], baseline=baseline, scale=scale)

    assert math.fsum(result[:4]) == pytest.approx(0, abs=1e-9)
    assert math.fsum(result[4:]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "mean"}, "unknown baseline 'mean'; known are group, leave_one_out, none"),
        ({"scale": "batch"}, "unknown scale 'batch'; known are group, domain, none"),
        ({"groups": torch.tensor([0])}, r"shapes \(2,\), \(1,\), \(2,\)"),
        ({"rewards": torch.tensor([0, 1])}, "rewards are torch.int64"),
        ({"rewards": torch.tensor([1.0, math.inf])}, "the reward of row 1 is infinite"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "rewards": torch.tensor([0.0, 1.0]),
        "groups": torch.tensor([0, 0]),
        "domains": torch.tensor([0, 0]),
        "baseline": "group",
        "scale": "group",
    } | change
    with pytest.raises(ValueError, match=message):
        advantages(**given)
