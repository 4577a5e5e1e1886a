"""Calls a verifier in the current thread or process. Whatever goes wrong becomes the verdict of the item concerned."""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, Literal

from qwq_rl.verifiers.contract import Problem, Response, Verdict, Verifier
from qwq_rl.verifiers.loading import LoadedVerifier
from qwq_rl.verifiers.verdicts import describe, fault

Role = Literal["score", "gate", "penalty"]
RANGES: Mapping[str, tuple[float, float]] = {"score": (0.0, 1.0), "gate": (0.0, 1.0), "penalty": (-1.0, 0.0)}
"""Role -> the lowest and the highest score."""

Item = tuple[Problem, Response]
How = Literal["one", "together", "batch"]
"""How items are judged: `one` by one, `together` as coroutines, or in one call of `batch`."""
Emit = Callable[[int, Verdict, bool], None]
"""Called with the index of an item, its verdict, and whether the verdict is only that the deadline passed."""
Run = Callable[[Coroutine[Any, Any, Any]], Any]
"""Runs a coroutine until it ends."""
Passing = tuple[type[BaseException], ...]
"""The exceptions that are no fault of a verifier and are raised to the caller."""

AT_ONCE = 64
"""How many coroutines are awaited at the same time. The others wait; their deadline has not started yet."""


class _DeadlinePassed(Exception):
    """A coroutine was cancelled at its deadline."""


def how_to_ask(verifier: Verifier) -> How:
    """`batch` if the verifier has that method, `together` if it is a coroutine function, else `one` by one."""
    function = _unwrap(verifier)
    if callable(getattr(function, "batch", None)):
        return "batch"
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
    return "together" if is_async else "one"


def _unwrap(verifier: Verifier) -> Any:
    """The user's verifier inside a LoadedVerifier, which has no `batch` and is no coroutine function itself."""
    return verifier.verifier if isinstance(verifier, LoadedVerifier) else verifier


def answer(
    verifier: Verifier,
    how: How,
    items: Sequence[Item],
    role: Role,
    deadline_s: float,
    emit: Emit,
    run: Run,
    passing: Passing,
) -> str:
    """Judge `items` and pass each verdict to `emit` as soon as it is there.

    If a batch failed as a whole, returns what went wrong and has emitted nothing; else returns "". Only coroutines are
    ended at the deadline. Every exception of the verifier becomes a verdict, except those in `passing`, which are
    raised. The verifier finds `role` in the problem, so that one rule can serve as score, gate or penalty.
    """
    items = [({**problem, "role": role}, response) for problem, response in items]
    if how == "batch":
        return _judge_batch(verifier, items, role, deadline_s, emit, run, passing)
    if how == "together":
        run(_judge_together(verifier, items, role, deadline_s, emit, passing))
        return ""
    for index, item in enumerate(items):
        verdict, late = _judge_one(verifier, item, role, deadline_s, run, passing)
        emit(index, verdict, late)
    return ""


def as_verdict(value: Any, role: Role = "score") -> Verdict:
    """Turn the result of a verifier into a verdict. Its score is None or a finite number in the role's range."""
    if isinstance(value, Verdict):
        verdict = value
    elif isinstance(value, bool):
        verdict = Verdict(float(value), "correct" if value else "wrong")
    elif isinstance(value, Real):
        verdict = Verdict(float(value), {0.0: "wrong", 1.0: "correct"}.get(float(value), "scored"))
    elif value is None:
        return fault("the verifier returned None: it could not judge")
    else:
        return fault(f"the verifier returned {type(value).__name__}, not a Verdict, a number, a bool or None")
    return _check_score(verdict, role)


def _check_score(verdict: Verdict, role: Role) -> Verdict:
    """The verdict with a float as its score, or a fault if a field cannot be recorded or the score is out of range."""
    mistake = _field_mistake(verdict)
    if mistake:
        return fault(f"the verifier returned a Verdict whose {mistake}")
    score = verdict.score
    if score is None:
        return verdict
    low, high = RANGES[role]
    fits = isinstance(score, Real) and math.isfinite(score) and low <= score <= high
    if not fits or (role == "gate" and score not in (0, 1)):
        allowed = "0 or 1" if role == "gate" else f"a number from {low:g} to {high:g}"
        return fault(f"the verifier returned the score {score!r}; as a {role} it must be {allowed}")
    return verdict if type(score) is float else replace(verdict, score=float(score))


