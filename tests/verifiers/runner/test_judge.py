"""Whatever a verifier does costs its own verdicts only."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from qwq_rl.errors import UserError
from qwq_rl.verifiers import Problem, Response, Verdict
from qwq_rl.verifiers.runner.calls import as_verdict
from qwq_rl.verifiers.runner.judge import judge

NO, YES = Response(text="no", answer="no"), Response(text="yes", answer="yes")
ITEMS: list[tuple[Problem, Response]] = [({"id": "a"}, YES), ({"id": "b"}, NO)]


def test_a_bool_becomes_a_verdict() -> None:
    said = judge(lambda problem, response: response.answer == "yes", ITEMS)
    assert [(v.score, v.status) for v in said] == [(1.0, "correct"), (0.0, "wrong")]


def test_an_exception_costs_one_verdict_and_says_where() -> None:
    def verify(problem: Problem, response: Response) -> float:
        return 1.0 if response.answer == "yes" else 1 / 0

    good, bad = judge(verify, ITEMS)
    assert good.score == 1.0
    assert (bad.score, bad.status) == (None, "fault")
    assert "ZeroDivisionError" in bad.reason
    assert "test_judge.py" in bad.reason


def test_a_checker_that_ends_the_process_costs_its_own_verdict() -> None:
    def verify(problem: Problem, response: Response) -> bool:
        return response.answer == "yes" or sys.exit(0)

    good, bad = judge(verify, ITEMS)
    assert good.score == 1.0
    assert (bad.score, bad.status) == (None, "fault")
    assert "SystemExit" in bad.reason


@pytest.mark.parametrize("batched", [False, True])
def test_what_the_user_must_mend_is_no_verdict(batched: bool) -> None:
    class Refusing:
        def __call__(self, problem: Problem, response: Response) -> float:
            raise UserError("the sandbox cannot isolate here")

    if batched:
        Refusing.batch = lambda self, items: [self(*item) for item in items]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="cannot isolate"):
        judge(Refusing(), ITEMS)


def test_coroutines_are_awaited_together() -> None:
    both = asyncio.Barrier(2)

    async def verify(problem: Problem, response: Response) -> bool:
        await asyncio.wait_for(both.wait(), 10)  # passes only while both wait
        return response.answer == "yes"

    assert [v.score for v in judge(verify, ITEMS)] == [1.0, 0.0]


def test_a_coroutine_that_raises_costs_one_verdict() -> None:
    async def verify(problem: Problem, response: Response) -> bool:
        if response.answer == "no":
            raise OSError("gone")
        return True

    assert [(v.score, v.status) for v in judge(verify, ITEMS)] == [(1.0, "correct"), (None, "fault")]


def test_coroutines_are_awaited_inside_a_running_loop() -> None:
    async def verify(problem: Problem, response: Response) -> bool:
        return True

    async def main() -> list[Verdict]:
        return judge(verify, ITEMS)

    assert [v.score for v in asyncio.run(main())] == [1.0, 1.0]


class Batched:
    """Counts its calls; fails as a whole where one answer is `no` and `brittle` is set."""

    def __init__(self, brittle: bool = False, short: bool = False) -> None:
        self.brittle, self.short, self.batches = brittle, short, 0

    def __call__(self, problem: Problem, response: Response) -> float:
        if self.brittle and response.answer == "no":
            raise ValueError("no")
        return 1.0

    def batch(self, items: list[tuple[Problem, Response]]) -> list[Verdict]:
        self.batches += 1
        said = [Verdict(self(problem, response), "correct") for problem, response in items]
        return said[1:] if self.short else said


def test_a_batch_is_one_call() -> None:
    verifier = Batched()
    assert [v.score for v in judge(verifier, ITEMS)] == [1.0, 1.0]
    assert verifier.batches == 1


def test_no_items_are_no_call() -> None:
    verifier = Batched()
    assert judge(verifier, []) == []
    assert verifier.batches == 0


def test_a_batch_that_fails_as_a_whole_is_judged_one_by_one() -> None:
    assert [v.score for v in judge(Batched(brittle=True), ITEMS)] == [1.0, None]


def test_a_batch_of_the_wrong_length_is_judged_one_by_one() -> None:
    assert [v.score for v in judge(Batched(short=True), ITEMS)] == [1.0, 1.0]


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), 1.5, -0.1, "1", [1.0], Verdict(7.0, "correct"), None])
def test_nonsense_as_a_score_is_a_fault(nonsense: Any) -> None:
    said = as_verdict(nonsense)
    assert (said.score, said.status) == (None, "fault")
    assert said.reason


@pytest.mark.parametrize(
    ("role", "score", "fits"),
    [("score", 0.5, True), ("gate", 0.5, False), ("gate", 1.0, True), ("penalty", -0.5, True), ("penalty", 0.5, False)],
)
def test_the_role_says_which_scores_are_possible(role: Any, score: float, fits: bool) -> None:
    assert as_verdict(Verdict(score, "scored"), role).score == (score if fits else None)


def test_the_time_is_measured_where_the_verifier_does_not_say() -> None:
    assert judge(lambda problem, response: True, ITEMS)[0].seconds > 0
    assert judge(lambda problem, response: Verdict(1.0, "correct", seconds=7.0), ITEMS)[0].seconds == 7.0
