"""What judges apart from the caller: its common face, threads that can be left behind, and a pool of either kind."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from qwq_rl.errors import UserError
from qwq_rl.verifiers.contract import Verifier
from qwq_rl.verifiers.runner.calls import Emit, How, Item, Role, answer

GRACE_S = 0.1
"""After its deadline a coroutine gets this long to be cancelled before its worker is given up."""


class WorkerBroken(Exception):
    """The worker hung or died over what it was asked; `status` is `timeout` or `crash`."""

    def __init__(self, status: str, how: str) -> None:
        super().__init__(how)
        self.status = status


class NoWorker(Exception):
    """No worker can be had, so nothing can be said of any response."""


class Worker(Protocol):
    """A thread or process that judges one request at a time."""

    usable: bool
    """False once it hung, died or took too much memory."""
    fresh: bool
    """True until it is asked for the first time."""

    def ask(self, verifier: Verifier, how: How, items: Sequence[Item], role: Role, emit: Emit) -> str:
        """As `calls.answer`, with a deadline from one verdict to the next; raises WorkerBroken over it."""

    def interrupt(self) -> None:
        """Make the `ask` of another thread raise WorkerBroken now."""

    def close(self) -> None:
        """End it, or leave it behind where it cannot be ended."""


class Pool:
    """At most `size` workers, started when there is need; safe to use from any thread."""

    def __init__(self, start: Callable[[], Worker], size: int) -> None:
        self._start = start
        self._idle: list[Worker] = []
        self._busy: list[Worker] = []
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(size)
        self.size = size

    @contextlib.contextmanager
    def worker(self, fresh: bool = False) -> Iterator[Worker]:
        """Lend a worker, with `fresh` one that was never asked; raises NoWorker where none can be started."""
        with self._free:
            worker = self._taken(fresh)
            try:
                yield worker
            except BaseException:  # in the middle of an answer: what comes next would be out of step
                worker.usable = False
                raise
            finally:
                with self._lock:
                    self._busy.remove(worker)
                    if worker.usable:
                        self._idle.append(worker)
                if not worker.usable:
                    worker.close()

    def interrupt(self) -> None:
        """Let nobody wait for an answer any more."""
        with self._lock:
            for worker in self._busy:
                worker.interrupt()

    def _taken(self, fresh: bool) -> Worker:
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is not None and fresh and not worker.fresh:
            worker.close()
            worker = None
        worker = worker or self._start()
        with self._lock:
            self._busy.append(worker)
        return worker


class ThreadWorker:
    """A daemon thread; one that does not answer in time is left behind and ends with the process."""

    def __init__(self, deadline_s: float, left: set[threading.Thread]) -> None:
        """`left` collects the threads left behind."""
        self.usable = self.fresh = True
        self._deadline_s, self._left = deadline_s, left
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_serve, args=(self._inbox,), name="verifier", daemon=True)
        self._thread.start()
        weakref.finalize(self, self._inbox.put, None)

    def ask(self, verifier: Verifier, how: How, items: Sequence[Item], role: Role, emit: Emit) -> str:
        """As `Worker.ask`."""
        self.fresh = False
        self._inbox.put((verifier, how, items, role, self._deadline_s, self._outbox))
        while True:
            try:
                reply = self._outbox.get(timeout=self._deadline_s + GRACE_S)
            except queue.Empty:
                self.usable = False
                self._left.add(self._thread)
                raise WorkerBroken("timeout", f"no verdict within {self._deadline_s:g} s") from None
            if isinstance(reply, BaseException):
                raise reply
            if isinstance(reply, str):
                return reply
            emit(*reply)

    def interrupt(self) -> None:
        """As `Worker.interrupt`."""
        self._outbox.put(WorkerBroken("crash", "interrupted"))

    def close(self) -> None:
        """As `Worker.close`."""
        self._inbox.put(None)


def _serve(inbox: queue.SimpleQueue[Any]) -> None:
    """The body of a thread: it holds nothing that would keep a worker or a verifier alive while it waits."""
    loop = asyncio.new_event_loop()
    while (request := inbox.get()) is not None:
        verifier, how, items, role, deadline_s, outbox = request
        emit = partial(_put, outbox)
        try:
            outbox.put(answer(verifier, how, items, role, deadline_s, emit, loop.run_until_complete, (UserError,)))
        except BaseException as error:
            outbox.put(error)
        del request, verifier, items, outbox, emit
    loop.close()


def _put(outbox: queue.SimpleQueue[Any], *reply: object) -> None:
    outbox.put(reply)


def left_alive(left: set[threading.Thread]) -> int:
    """How many of the threads left behind still run; the others are forgotten."""
    left.difference_update([thread for thread in left if not thread.is_alive()])
    return len(left)
