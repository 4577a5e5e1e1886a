"""The last tier: math-verify in processes that are killed at their deadline, asked from any thread or event loop.

A clean interpreter (`fork_server`) imports math-verify once and forks workers on demand, so that a new one costs
milliseconds, and the trainer neither forks nor imports a computer algebra system.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from qwq_rl.verifiers.mathematics.algebra.fork_server import COMMAND

FORK_SERVER = Path(__file__).with_name("fork_server.py")
START_S = 120.0
"""Importing math-verify and warming it up takes 2 s of CPU; a busy machine may need far longer."""
ATTEMPTS = 3
"""How often one question is asked where the failure is ours, and how many fork servers in a row may die."""
PAUSE_S = 10.0
"""After so many dead fork servers the next start waits this long."""
SOFT, SOFT_CPU = 0.9, 0.7
"""Shares of the deadline, of wall and of processor time, after which a worker gives up: cheaper than being killed."""
STARVED = 0.1
"""Share of the deadline: what gave up with less processor time than that gave up because the machine is busy."""
MOST_WORKERS = 8
"""Few pairs come this far; more would only hold memory."""

Outcome = Literal["equal", "different", "gold_unread"]


class AlgebraUnavailable(Exception):
    """Nothing can be said of any response: math-verify is missing, or its process does not start."""


class Died(Exception):
    """The worker failed, or was killed at its deadline, over one question."""

    def __init__(self, how: str, timeout: bool) -> None:
        super().__init__(how)
        self.timeout = timeout


class _Lost(Exception):
    """A worker is gone through no fault of the question."""


@dataclass(frozen=True)
class _ForkServer:
    process: subprocess.Popen[bytes]
    commands: socket.socket


@dataclass
class _Worker:
    server: _ForkServer
    number: int
    channel: socket.socket
    ready: bool = False


@functools.cache
def shared(deadline_s: float, memory_mb: int) -> SymbolicPool:
    """The pool with these limits; all verifiers of this Python process share it."""
    return SymbolicPool(deadline_s, memory_mb)


class SymbolicPool:
    """Workers that compare formulas; starts on the first question or `warm()`, and anew in a forked child.

    `deadline_s`: wall seconds that a worker has for a question, from when it has it. `memory_mb`: address space of a
    worker. `workers`: how many questions run at once (the cores, at most 8, unless given); further callers wait.
    """

    def __init__(self, deadline_s: float = 1.0, memory_mb: int = 2048, workers: int | None = None) -> None:
        self.deadline_s, self.memory_mb = deadline_s, memory_mb
        self.workers = workers or min(MOST_WORKERS, os.cpu_count() or 1)
        self._numbers = itertools.count()
        self._fresh()
        _POOLS.add(self)

    def _fresh(self) -> None:
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(self.workers)
        self._server: _ForkServer | None = None
        self._idle: list[_Worker] = []
        self._missing = ""
        self._deaths, self._paused_until = 0, 0.0

    def equal(self, gold: str, answer: str, seconds: float | None = None) -> Outcome:
        """Compare two LaTeX formulas; `gold_unread` where math-verify cannot read the gold.

        `seconds`: another deadline for this question. Raises Died over this question (`timeout`: its deadline passed),
        AlgebraUnavailable where no answer could be judged, or this one not because the machine is too busy.
        """
        limit = self.deadline_s if seconds is None else seconds
        question = {"gold": gold, "answer": answer, "seconds": limit * SOFT, "cpu": limit * SOFT_CPU}
        with self._turns:
            for _ in range(ATTEMPTS):
                worker = self._worker()
                try:
                    return self._asked(worker, json.dumps(question).encode() + b"\n", limit)
                except _Lost:
                    self._discard(worker)
                except BaseException:
                    self._discard(worker)
                    raise
        raise AlgebraUnavailable(f"the process for math-verify ended {ATTEMPTS} times over one question")

    def warm(self) -> None:
        """Start importing math-verify in the background; returns at once, and never fails."""
        with self._lock, contextlib.suppress(AlgebraUnavailable, OSError):
            if not self._idle:
                self._idle.append(self._forked())

    def close(self) -> None:
        """End all processes; the next question starts anew."""
        with self._lock:
            idle, self._idle = self._idle, []
            server, self._server = self._server, None
            self._missing, self._deaths = "", 0
        for worker in idle:
            worker.channel.close()
        if server is not None:
            _end(server)

    def _worker(self) -> _Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.server is self._server and not _hung_up(worker.channel):
                    return worker
                worker.channel.close()
            return self._forked()

    def _forked(self) -> _Worker:
        """Order a new worker; it is ready later. The lock is held."""
        if self._missing:
            raise AlgebraUnavailable(self._missing)
        server = self._alive()
        number = next(self._numbers) % (1 << 31)
        mine, its = socket.socketpair()
        with its, contextlib.suppress(OSError):  # where it died just now, the caller finds its worker gone
            socket.send_fds(server.commands, [COMMAND.pack(b"F", number)], [its.fileno()])
        return _Worker(server, number, mine)

    def _alive(self) -> _ForkServer:
        if self._server is not None:
            if not _hung_up(self._server.commands):
                return self._server
            _end(self._server)
            self._server = None
            self._deaths += 1
        if self._deaths >= ATTEMPTS:
            if self._paused_until == 0.0:
                self._paused_until = time.monotonic() + PAUSE_S
            if time.monotonic() < self._paused_until:
                raise AlgebraUnavailable(f"the process for math-verify died {self._deaths} times in a row")
            self._deaths, self._paused_until = ATTEMPTS - 1, 0.0
        self._server = _started(self.memory_mb)
        return self._server

    def _asked(self, worker: _Worker, question: bytes, limit: float) -> Outcome:
        """The outcome of one question; the worker goes back to the idle ones where it may be asked again."""
        if not worker.ready:
            self._await_ready(worker)
        try:
            worker.channel.settimeout(limit)
            worker.channel.sendall(question)
            reply = _line(worker.channel, limit)
        except TimeoutError:
            raise Died(f"no result within {limit:g} s", timeout=True) from None
        except OSError:
            if _hung_up(worker.server.commands):
                raise _Lost from None
            raise Died("the process ended over this question", timeout=False) from None
        self._deaths = 0
        if "late" in reply:
            if reply["late"] < limit * STARVED:
                raise AlgebraUnavailable(
                    f"the machine is busy: {reply['late']:.3f} s of processor time within {limit:g} s"
                )
            raise Died(f"no result within {limit:g} s", timeout=True)
        if "error" in reply:
            raise Died(str(reply["error"]), timeout=False)
        if reply["last"]:
            worker.channel.close()
        else:
            with self._lock:
                self._idle.append(worker)
        return cast(Outcome, reply["outcome"])

    def _await_ready(self, worker: _Worker) -> None:
        """Wait until the worker is there; raises AlgebraUnavailable where math-verify is missing or does not start."""
        try:
            reply = _line(worker.channel, START_S)
        except TimeoutError:
            with self._lock:
                _end(worker.server)
            raise AlgebraUnavailable(f"the process for math-verify does not start within {START_S:g} s") from None
        except OSError:
            raise _Lost from None
        if "missing" in reply:
            self._missing = f"math-verify is not installed ({reply['missing']}); pip install 'qwq-rl[math]'"
            raise AlgebraUnavailable(self._missing)
        if "broken" in reply:
            raise AlgebraUnavailable(f"math-verify cannot be used: {reply['broken']}")
        worker.ready = True

    def _discard(self, worker: _Worker) -> None:
        """Kill a worker that will not be asked again."""
        with self._lock, contextlib.suppress(OSError):
            worker.server.commands.sendall(COMMAND.pack(b"K", worker.number))
        worker.channel.close()

    def _forget(self) -> None:
        """In a forked child: all processes are the parent's, and another thread may have held the lock."""
        for worker in self._idle:
            worker.channel.close()
        if self._server is not None:
            self._server.commands.close()
            self._server.process.returncode = 0  # not this child's to wait for
        self._fresh()


