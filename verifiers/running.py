"""Calling a verifier so that whatever it does costs its own verdicts only."""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from numbers import Real
from typing import Any, Literal

from qwq_rl.errors import UserError
from qwq_rl.verifiers.contract import Problem, Response, Verdict, Verifier
from qwq_rl.verifiers.outcomes import describe, fault

Role = Literal["score", "gate", "penalty"]
RANGES: Mapping[str, tuple[float, float]] = {"score": (0.0, 1.0), "gate": (0.0, 1.0), "penalty": (-1.0, 0.0)}


def judge(verifier: Verifier, items: Sequence[tuple[Problem, Response]], role: Role = "score") -> list[Verdict]:
    """Return one verdict an item, in order; a verifier that raises or returns nonsense gives the status `fault`.

    A verifier with `batch` gets one call for all items; where that call fails as a whole, each item is judged alone,
    so that only the guilty one pays. Coroutines are awaited together. A UserError passes through: it names a condition
    of the machine or the recipe that no response can mend, such as a sandbox that cannot isolate.
    """
    if not items:
        return []
    started = time.perf_counter()
    together = _batch(verifier, items)
    if together is not None:
        each = (time.perf_counter() - started) / len(items)
        return [_timed(as_verdict(value, role), each) for value in together]
    return _one_by_one(verifier, items, role)


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
    score = verdict.score
    if score is None:
        return verdict
    low, high = RANGES[role]
    fits = isinstance(score, Real) and math.isfinite(score) and low <= score <= high
    if not fits or (role == "gate" and score not in (0, 1)):
        allowed = "0 or 1" if role == "gate" else f"a number from {low:g} to {high:g}"
        return fault(f"the verifier returned the score {score!r}; as a {role} it must be {allowed}")
    return replace(verdict, score=float(score))


def _timed(verdict: Verdict, seconds: float) -> Verdict:
    return verdict if verdict.seconds else replace(verdict, seconds=seconds)


def _batch(verifier: Verifier, items: Sequence[tuple[Problem, Response]]) -> list[Any] | None:
    """What `batch` returned, or None where there is no such method or it failed as a whole."""
    batch = getattr(verifier, "batch", None)
    if batch is None:
        return None
    try:
        values = _finished(batch(list(items)))
        return list(values) if len(values) == len(items) else None
    except UserError:
        raise
    except (Exception, SystemExit):
        return None


def _one_by_one(verifier: Verifier, items: Sequence[tuple[Problem, Response]], role: Role) -> list[Verdict]:
    values: list[Any] = []
    seconds: list[float] = []
    for problem, response in items:
        started = time.perf_counter()
        try:
            values.append(verifier(problem, response))
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # a checker written as a script ends with sys.exit
            values.append(fault(f"the verifier raised {describe(error)}"))
        seconds.append(time.perf_counter() - started)
    waiting = [index for index, value in enumerate(values) if inspect.isawaitable(value)]
    started = time.perf_counter()
    for index, value in zip(waiting, _gathered([values[index] for index in waiting]), strict=True):
        values[index] = fault(f"the verifier raised {describe(value)}") if isinstance(value, Exception) else value
        seconds[index] = time.perf_counter() - started
    return [_timed(as_verdict(value, role), took) for value, took in zip(values, seconds, strict=True)]


def _gathered(awaitables: Sequence[Awaitable[Any]]) -> list[Any]:
    """Await all together; an exception stands in the place of its result."""

    async def everything() -> list[Any]:
        return list(await asyncio.gather(*awaitables, return_exceptions=True))

    return list(_run(everything())) if awaitables else []


def _finished(value: Any) -> Any:
    async def waited() -> Any:
        return await value

    return _run(waited()) if inspect.isawaitable(value) else value


def _run(coroutine: Any) -> Any:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:  # a loop already runs in this thread
        return thread.submit(asyncio.run, coroutine).result()
