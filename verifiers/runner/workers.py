"""What judges outside the caller's thread: the interface of a worker, worker threads, and a pool of workers.

Worker processes are in `process_worker`.
"""

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
"""Extra time after the deadline in which a coroutine can be cancelled. After that the worker is given up."""


class WorkerBroken(Exception):
    """The worker hung or died while it judged. `status` is `timeout` or `crash`."""

    def __init__(self, status: str, how: str) -> None:
        super().__init__(how)
        self.status = status


class NoWorker(Exception):
    """No worker can be started, so no response can be judged."""


class Worker(Protocol):
    """A thread or process that judges one request at a time."""

    usable: bool
    """False once it has hung, died or taken too much memory."""
    fresh: bool
    """True until it is asked for the first time."""

    def ask(self, verifier: Verifier, how: How, items: Sequence[Item], role: Role, emit: Emit) -> str:
        """As `calls.answer`. The deadline counts from one verdict to the next; raises WorkerBroken if it passes."""

    def interrupt(self) -> None:
        """Make the `ask` of another thread raise WorkerBroken now."""

    def close(self) -> None:
        """End the worker, or abandon it if it cannot be ended."""


class Pool:
    """At most `size` workers, which are started when they are needed. Safe to use from any thread."""

    def __init__(self, start: Callable[[], Worker], size: int) -> None:
        self._start = start
        self._idle: list[Worker] = []
        self._busy: list[Worker] = []
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(size)
        self.size = size

    @contextlib.contextmanager
    def worker(self, fresh: bool = False) -> Iterator[Worker]:
        """Lend a worker; with `fresh`, one that was never asked. Raises NoWorker if none can be started."""
        with self._free:
            worker = self._take(fresh)
            try:
                yield worker
            except BaseException:  # its remaining replies would be read as those of the next request
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
        """Make every `ask` that is waiting raise WorkerBroken now."""
        with self._lock:
            for worker in self._busy:
                worker.interrupt()

    def _take(self, fresh: bool) -> Worker:
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is not None and fresh and not worker.fresh:
            worker.close()
            worker = None
        # Outside the lock: a process can take minutes to start.
        worker = worker or self._start()
        with self._lock:
            self._busy.append(worker)
        return worker


class ThreadWorker:
    """A daemon thread. If it does not answer in time, it is abandoned and ends with the process."""

    def __init__(self, deadline_s: float, left: set[threading.Thread]) -> None:
        """`left` collects the abandoned threads."""
        self.usable = self.fresh = True
        self._deadline_s, self._abandoned = deadline_s, left
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_serve, args=(self._inbox,), name="verifier", daemon=True)
        self._thread.start()
        # Ends the thread once nobody holds the worker: None is the sign to stop.
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
                self._abandoned.add(self._thread)
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
    """The loop of a worker thread.

    While it waits it holds no reference that would keep a worker or a verifier alive.
    """
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
    """How many of the abandoned threads still run. The others are removed from the set."""
    left.difference_update([thread for thread in left if not thread.is_alive()])
    return len(left)
