"""Judges responses with verifiers, so that whatever a verifier does affects only its own verdicts."""

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
"""Worker processes of one verifier, if the machine has as many cores."""
MOST_THREADS = 8
"""Worker threads of one verifier."""
HANDED_OVER = Running("thread")
"""How a callable is run that declares nothing and has no name by which a process could load it."""

_LOCK = threading.Lock()
_DISPATCHERS: weakref.WeakKeyDictionary[Verifier, Dispatcher] = weakref.WeakKeyDictionary()
"""Dispatchers by verifier object."""
_SHARED: weakref.WeakValueDictionary[str, Dispatcher] = weakref.WeakValueDictionary()
"""Dispatchers by `LoadedVerifier.key`. They and their processes live as long as such a verifier is referenced."""


@dataclass(frozen=True)
class Call:
    """A verifier and the items that it must judge in one role."""

    verifier: Verifier
    items: Sequence[Item]
    role: Role = "score"


def judge(verifier: Verifier, items: Sequence[Item], role: Role = "score") -> list[Verdict]:
    """Return one verdict per item, in order. A verifier that raises or returns nonsense gives the status `fault`.

    A verifier from `load` runs as it declares (`contract.Running`); if it declares nothing, in worker processes. A
    callable that is passed directly has no name by which a process could load it. It runs in one thread, unless it
    declares `inline` or `thread`. A verifier with `batch` gets one call for all items. If that call fails as a whole,
    each item is judged alone, so that only the item that is to blame is affected. Coroutines are awaited together.

    If a worker hangs or dies over an item, the item is judged again, alone, in a new worker. If that ends in the same
    way while another response is judged, the response is to blame: it gets the lowest score of the role, with status
    `timeout` or `crash`. Otherwise the score is None.

    Works from any thread, inside a running event loop (which is blocked meanwhile) and in a forked child. A UserError
    passes through: it names a problem of the machine or the recipe that no response can fix, such as a sandbox that
    cannot isolate.
    """
    return judge_all([Call(verifier, items, role)])[0].verdicts


def judge_all(calls: Sequence[Call]) -> list[JudgedItems]:
    """Judge several calls at the same time, each as `judge` does.

    Inline verifiers are judged in this thread, one after the other.
    """
    dispatchers = [_dispatcher(call.verifier) for call in calls]
    if len(calls) == 1:
        return [_run_call(calls[0], dispatchers[0][0], None)]
    in_workers = [index for index, (_, running) in enumerate(dispatchers) if running.isolation != "inline"]
    stop = threading.Event()
    with ThreadPoolExecutor(max(1, len(in_workers)), thread_name_prefix="verifier") as threads:
        try:
            # First start the calls that need workers, so that they run while the inline ones use this thread.
            futures = {
                index: threads.submit(_run_call, calls[index], dispatchers[index][0], stop) for index in in_workers
            }
            results = {
                index: _run_call(call, dispatchers[index][0], stop)
                for index, call in enumerate(calls)
                if index not in futures
            }
            results |= {index: future.result() for index, future in futures.items()}
        except BaseException:  # Ctrl-C, or a UserError
            stop.set()
            for index in in_workers:
                dispatchers[index][0].interrupt()
            raise
    return [results[index] for index in range(len(calls))]


async def ajudge(verifier: Verifier, items: Sequence[Item], role: Role = "score") -> list[Verdict]:
    """As `judge`, for an event loop that must not be blocked."""
    return await asyncio.to_thread(judge, verifier, items, role)


def _run_call(call: Call, dispatcher: Dispatcher, stop: threading.Event | None) -> JudgedItems:
    return dispatcher.judge(call.verifier, call.items, call.role, stop) if call.items else JudgedItems([], {})


def _dispatcher(verifier: Verifier) -> tuple[Dispatcher, Running]:
    """The verifier's dispatcher and how it is run. Verifiers that load the same thing share one dispatcher."""
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
    """The dispatcher of all verifiers with the same key; None for a callable that was passed directly."""
    if not isinstance(verifier, LoadedVerifier):
        return None
    dispatcher = _SHARED.get(verifier.key)
    if dispatcher is None:
        # A copy: a dispatcher that referenced the verifier itself would keep itself alive.
        dispatcher = _SHARED[verifier.key] = _new_dispatcher(verifier.spec, verifier.running, replace(verifier))
    return dispatcher


def _new_dispatcher(name: str, running: Running, loaded: LoadedVerifier | None) -> Dispatcher:
    abandoned: set[threading.Thread] = set()
    if running.isolation == "inline":
        return Dispatcher(name, running, None, abandoned)
    if running.isolation == "process":
        assert loaded is not None
        return Dispatcher(name, running, Pool(lambda: ProcessWorker(loaded), min(MOST_PROCESSES, _cores())), abandoned)
    size = 1 if running is HANDED_OVER else MOST_THREADS  # without a declaration, it may not be thread-safe
    return Dispatcher(name, running, Pool(lambda: ThreadWorker(running.deadline_s, abandoned), size), abandoned)


def _name(verifier: Verifier) -> str:
    return getattr(verifier, "__qualname__", None) or type(verifier).__qualname__


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _reset_after_fork() -> None:
    """In a forked child, start without dispatchers.

    The workers belong to the parent, and another thread may have held the lock during the fork.
    """
    global _LOCK, _DISPATCHERS, _SHARED
    _LOCK, _DISPATCHERS, _SHARED = threading.Lock(), weakref.WeakKeyDictionary(), weakref.WeakValueDictionary()


os.register_at_fork(after_in_child=_reset_after_fork)
