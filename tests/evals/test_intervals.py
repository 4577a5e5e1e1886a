"""Intervals against closed forms, published values and simulation."""

from __future__ import annotations

import math
import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_rl.evals.intervals import (
    Estimate,
    combined,
    mean_interval,
    pass_at_k,
    pass_at_k_interval,
    stratified_difference,
    stratified_interval,
    t_quantile,
)


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [
        (0.975, 1, 12.706204736),
        (0.975, 2, 4.302652730),
        (0.95, 5, 2.015048373),
        (0.975, 10, 2.228138852),
        (0.975, 30, 2.042272456),
        (0.95, 400, 1.648671930),
        (0.975, 401, 1.965897466),
        (0.95, 10**6, 1.644855),
    ],
)
def test_t_quantiles_are_the_published_ones(probability: float, freedom: int, expected: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-6)


def test_one_sample_a_prompt_is_nearly_the_plain_wilson_interval() -> None:
    """The effective size of single samples is n - 1 by the variance's divisor, held up to n; Wilson of 30 of 100."""
    estimate = mean_interval([[1.0]] * 30 + [[0.0]] * 70)
    z, p, n = t_quantile(0.975, 99), 0.3, 100
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert estimate is not None
    assert (estimate.low, estimate.high) == pytest.approx((centre - reach, centre + reach))


def test_samples_that_always_agree_count_once_a_prompt() -> None:
    single = mean_interval([[1.0]] * 30 + [[0.0]] * 70)
    assert mean_interval([[1.0] * 8] * 30 + [[0.0] * 8] * 70) == single


def test_independent_samples_count_each() -> None:
    """Means of prompts that vary as binomials of 4 do: the effective size is close to the number of samples."""
    generator = random.Random(0)
    scores = [[float(generator.random() < 0.4) for _ in range(4)] for _ in range(2000)]
    estimate = mean_interval(scores)
    assert estimate is not None
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * math.sqrt(0.24 / 8000), rel=0.08)


def test_a_mean_at_the_end_keeps_a_width() -> None:
    for score in (0.0, 1.0):
        estimate = mean_interval([[score] * 8] * 100)
        assert estimate is not None
        assert estimate.mean == score
        assert estimate.high - estimate.low == pytest.approx(0.0379, abs=1e-3)
        assert 0.0 <= estimate.low <= estimate.mean <= estimate.high <= 1.0


def test_faults_are_left_out() -> None:
    assert mean_interval([[1.0, None], [None, None], [0.0, 0.0]]) == mean_interval([[1.0], [0.0]])
    assert mean_interval([[None], []]) is None
    assert mean_interval([]) is None


def test_one_prompt_says_nothing_of_the_others() -> None:
    assert mean_interval([[1.0, 0.0, 1.0, 0.0]]) == Estimate(0.5, 0.0, 1.0)


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), max_size=5), max_size=30))
def test_every_interval_holds_its_mean_within_the_range(scores: list[list[float | None]]) -> None:
    estimate = mean_interval(scores)
    if estimate is not None:
        assert 0.0 <= estimate.low <= estimate.mean <= estimate.high <= 1.0
        assert estimate.high > estimate.low


def test_a_domain_is_the_mean_of_its_families_however_large_they_are() -> None:
    easy, hard = [[1.0], [1.0], [1.0], [1.0], [0.0]] * 20, [[0.0], [1.0]] * 5
    estimate, parts = stratified_interval([easy, hard]), [mean_interval(easy), mean_interval(hard)]
    assert estimate is not None
    assert estimate.mean == pytest.approx((0.8 + 0.5) / 2)
    above = math.hypot(*(part.high - part.mean for part in parts if part)) / 2
    assert estimate.high - estimate.mean == pytest.approx(above)


def test_families_without_a_judged_prompt_are_left_out_of_the_domain() -> None:
    assert stratified_interval([[[1.0], [0.0]], [[None]]]) == combined([mean_interval([[1.0], [0.0]])])
    assert stratified_interval([[[None]]]) is None


def test_pass_at_k_is_the_share_of_the_subsets_that_hold_a_pass() -> None:
    scores = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    for k in range(1, 7):
        subsets = list(combinations(scores, k))
        assert pass_at_k(scores, k) == pytest.approx(sum(1.0 in subset for subset in subsets) / len(subsets))


def test_pass_at_k_uses_what_could_be_judged() -> None:
    assert pass_at_k([None, 0.0, 1.0], 3) == 1.0
    assert pass_at_k([None], 3) is None
    estimate = pass_at_k_interval([[0.0, 1.0], [0.0, 0.0], [None, None]], 2)
    assert estimate is not None
    assert estimate.mean == 0.5


