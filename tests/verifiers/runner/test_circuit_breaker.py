"""The breaker leaves a verifier alone while most of its verdicts are faults, and tries again later."""

from __future__ import annotations

import pytest

from qwq_rl.verifiers.runner.circuit_breaker import Breaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker("judge", window=10, least=4, limit=0.5, rest_s=30, clock=clock)


def test_few_faults_leave_it_closed(breaker: Breaker) -> None:
    assert not any(breaker.record(failed) for failed in (True, False, False) * 20)
    assert breaker.allows()


def test_many_faults_open_it_and_it_says_why(breaker: Breaker) -> None:
    assert [breaker.record(True, "no route to host") for _ in range(4)] == [False, False, False, True]
    assert not breaker.allows()
    assert breaker.reason == "4 of its last 4 verdicts were faults, the last: no route to host"


@pytest.mark.parametrize(("failed", "allowed"), [(False, True), (True, False), (None, False)])
def test_after_a_rest_one_question_decides(breaker: Breaker, clock: Clock, failed: bool | None, allowed: bool) -> None:
    breaker.trip("gone")
    clock.now = 31
    assert [breaker.allows(), breaker.allows()] == [True, False]
    breaker.record(failed)
    assert breaker.allows() == allowed
    clock.now = 62
    assert breaker.allows()


def test_what_was_asked_before_it_opened_does_not_close_it(breaker: Breaker) -> None:
    breaker.trip("gone")
    breaker.record(False)
    assert not breaker.allows()


def test_what_tells_nothing_is_not_counted(breaker: Breaker) -> None:
    for failed in (True, True, None, None, None, None, None, True):
        assert not breaker.record(failed)
    assert breaker.record(True)