def _started(memory_mb: int) -> _ForkServer:
    mine, its = socket.socketpair()
    with its:
        process = subprocess.Popen(
            [sys.executable, "-P", str(FORK_SERVER), str(memory_mb)],
            stdin=its.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the parent
        )
    return _ForkServer(process, mine)


def _end(server: _ForkServer) -> None:
    """End a fork server and its workers; it has none before it is loaded, and only then a signal ends it."""
    server.commands.close()
    server.process.terminate()
    try:
        server.process.wait(1.0)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


def _line(channel: socket.socket, seconds: float) -> dict[str, Any]:
    """The next line within so many seconds; raises TimeoutError, or another OSError where the other end is gone."""
    received, end = b"", time.monotonic() + seconds
    while not received.endswith(b"\n"):
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        channel.settimeout(left)
        chunk = channel.recv(65536)
        if not chunk:
            raise ConnectionResetError
        received += chunk
    reply: dict[str, Any] = json.loads(received)
    return reply


def _hung_up(channel: socket.socket) -> bool:
    """Whether the other end is gone; only asked where it has nothing to say."""
    if channel.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    return bool(poll.poll(0))


_POOLS: weakref.WeakSet[SymbolicPool] = weakref.WeakSet()


def _close_all() -> None:
    for pool in list(_POOLS):
        pool.close()


def _forget_all() -> None:
    for pool in list(_POOLS):
        pool._forget()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