def test_a_paired_difference_is_a_t_interval_on_the_prompts_differences() -> None:
    a = {"p": [1.0, 1.0], "q": [1.0, 0.0], "r": [0.0, 0.0], "only a": [1.0]}
    b = {"q": [0.0, 0.0], "p": [1.0, 0.0], "r": [0.0, 0.0], "only b": [0.0]}
    found = stratified_difference([(a, b)])
    assert found is not None
    mean, error = 1 / 3, math.sqrt((2 * (1 / 6) ** 2 + (1 / 3) ** 2) / 2 / 3)
    assert found.prompts == 3
    assert found.difference.mean == pytest.approx(mean)
    assert found.difference.high == pytest.approx(min(1.0, mean + t_quantile(0.975, 2) * error))
    assert found.lower95 == pytest.approx(mean - t_quantile(0.95, 2) * error)


def test_a_difference_is_paired_so_the_prompts_difficulty_cancels() -> None:
    generator = random.Random(1)
    difficulty = {str(index): generator.random() for index in range(200)}
    a = {prompt: [float(generator.random() < ease) for _ in range(8)] for prompt, ease in difficulty.items()}
    b = {prompt: [float(generator.random() < ease) for _ in range(8)] for prompt, ease in difficulty.items()}
    paired, alone = stratified_difference([(a, b)]), mean_interval(list(a.values()))
    assert paired is not None
    assert alone is not None
    assert paired.difference.high - paired.difference.low < alone.high - alone.low


def test_no_difference_at_all_still_has_a_width() -> None:
    same = {str(index): [1.0] * 8 for index in range(300)}
    found = stratified_difference([(same, same)])
    assert found is not None
    assert found.difference.mean == 0.0
    assert (found.difference.low, found.difference.high) == pytest.approx((-0.0127, 0.0127), abs=2e-4)
    assert -0.01 < found.lower95 < -0.008


def test_strata_weigh_the_same_in_a_difference() -> None:
    large = ({str(i): [1.0] for i in range(90)}, {str(i): [float(i % 2)] for i in range(90)})
    small = ({str(i): [0.0] for i in range(10)}, {str(i): [0.0] for i in range(10)})
    found = stratified_difference([large, small])
    assert found is not None
    assert found.difference.mean == pytest.approx(0.25)
    assert found.prompts == 100


def test_nothing_in_common_is_no_difference() -> None:
    assert stratified_difference([({"a": [1.0]}, {"b": [1.0]})]) is None
    assert stratified_difference([({"a": [None]}, {"a": [1.0]})]) is None


def test_a_single_pair_bounds_nothing() -> None:
    found = stratified_difference([({"a": [1.0]}, {"a": [0.0]})])
    assert found is not None
    assert (found.difference.low, found.lower95) == (-1.0, -1.0)


@pytest.mark.parametrize(("ease", "correlation"), [(0.5, 0.4), (0.9, 0.3), (0.95, 0.2)])
def test_intervals_cover_the_truth(ease: float, correlation: float) -> None:
    """Three families of 50 prompts x 8 samples with beta-distributed ease: about 95 of 100 intervals hold the truth."""
    generator = random.Random(7)
    alpha, beta = ease * (1 - correlation) / correlation, (1 - ease) * (1 - correlation) / correlation

    def family() -> list[list[float]]:
        eases = [generator.betavariate(alpha, beta) for _ in range(50)]
        return [[float(generator.random() < one) for _ in range(8)] for one in eases]

    runs = 1200
    single = [mean_interval(family()) for _ in range(runs)]
    domain = [combined(single[at : at + 3]) for at in range(0, runs - 3, 3)]
    for estimates in (single, domain):
        covered = sum(e is not None and e.low <= ease <= e.high for e in estimates) / len(estimates)
        assert 0.93 <= covered <= 0.975


def test_lower_bounds_of_differences_hold_95_times_of_100() -> None:
    generator = random.Random(11)

    def bound() -> float:
        eases = [(generator.betavariate(3, 1), str(index)) for index in range(60)]
        a = {name: [float(generator.random() < ease * 0.95) for _ in range(8)] for ease, name in eases}
        b = {name: [float(generator.random() < ease) for _ in range(8)] for ease, name in eases}
        found = stratified_difference([(a, b)])
        assert found is not None
        return found.lower95

    truth = -0.05 * 0.75
    assert 0.92 <= sum(bound() <= truth for _ in range(400)) / 400 <= 0.98
