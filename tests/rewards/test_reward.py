"""The reward's arithmetic: closed forms, and what holds for every input."""

from __future__ import annotations

import math
from itertools import pairwise, product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qwq_rl.rewards.reward import compose, win_rates

UNIT = st.floats(0, 1)
PENALTIES = st.lists(st.floats(-1, 0), max_size=3)
RAW = st.floats(-1e6, 1e6)
GROUP = st.lists(RAW, min_size=2, max_size=9)


def reward(
    score: float | None, gates: bool | None = True, q: float | None = None, w: float = 0.0, *penalties: float | None
) -> float:
    value = compose(score, gates, q, w, penalties)
    assert value is not None
    return value


def test_win_rates_of_two_are_the_bradley_terry_model() -> None:
    rates = win_rates([3.0, 1.0], tau=2.0)
    assert rates == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))])


def test_a_win_rate_is_the_mean_over_the_others() -> None:
    sigmoid = [1 / (1 + math.exp(-x)) for x in (1.0, 3.0)]
    assert win_rates([3.0, 2.0, 0.0], tau=1.0)[0] == pytest.approx(sum(sigmoid) / 2)


@given(GROUP, st.floats(0.01, 100))
def test_win_rates_lie_in_the_unit_interval_and_average_a_half(scores: list[float], tau: float) -> None:
    rates = [rate for rate in win_rates(scores, tau) if rate is not None]
    assert len(rates) == len(scores)
    assert all(0 <= rate <= 1 for rate in rates)
    assert sum(rates) / len(rates) == pytest.approx(0.5)


@given(GROUP, st.floats(0.01, 100))
def test_a_higher_score_never_has_a_lower_win_rate(scores: list[float], tau: float) -> None:
    rates = win_rates(scores, tau)
    ordered = [rate for _, rate in sorted(zip(scores, rates, strict=True), key=lambda pair: pair[0])]
    assert all(low <= high + 1e-12 for low, high in pairwise(ordered))  # type: ignore[operator]


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=8), st.integers(-1000, 1000))
def test_only_differences_count(scores: list[int], shift: int) -> None:
    moved = [float(score + shift) for score in scores]
    assert win_rates(moved, 2.0) == win_rates([float(score) for score in scores], 2.0)


def test_one_outlier_is_bounded() -> None:
    assert win_rates([1e9, 0.0, 0.0, 0.0], tau=1.0) == pytest.approx([1.0, 1 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_a_score_that_is_missing_takes_no_part(missing: float | None) -> None:
    assert win_rates([1.0, missing, 1.0], tau=1.0) == [0.5, None, 0.5]


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, None]])
def test_nothing_to_compare_with_is_no_win_rate(scores: list[float | None]) -> None:
    assert win_rates(scores, tau=1.0) == [None] * len(scores)


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_tau_must_be_positive(tau: float) -> None:
    with pytest.raises(ValueError, match="tau must be above 0"):
        win_rates([1.0, 2.0], tau)


@pytest.mark.parametrize(
    ("score", "gates", "q", "w", "penalties", "expected"),
    [
        (1.0, True, None, 0.0, (), 1.0),
        (0.0, True, None, 0.0, (), 0.0),
        (1.0, False, None, 0.0, (), 0.0),
        (1.0, True, 0.5, 0.3, (), 0.85),
        (0.5, True, 1.0, 0.3, (), 0.5),
        (1.0, True, 0.7, 1.0, (), 0.7),  # an open row
        (1.0, True, 0.5, 0.3, (-0.2,), 0.65),
        (0.1, True, None, 0.0, (-0.2, -0.3), 0.0),
    ],
)
def test_closed_forms(
    score: float, gates: bool, q: float | None, w: float, penalties: tuple[float, ...], expected: float
) -> None:
    assert compose(score, gates, q, w, penalties) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("score", "gates", "q", "w", "penalties", "expected"),
    [
        (None, True, None, 0.0, (), None),
        (1.0, None, None, 0.0, (), None),
        (1.0, True, None, 0.3, (), None),  # a missing preference is never w = 0
        (1.0, True, None, 0.0, (None,), None),
        (None, False, None, 0.3, (None,), 0.0),  # a failed gate decides
        (0.0, None, None, 0.3, (None,), 0.0),  # and so does a failing answer
        (1.0, True, None, 0.0, (-0.5,), 0.5),
    ],
)
def test_what_is_needed_and_missing_makes_the_reward_missing(
    score: float | None,
    gates: bool | None,
    q: float | None,
    w: float,
    penalties: tuple[float | None, ...],
    expected: float | None,
) -> None:
    assert compose(score, gates, q, w, penalties) == expected


@given(UNIT, st.booleans(), UNIT, UNIT, PENALTIES)
def test_the_reward_lies_in_the_unit_interval(
    score: float, gates: bool, q: float, w: float, penalties: list[float]
) -> None:
    assert 0 <= reward(score, gates, q, w, *penalties) <= 1


@given(UNIT, st.booleans(), st.booleans(), UNIT, UNIT, PENALTIES, PENALTIES)
def test_no_failing_answer_outranks_a_passing_one(
    w: float,
    gate_of_failing: bool,
    gate_fails: bool,
    q_failing: float,
    q_passing: float,
    p: list[float],
    r: list[float],
) -> None:
    failing = reward(1.0 if gate_fails else 0.0, gate_of_failing and not gate_fails, q_failing, w, *p)
    assert failing <= reward(1.0, True, q_passing, w, *r)


@given(st.floats(0, 0.99), UNIT, UNIT, st.floats(0, 1))
def test_a_passing_answer_is_strictly_above_while_the_penalties_stay_in_bounds(
    w: float, q: float, q_failing: float, share: float
) -> None:
    penalty = -share * (1 - w) * 0.99  # the bound that a recipe is held to: p_max < 1 - w
    assert reward(1.0, True, q, w, penalty) > reward(0.0, True, q_failing, w, 0.0)


@given(UNIT, UNIT, UNIT, UNIT)
def test_a_better_score_or_preference_never_lowers_the_reward(score: float, q: float, w: float, other: float) -> None:
    assume(other >= score)
    assert reward(other, True, q, w) >= reward(score, True, q, w) - 1e-12
    assert reward(score, True, max(q, other), w) >= reward(score, True, q, w) - 1e-12


def test_values_out_of_range_are_refused() -> None:
    for arguments in [(1.1, 0.5, 0.3, 0.0), (1.0, 1.5, 0.3, 0.0), (1.0, 0.5, 1.3, 0.0), (1.0, 0.5, 0.3, 0.1)]:
        score, q, w, penalty = arguments
        with pytest.raises(ValueError, match="must lie in"):
            compose(score, True, q, w, (penalty,))


def test_every_combination_of_rules_is_ranked_by_them() -> None:
    for q_passing, q_failing, w in product((0.0, 0.5, 1.0), (0.0, 0.5, 1.0), (0.0, 0.3, 0.9)):
        assert reward(1.0, True, q_passing, w) > reward(0.0, True, q_failing, w)
