"""What a gate says of an evaluation."""

from __future__ import annotations

from typing import Any

from qwq_rl.config.recipe import Requirement
from qwq_rl.pipeline.state import judge


def estimate(mean: float | None) -> dict[str, Any]:
    return {"mean": mean, "low": 0.0, "high": 1.0}


def area(sampled: float | None, pass_at_k: float | None) -> dict[str, Any]:
    return {"sampled": estimate(sampled), "greedy": None, "pass_at_k": estimate(pass_at_k)}


def modes(worked: float | None, terse: float | None, share: float) -> dict[str, Any]:
    return {"worked": {"mean": worked, "share": 1 - share}, "terse": {"mean": terse, "share": share}}


EVALUATION = {
    "domains": {"math": area(0.5, 0.9), "code": area(0.4, 0.8), "general": area(0.1, 0.2)},
    "families": {"math/chain": area(0.6, 0.95), "math/words": area(0.4, 0.0), "code/stdin": area(0.4, 0.8)},
    "modes": {"math": modes(0.7, 0.3, 0.25), "code": modes(0.4, None, 0.0)},
}


def test_every_family_must_be_solved_at_least_once() -> None:
    results = judge([Requirement("pass_at_k", 0.0, ("math", "code"), "families")], EVALUATION)
    assert [(one.scope, one.passed) for one in results] == [
        ("math/chain", True),
        ("math/words", False),
        ("code/stdin", True),
    ]
    assert results[1].describe() == "pass_at_k of math/words failed: 0.000, must be above 0"


def test_pass_at_1_is_the_mean_score_and_the_limit_itself_is_not_above() -> None:
    results = judge([Requirement("pass_at_1", 0.4, ("math", "code"))], EVALUATION)
    assert [(one.value, one.passed) for one in results] == [(0.5, True), (0.4, False)]


def test_no_domain_named_means_all_of_the_set() -> None:
    results = judge([Requirement("pass_at_1", 0.3)], EVALUATION)
    assert {one.scope: one.passed for one in results} == {"math": True, "code": True, "general": False}


def test_worked_answers_must_beat_terse_ones() -> None:
    (passes,) = judge([Requirement("worked_minus_terse", 0.3, ("math",))], EVALUATION)
    (fails,) = judge([Requirement("worked_minus_terse", 0.45, ("math",))], EVALUATION)
    assert passes.value is not None
    assert abs(passes.value - 0.4) < 1e-12
    assert (passes.passed, fails.passed) == (True, False)


def test_without_terse_answers_nothing_can_collapse() -> None:
    (result,) = judge([Requirement("worked_minus_terse", 0.3, ("code",))], EVALUATION)
    assert (result.passed, result.value, result.note) == (True, None, "no terse responses")


def test_only_terse_answers_fail() -> None:
    evaluation = EVALUATION | {"modes": {"math": modes(None, 0.9, 1.0)}}
    (result,) = judge([Requirement("worked_minus_terse", 0.3, ("math",))], evaluation)
    assert (result.passed, result.note) == (False, "no response reasons before it answers")


def test_a_domain_that_the_set_lacks_fails() -> None:
    (result,) = judge([Requirement("pass_at_1", 0.1, ("tools",))], EVALUATION)
    assert not result.passed
    assert "no prompt of this domain" in result.describe()


def test_what_could_not_be_judged_fails() -> None:
    evaluation = EVALUATION | {"domains": {"math": area(None, None)}}
    (result,) = judge([Requirement("pass_at_1", 0.1, ("math",))], evaluation)
    assert (result.passed, result.value) == (False, None)


def test_a_mode_of_which_nothing_could_be_judged_does_not_pass() -> None:
    found = judge(
        [Requirement("worked_minus_terse", 0.3, ("math",))], {**EVALUATION, "modes": {"math": modes(None, 0.3, 0.5)}}
    )
    assert [(one.value, one.passed) for one in found] == [(None, False)]
    assert "could be judged" in found[0].describe()
