"""Asks math-verify about a pair of formulas, in worker processes that are killed at their deadline.

It may be called from any thread or event loop. The fork server (`fork_server`) is a clean interpreter that imports
math-verify once and forks workers on demand. So a new worker costs milliseconds, and the trainer neither forks nor
imports a computer algebra system.
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
"""Wall seconds for a start. It takes 2 s of CPU to import and warm up math-verify, but the machine may be busy."""
ATTEMPTS = 3
"""How often one question is asked if failures are not its fault, and how many fork servers in a row may die."""
PAUSE_S = 10.0
"""Seconds before the next start, after `ATTEMPTS` fork servers in a row died."""
SOFT, SOFT_CPU = 0.9, 0.7
"""Shares of the deadline, in wall and in processor time, after which a worker gives up: killing it would cost more."""
STARVED = 0.1
"""Share of the deadline. A worker that gave up after less processor time than this gave up as the machine is busy."""
MOST_WORKERS = 8
"""Few pairs need algebra, so more workers would only hold memory."""

Outcome = Literal["equal", "different", "gold_unread"]


class AlgebraUnavailable(Exception):
    """The pair cannot be judged, and the response is not at fault.

    math-verify is missing, its process does not start, or the machine is too busy.
    """


class Died(Exception):
    """The worker failed, or was killed at its deadline, because of one question."""

    def __init__(self, how: str, timeout: bool) -> None:
        super().__init__(how)
        self.timeout = timeout


class _Lost(Exception):
    """A worker is gone, and the question is not the reason."""


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
    """The pool with these limits. All verifiers of this Python process share it."""
    return SymbolicPool(deadline_s, memory_mb)


class SymbolicPool:
    """Workers that compare formulas. It starts on the first question or on `warm()`, and again in a forked child.

    `deadline_s`: wall seconds for one question, from when a worker has it. `memory_mb`: address space of a worker.
    `workers`: how many questions run at once (by default the number of cores, at most 8); further callers wait.
    """

    def __init__(self, deadline_s: float = 1.0, memory_mb: int = 2048, workers: int | None = None) -> None:
        self.deadline_s, self.memory_mb = deadline_s, memory_mb
        self.workers = workers or min(MOST_WORKERS, os.cpu_count() or 1)
        self._numbers = itertools.count()
        self._reset()
        _POOLS.add(self)

    def _reset(self) -> None:
        """Set the state of a pool without processes."""
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(self.workers)
        self._server: _ForkServer | None = None
        self._idle: list[_Worker] = []
        self._missing = ""
        self._deaths, self._paused_until = 0, 0.0

    def equal(self, gold: str, answer: str, seconds: float | None = None) -> Outcome:
        """Compare two LaTeX formulas; `gold_unread` if math-verify cannot read the gold answer.

        `seconds`: another deadline for this question. Raises Died if this question failed (`timeout`: its deadline
        passed). Raises AlgebraUnavailable if no answer can be judged, or if the machine is too busy for this one.
        """
        limit = self.deadline_s if seconds is None else seconds
        question = {"gold": gold, "answer": answer, "seconds": limit * SOFT, "cpu": limit * SOFT_CPU}
        with self._turns:
            for _ in range(ATTEMPTS):
                worker = self._take_worker()
                try:
                    return self._ask(worker, json.dumps(question).encode() + b"\n", limit)
                except _Lost:
                    self._discard(worker)
                except BaseException:  # also an interrupt: the late reply must not meet the next question
                    self._discard(worker)
                    raise
        raise AlgebraUnavailable(f"the process for math-verify ended {ATTEMPTS} times over one question")

    def warm(self) -> None:
        """Start to import math-verify in the background. Returns at once and never fails."""
        with self._lock, contextlib.suppress(AlgebraUnavailable, OSError):
            if not self._idle:
                self._idle.append(self._fork_worker())

    def close(self) -> None:
        """End all processes. The next question starts new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
            server, self._server = self._server, None
            self._missing, self._deaths = "", 0
        for worker in idle:
            worker.channel.close()
        if server is not None:
            _end(server)

    def _take_worker(self) -> _Worker:
        """An idle worker that is still alive, or a new one."""
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.server is self._server and not _hung_up(worker.channel):
                    return worker
                worker.channel.close()
            return self._fork_worker()

    def _fork_worker(self) -> _Worker:
        """Order a new worker from the fork server; it is ready later. The caller holds the lock."""
        if self._missing:
            raise AlgebraUnavailable(self._missing)
        server = self._live_server()
        number = next(self._numbers) % (1 << 31)
        channel, worker_end = socket.socketpair()
        with worker_end, contextlib.suppress(OSError):  # if the server died just now, the caller finds its worker gone
            socket.send_fds(server.commands, [COMMAND.pack(b"F", number)], [worker_end.fileno()])
        return _Worker(server, number, channel)

    def _live_server(self) -> _ForkServer:
        """The fork server, started again if it died. The caller holds the lock.

        Raises AlgebraUnavailable during the pause after too many deaths in a row.
        """
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
            # One new start after each pause, and the next pause at once if it dies too.
            self._deaths, self._paused_until = ATTEMPTS - 1, 0.0
        self._server = _start_fork_server(self.memory_mb)
        return self._server

    def _ask(self, worker: _Worker, question: bytes, limit: float) -> Outcome:
        """The outcome of one question. The worker becomes idle again if it can take another question."""
        if not worker.ready:
            self._await_ready(worker)
        try:
            worker.channel.settimeout(limit)
            worker.channel.sendall(question)
            reply = _read_reply(worker.channel, limit)
        except TimeoutError:
            raise Died(f"no result within {limit:g} s", timeout=True) from None
        except OSError:
            # If the whole fork server is gone, this question is not the reason.
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
        if reply["last"]:  # the worker ends after this reply
            worker.channel.close()
        else:
            with self._lock:
                self._idle.append(worker)
        return cast(Outcome, reply["outcome"])

    def _await_ready(self, worker: _Worker) -> None:
        """Wait until the worker has started.

        Raises AlgebraUnavailable if math-verify is missing or does not start.
        """
        try:
            reply = _read_reply(worker.channel, START_S)
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
        """Kill a worker that gets no more questions."""
        with self._lock, contextlib.suppress(OSError):
            worker.server.commands.sendall(COMMAND.pack(b"K", worker.number))
        worker.channel.close()

    def _forget(self) -> None:
        """Drop all processes, in a forked child.

        They belong to the parent. The lock is replaced too, because another thread of the parent may have held it.
        """
        for worker in self._idle:
            worker.channel.close()
        if self._server is not None:
            self._server.commands.close()
            self._server.process.returncode = 0  # only the parent can wait for it
        self._reset()


