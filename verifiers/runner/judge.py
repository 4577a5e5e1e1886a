"""Judging with verifiers so that whatever one of them does costs its own verdicts only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from qwq_rl.verifiers.contract import Running, Verdict, Verifier
from qwq_rl.verifiers.loading import Loaded, declared
from qwq_rl.verifiers.runner.calls import Item, Role
from qwq_rl.verifiers.runner.dispatcher import Desk, Judged
from qwq_rl.verifiers.runner.process_worker import ProcessWorker
from qwq_rl.verifiers.runner.workers import Pool, ThreadWorker

MOST_PROCESSES = 4
MOST_THREADS = 8
HANDED_OVER = Running("thread")
"""How a callable is run that declares nothing and has no name that a process could load it by."""

_LOCK = threading.Lock()
_DESKS: weakref.WeakKeyDictionary[Verifier, Desk] = weakref.WeakKeyDictionary()
_SHARED: weakref.WeakValueDictionary[str, Desk] = weakref.WeakValueDictionary()
"""Desks by `Loaded.key`: they and their processes last as long as somebody holds such a verifier."""


@dataclass(frozen=True)
class Call:
    """A verifier and what it is asked in one role."""

    verifier: Verifier
    items: Sequence[Item]
    role: Role = "score"


def judge(verifier: Verifier, items: Sequence[Item], role: Role = "score") -> list[Verdict]:
    """Return one verdict an item, in order; a verifier that raises or returns nonsense gives the status `fault`.

    A verifier of `load` runs as it declares (`contract.Running`), undeclared ones in worker processes. A callable that
    is handed over has no name that a process could load it by, and runs in one thread, or as it declares for `inline`
    and `thread`. One with `batch` gets one call for all items; where that fails as a whole, each is judged alone, so
    that only the guilty one pays. Coroutines are awaited together.

    An item over which its worker hangs or dies is judged again alone in a new one. If that ends alike while another
    response is judged, it was the response's doing: the lowest score of the role, status `timeout` or `crash`.
    Otherwise the score is None.

    Callable from any thread, inside a running event loop (which waits) and in a forked child. A UserError passes
    through: it names a condition of the machine or the recipe that no response can mend, such as a sandbox that cannot
    isolate.
    """
    return judge_all([Call(verifier, items, role)])[0].verdicts


def judge_all(calls: Sequence[Call]) -> list[Judged]:
    """Judge several calls at the same time, each as `judge` does; inline verifiers have their turn in this thread."""
    desks = [_desk(call.verifier) for call in calls]
    if len(calls) == 1:
        return [_judged(calls[0], desks[0][0], None)]
    apart = [place for place, (_, running) in enumerate(desks) if running.isolation != "inline"]
    stop = threading.Event()
    with ThreadPoolExecutor(max(1, len(apart)), thread_name_prefix="verifier") as threads:
        try:
            waiting = {place: threads.submit(_judged, calls[place], desks[place][0], stop) for place in apart}
            found = {
                place: _judged(call, desks[place][0], stop) for place, call in enumerate(calls) if place not in waiting
            }
            found |= {place: judged.result() for place, judged in waiting.items()}
        except BaseException:  # Ctrl-C, or what the user must mend
            stop.set()
            for place in apart:
                desks[place][0].interrupt()
            raise
    return [found[place] for place in range(len(calls))]


async def ajudge(verifier: Verifier, items: Sequence[Item], role: Role = "score") -> list[Verdict]:
    """As `judge`, for an event loop that has other things to do meanwhile."""
    return await asyncio.to_thread(judge, verifier, items, role)


def _judged(call: Call, desk: Desk, stop: threading.Event | None) -> Judged:
    return desk.judge(call.verifier, call.items, call.role, stop) if call.items else Judged([], {})


def _desk(verifier: Verifier) -> tuple[Desk, Running]:
    """The verifier's desk and how it is run; one desk for all that load the same verifier."""
    if isinstance(verifier, Loaded):
        running = verifier.running
    else:
        running = declared(verifier) or HANDED_OVER
        running = HANDED_OVER if running.isolation == "process" else running
    with _LOCK, contextlib.suppress(TypeError):  # some objects have no hash or no weak references
        desk = _DESKS.get(verifier)
        if desk is None:
            desk = _DESKS[verifier] = _shared(verifier) or _new_desk(_name(verifier), running, None)
        return desk, running
    return _new_desk(_name(verifier), running, None), running


def _shared(verifier: Verifier) -> Desk | None:
    if not isinstance(verifier, Loaded):
        return None
    desk = _SHARED.get(verifier.key)
    if desk is None:
        # A copy, since a desk that held the verifier would keep itself alive.
        desk = _SHARED[verifier.key] = _new_desk(verifier.spec, verifier.running, replace(verifier))
    return desk


def _new_desk(name: str, running: Running, loaded: Loaded | None) -> Desk:
    left: set[threading.Thread] = set()
    if running.isolation == "inline":
        return Desk(name, running, None, left)
    if running.isolation == "process":
        assert loaded is not None
        return Desk(name, running, Pool(lambda: ProcessWorker(loaded), min(MOST_PROCESSES, _cores())), left)
    size = 1 if running is HANDED_OVER else MOST_THREADS  # who declared nothing did not promise to be thread-safe
    return Desk(name, running, Pool(lambda: ThreadWorker(running.deadline_s, left), size), left)


def _name(verifier: Verifier) -> str:
    return getattr(verifier, "__qualname__", None) or type(verifier).__qualname__


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _forget() -> None:
    """In a forked child: its parent's workers are not its own, and another thread may have held a lock."""
    global _LOCK, _DESKS, _SHARED
    _LOCK, _DESKS, _SHARED = threading.Lock(), weakref.WeakKeyDictionary(), weakref.WeakValueDictionary()


os.register_at_fork(after_in_child=_forget)
