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
from qwq_rl.verifiers.loading import LoadedVerifier, declared
from qwq_rl.verifiers.runner.calls import Item, Role
from qwq_rl.verifiers.runner.dispatcher import Dispatcher, JudgedItems
from qwq_rl.verifiers.runner.process_worker import ProcessWorker
from qwq_rl.verifiers.runner.workers import Pool, ThreadWorker

MOST_PROCESSES = 4
MOST_THREADS = 8
HANDED_OVER = Running("thread")
"""How a callable is run that declares nothing and has no name that a process could load it by."""

_LOCK = threading.Lock()
_DISPATCHERS: weakref.WeakKeyDictionary[Verifier, Dispatcher] = weakref.WeakKeyDictionary()
_SHARED: weakref.WeakValueDictionary[str, Dispatcher] = weakref.WeakValueDictionary()
"""Dispatchers by `LoadedVerifier.key`: they and their processes last as long as somebody holds such a verifier."""


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


def judge_all(calls: Sequence[Call]) -> list[JudgedItems]:
    """Judge several calls at the same time, each as `judge` does; inline verifiers have their turn in this thread."""
    dispatchers = [_dispatcher(call.verifier) for call in calls]
    if len(calls) == 1:
        return [_judged(calls[0], dispatchers[0][0], None)]
    apart = [place for place, (_, running) in enumerate(dispatchers) if running.isolation != "inline"]
    stop = threading.Event()
    with ThreadPoolExecutor(max(1, len(apart)), thread_name_prefix="verifier") as threads:
        try:
            waiting = {place: threads.submit(_judged, calls[place], dispatchers[place][0], stop) for place in apart}
            found = {
                place: _judged(call, dispatchers[place][0], stop)
                for place, call in enumerate(calls)
                if place not in waiting
            }
            found |= {place: judged.result() for place, judged in waiting.items()}
        except BaseException:  # Ctrl-C, or what the user must mend
            stop.set()
            for place in apart:
                dispatchers[place][0].interrupt()
            raise
    return [found[place] for place in range(len(calls))]


async def ajudge(verifier: Verifier, items: Sequence[Item], role: Role = "score") -> list[Verdict]:
    """As `judge`, for an event loop that has other things to do meanwhile."""
    return await asyncio.to_thread(judge, verifier, items, role)


def _judged(call: Call, dispatcher: Dispatcher, stop: threading.Event | None) -> JudgedItems:
    return dispatcher.judge(call.verifier, call.items, call.role, stop) if call.items else JudgedItems([], {})


def _dispatcher(verifier: Verifier) -> tuple[Dispatcher, Running]:
    """The verifier's dispatcher and how it is run; one dispatcher for all that load the same verifier."""
    if isinstance(verifier, LoadedVerifier):
        running = verifier.running
    else:
        running = declared(verifier) or HANDED_OVER
        running = HANDED_OVER if running.isolation == "process" else running
    with _LOCK, contextlib.suppress(TypeError):  # some objects have no hash or no weak references
        dispatcher = _DISPATCHERS.get(verifier)
        if dispatcher is None:
            dispatcher = _DISPATCHERS[verifier] = _shared(verifier) or _new_dispatcher(_name(verifier), running, None)
        return dispatcher, running
    return _new_dispatcher(_name(verifier), running, None), running


def _shared(verifier: Verifier) -> Dispatcher | None:
    if not isinstance(verifier, LoadedVerifier):
        return None
    dispatcher = _SHARED.get(verifier.key)
    if dispatcher is None:
        # A copy, since a dispatcher that held the verifier would keep itself alive.
        dispatcher = _SHARED[verifier.key] = _new_dispatcher(verifier.spec, verifier.running, replace(verifier))
    return dispatcher


def _new_dispatcher(name: str, running: Running, loaded: LoadedVerifier | None) -> Dispatcher:
    left: set[threading.Thread] = set()
    if running.isolation == "inline":
        return Dispatcher(name, running, None, left)
    if running.isolation == "process":
        assert loaded is not None
        return Dispatcher(name, running, Pool(lambda: ProcessWorker(loaded), min(MOST_PROCESSES, _cores())), left)
    size = 1 if running is HANDED_OVER else MOST_THREADS  # who declared nothing did not promise to be thread-safe
    return Dispatcher(name, running, Pool(lambda: ThreadWorker(running.deadline_s, left), size), left)


def _name(verifier: Verifier) -> str:
    return getattr(verifier, "__qualname__", None) or type(verifier).__qualname__


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _forget() -> None:
    """In a forked child: its parent's workers are not its own, and another thread may have held a lock."""
    global _LOCK, _DISPATCHERS, _SHARED
    _LOCK, _DISPATCHERS, _SHARED = threading.Lock(), weakref.WeakKeyDictionary(), weakref.WeakValueDictionary()


os.register_at_fork(after_in_child=_forget)