def _start_fork_server(memory_mb: int) -> _ForkServer:
    """Start a fork server."""
    commands, server_end = socket.socketpair()
    with server_end:
        process = subprocess.Popen(
            [sys.executable, "-P", str(FORK_SERVER), str(memory_mb)],
            stdin=server_end.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the parent
        )
    return _ForkServer(process, commands)


def _end(server: _ForkServer) -> None:
    """End a fork server and its workers.

    Closing its commands ends it with its workers. Before it has imported everything it has no workers, and only the
    signal ends it.
    """
    server.commands.close()
    server.process.terminate()
    try:
        server.process.wait(1.0)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


def _read_reply(channel: socket.socket, seconds: float) -> dict[str, Any]:
    """The next reply, a line of JSON, within `seconds`.

    Raises TimeoutError, or another OSError if the other end is gone.
    """
    received, deadline = b"", time.monotonic() + seconds
    while not received.endswith(b"\n"):
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        channel.settimeout(remaining)
        chunk = channel.recv(65536)
        if not chunk:
            raise ConnectionResetError
        received += chunk
    reply: dict[str, Any] = json.loads(received)
    return reply


def _hung_up(channel: socket.socket) -> bool:
    """Whether the other end is gone. Ask only when no reply can be waiting, because a reply looks the same."""
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
