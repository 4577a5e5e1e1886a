"""Asking a verifier, in whatever thread or process this is: every way of failing is a verdict of its own item."""

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

Item = tuple[Problem, Response]
How = Literal["one", "together", "batch"]
Emit = Callable[[int, Verdict, bool], None]
"""Takes the place of an item, its verdict, and whether the verdict is only that it took too long."""
Run = Callable[[Coroutine[Any, Any, Any]], Any]
"""Runs a coroutine to its end."""
Passing = tuple[type[BaseException], ...]
"""The exceptions that are no fault of a verifier and go on to the caller."""

AT_ONCE = 64
"""Coroutines awaited at the same time; the rest wait, and their deadline has not begun."""


class _Late(Exception):
    """A coroutine was cancelled at its deadline."""


def how_to_ask(verifier: Verifier) -> How:
    """`batch` where it has one, `together` where it is a coroutine function, else `one` by one."""
    inner = _inner(verifier)
    if callable(getattr(inner, "batch", None)):
        return "batch"
    is_async = inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(getattr(inner, "__call__", None))  # noqa: B004
    return "together" if is_async else "one"


def _inner(verifier: Verifier) -> Any:
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
    """Judge `items`, handing each verdict to `emit` as it comes.

    Returns what went wrong where a batch failed as a whole and emitted nothing, else "". Only coroutines end at the
    deadline. Everything that the verifier raises is a verdict, but for `passing`, which is raised. The verifier finds
    `role` in the problem, so that one rule can serve as score, gate or penalty.
    """
    items = [({**problem, "role": role}, response) for problem, response in items]
    if how == "batch":
        return _batch(verifier, items, role, deadline_s, emit, run, passing)
    if how == "together":
        run(_together(verifier, items, role, deadline_s, emit, passing))
        return ""
    for place, item in enumerate(items):
        verdict, late = _one(verifier, item, role, deadline_s, run, passing)
        emit(place, verdict, late)
    return ""


def as_verdict(value: Any, role: Role = "score") -> Verdict:
    """Turn what a verifier returned into a verdict whose score is a finite number in the role's range, or None."""
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
    return _checked(verdict, role)


def _checked(verdict: Verdict, role: Role) -> Verdict:
    misfit = _misfit(verdict)
    if misfit:
        return fault(f"the verifier returned a Verdict whose {misfit}")
    score = verdict.score
    if score is None:
        return verdict
    low, high = RANGES[role]
    fits = isinstance(score, Real) and math.isfinite(score) and low <= score <= high
    if not fits or (role == "gate" and score not in (0, 1)):
        allowed = "0 or 1" if role == "gate" else f"a number from {low:g} to {high:g}"
        return fault(f"the verifier returned the score {score!r}; as a {role} it must be {allowed}")
    return verdict if type(score) is float else replace(verdict, score=float(score))


def _misfit(verdict: Verdict) -> str:
    """Which field of a verdict cannot be recorded; empty where all can."""
    if not (isinstance(verdict.status, str) and isinstance(verdict.reason, str)):
        return "`status` or `reason` is no text"
    if not (verdict.answer is None or isinstance(verdict.answer, str)):
        return "`answer` is neither a text nor None"
    if not isinstance(verdict.seconds, int | float):
        return "`seconds` is no number"
    metrics = verdict.metrics
    plain = isinstance(metrics, Mapping) and all(
        isinstance(name, str) and isinstance(value, Real) for name, value in metrics.items()
    )
    return "" if plain else "`metrics` is no mapping of names to numbers"


def _timed(value: Any, role: Role, seconds: float) -> Verdict:
    given = as_verdict(value, role)
    if given.seconds:
        return given
    # Not dataclasses.replace: this runs for every verdict, and it takes three times as long.
    return Verdict(given.score, given.status, given.reason, given.answer, given.metrics, seconds)


def _raised(error: BaseException) -> Verdict:
    return fault(f"the verifier raised {describe(error)}")


def _too_late(deadline_s: float) -> Verdict:
    return Verdict(None, "timeout", f"no verdict within {deadline_s:g} s", seconds=deadline_s)


def _one(
    verifier: Verifier, item: Item, role: Role, deadline_s: float, run: Run, passing: Passing
) -> tuple[Verdict, bool]:
    started = time.perf_counter()
    try:
        value: Any = verifier(*item)
        if inspect.isawaitable(value):
            value = run(_within(value, deadline_s))
        return _timed(value, role, time.perf_counter() - started), False
    except passing:
        raise
    except _Late:
        return _too_late(deadline_s), True
    except BaseException as error:  # a checker written as a script ends with sys.exit
        return _timed(_raised(error), role, time.perf_counter() - started), False


async def _within(awaitable: Awaitable[Any], deadline_s: float) -> Any:
    try:
        async with asyncio.timeout(deadline_s) as limit:
            return await awaitable
    except TimeoutError:
        if limit.expired():
            raise _Late from None
        raise


async def _together(
    verifier: Verifier, items: Sequence[Item], role: Role, deadline_s: float, emit: Emit, passing: Passing
) -> None:
    free = asyncio.Semaphore(AT_ONCE)

    async def one(place: int, item: Item) -> None:
        async with free:
            started = time.perf_counter()
            try:
                value = await _within(verifier(*item), deadline_s)  # type: ignore[arg-type]
                verdict, late = _timed(value, role, time.perf_counter() - started), False
            except passing:
                raise
            except _Late:
                verdict, late = _too_late(deadline_s), True
            except BaseException as error:
                verdict, late = _timed(_raised(error), role, time.perf_counter() - started), False
            emit(place, verdict, late)

    await asyncio.gather(*(one(place, item) for place, item in enumerate(items)))


def _batch(
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
        values: Any = _inner(verifier).batch(list(items))
        values = run(_within(values, deadline_s)) if inspect.isawaitable(values) else values
        each = (time.perf_counter() - started) / len(items)
        verdicts = [_timed(value, role, each) for value in values]
    except passing:
        raise
    except _Late:
        return f"took longer than {deadline_s:g} s"
    except BaseException as error:
        return f"raised {describe(error)}"
    if len(verdicts) != len(items):
        return f"returned {len(verdicts)} verdicts for {len(items)} responses"
    for place, verdict in enumerate(verdicts):
        emit(place, verdict, False)
    return ""