def _field_mistake(verdict: Verdict) -> str:
    """Which field of a verdict has a type that cannot be recorded; empty if all are right."""
    if not (isinstance(verdict.status, str) and isinstance(verdict.reason, str)):
        return "`status` or `reason` is no text"
    if not (verdict.answer is None or isinstance(verdict.answer, str)):
        return "`answer` is neither a text nor None"
    if not isinstance(verdict.seconds, int | float):
        return "`seconds` is no number"
    metrics = verdict.metrics
    is_valid = isinstance(metrics, Mapping) and all(
        isinstance(name, str) and isinstance(value, Real) for name, value in metrics.items()
    )
    return "" if is_valid else "`metrics` is no mapping of names to numbers"


def _with_seconds(value: Any, role: Role, seconds: float) -> Verdict:
    """The result as a verdict, with the measured time unless the verifier gave its own."""
    verdict = as_verdict(value, role)
    if verdict.seconds:
        return verdict
    # Not dataclasses.replace: this runs for every verdict, and it takes three times as long.
    return Verdict(verdict.score, verdict.status, verdict.reason, verdict.answer, verdict.metrics, seconds)


def _raised_verdict(error: BaseException) -> Verdict:
    return fault(f"the verifier raised {describe(error)}")


def _timeout_verdict(deadline_s: float) -> Verdict:
    return Verdict(None, "timeout", f"no verdict within {deadline_s:g} s", seconds=deadline_s)


def _judge_one(
    verifier: Verifier, item: Item, role: Role, deadline_s: float, run: Run, passing: Passing
) -> tuple[Verdict, bool]:
    started = time.perf_counter()
    try:
        value: Any = verifier(*item)
        if inspect.isawaitable(value):
            value = run(_await_until(value, deadline_s))
        return _with_seconds(value, role, time.perf_counter() - started), False
    except passing:
        raise
    except _DeadlinePassed:
        return _timeout_verdict(deadline_s), True
    except BaseException as error:  # a checker written as a script ends with sys.exit
        return _with_seconds(_raised_verdict(error), role, time.perf_counter() - started), False


async def _await_until(awaitable: Awaitable[Any], deadline_s: float) -> Any:
    try:
        async with asyncio.timeout(deadline_s) as limit:
            return await awaitable
    except TimeoutError:
        # A TimeoutError of the verifier itself is not our deadline.
        if limit.expired():
            raise _DeadlinePassed from None
        raise


async def _judge_together(
    verifier: Verifier, items: Sequence[Item], role: Role, deadline_s: float, emit: Emit, passing: Passing
) -> None:
    semaphore = asyncio.Semaphore(AT_ONCE)

    async def judge_item(index: int, item: Item) -> None:
        async with semaphore:
            started = time.perf_counter()
            try:
                value = await _await_until(verifier(*item), deadline_s)  # type: ignore[arg-type]
                verdict, late = _with_seconds(value, role, time.perf_counter() - started), False
            except passing:
                raise
            except _DeadlinePassed:
                verdict, late = _timeout_verdict(deadline_s), True
            except BaseException as error:
                verdict, late = _with_seconds(_raised_verdict(error), role, time.perf_counter() - started), False
            emit(index, verdict, late)

    await asyncio.gather(*(judge_item(index, item) for index, item in enumerate(items)))


def _judge_batch(
    verifier: Verifier,
    items: Sequence[Item],
    role: Role,
    deadline_s: float,
    emit: Emit,
    run: Run,
    passing: Passing,
) -> str:
    started = time.perf_counter()
    try:
        values: Any = _unwrap(verifier).batch(list(items))
        values = run(_await_until(values, deadline_s)) if inspect.isawaitable(values) else values
        seconds_each = (time.perf_counter() - started) / len(items)
        verdicts = [_with_seconds(value, role, seconds_each) for value in values]
    except passing:
        raise
    except _DeadlinePassed:
        return f"took longer than {deadline_s:g} s"
    except BaseException as error:
        return f"raised {describe(error)}"
    # With another number of verdicts nobody knows which item each belongs to, so none is used.
    if len(verdicts) != len(items):
        return f"returned {len(verdicts)} verdicts for {len(items)} responses"
    for index, verdict in enumerate(verdicts):
        emit(index, verdict, False)
    return ""
