from __future__ import annotations

import json

import numpy as np
import pytest

from qwq_rl.data.adaptive import FLOOR, Successes, weighted_order, weights


def test_the_weight_is_the_variance_of_success_with_a_floor() -> None:
    assert weights(np.array([0.0, 0.25, 0.5, 1.0])).tolist() == [FLOOR, 0.1875, 0.25, FLOOR]


def test_draws_are_in_proportion_to_the_weights_left() -> None:
    noise, given = np.random.default_rng(0), np.array([1.0, 2.0, 5.0])
    pairs = [tuple(weighted_order(given, noise.uniform(size=3), 2).tolist()) for _ in range(20_000)]

    for first, second in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]:
        expected = given[first] / 8 * given[second] / (8 - given[first])
        assert pairs.count((first, second)) / len(pairs) == pytest.approx(expected, abs=0.015)


def test_more_draws_than_rows_are_all_rows_and_ties_go_to_the_lower_index() -> None:
    assert weighted_order(np.ones(3), np.full(3, 0.5), 5).tolist() == [0, 1, 2]
    assert weighted_order(np.ones(3), np.full(3, 0.5), 2).tolist() == [0, 1]
    assert weighted_order(np.ones(0), np.ones(0), 2).tolist() == []


def test_a_chance_is_the_last_success_else_the_familys_mean_else_a_half() -> None:
    successes = Successes(np.array([0, 0, 1]))
    successes.learn(0, 0.0)
    successes.learn(0, 1.0)

    assert successes.chances(np.arange(3)).tolist() == [1.0, pytest.approx((0.5 + 0 + 1) / 3), 0.5]


def test_a_familys_mean_forgets() -> None:
    successes = Successes(np.array([0, 0]))
    for _ in range(100):
        successes.learn(0, 0.0)
    for _ in range(100):
        successes.learn(0, 1.0)

    assert successes.chances(np.array([1]))[0] > 0.99


def test_the_state_holds_what_was_tried_alone_and_replaces_what_was_there() -> None:
    successes, other = Successes(np.arange(1000)), Successes(np.arange(1000))
    successes.learn(7, 0.1)
    other.learn(8, 0.9)

    state = json.loads(json.dumps(successes.state_dict()))
    other.load_state_dict(state)

    assert len(json.dumps(state)) < 200
    assert other.state_dict() == successes.state_dict()
    assert other.chances(np.array([8])).tolist() == [0.5]
