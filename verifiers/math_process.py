"""A persistent process that compares math expressions, and is killed when it takes too long."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("math_worker.py")
START_S = 120.0
"""Importing math-verify takes 2 s of CPU; a busy machine may need far longer, and that is no fault of a response."""


class Unavailable(Exception):
    """The process cannot start, so nothing can be said of any response."""


class Died(Exception):
    """The process ended, or was killed at its deadline, over one question."""

    def __init__(self, how: str, timeout: bool) -> None:
        super().__init__(how)
        self.timeout = timeout


@functools.cache
def shared(deadline_s: float, memory_mb: int) -> MathProcess:
    """The process with these limits; all verifiers of this Python process share it."""
    return MathProcess(deadline_s, memory_mb)


class MathProcess:
    """Starts on the first question; safe to ask from any thread, and from a forked child, which gets its own.

    `deadline_s` is wall time a question, `memory_mb` the address space of the process.
    """

    def __init__(self, deadline_s: float, memory_mb: int) -> None:
        self.deadline_s, self.memory_mb = deadline_s, memory_mb
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._missing = ""
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._forget)

    def equal(self, gold: str, answer: str) -> str:
        """Return `equal`, `different` or `gold_unread`; raises Died over this question, or Unavailable."""
        with self._lock:
            process = self._started()
            try:
                self._send(process, {"gold": gold, "answer": answer})
                reply = self._receive(process, self.deadline_s)
            except Died:
                self._kill()
                raise
        if "error" in reply:
            raise Died(str(reply["error"]), timeout=False)
        return str(reply["outcome"])

    def close(self) -> None:
        """End the process; the next question starts another."""
        with self._lock:
            self._kill()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._missing:
            raise Unavailable(self._missing)
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._kill()
        command = [sys.executable, "-P", str(WORKER), str(self.deadline_s), str(self.memory_mb)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent
        )
        try:
            reply = self._receive(self._process, START_S)
        except Died as error:
            self._kill()
            raise Unavailable(f"the process for math-verify does not start: {error}") from error
        if "missing" in reply:
            self._missing = f"math-verify is not installed ({reply['missing']}); pip install 'qwq-rl[math]'"
            raise Unavailable(self._missing)
        return self._process

    def _send(self, process: subprocess.Popen[bytes], question: dict[str, str]) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        except OSError as error:
            raise Died(f"the process is gone: {error}", timeout=False) from error

    def _receive(self, process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
        assert process.stdout is not None
        channel, received, end = process.stdout.fileno(), b"", time.monotonic() + seconds
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        while not received.endswith(b"\n"):
            left = end - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise Died(f"no result within {seconds:g} s", timeout=True)
            chunk = os.read(channel, 65536)
            if not chunk:
                raise Died(f"the process ended with status {process.wait()}", timeout=False)
            received += chunk
        reply: dict[str, Any] = json.loads(received)
        return reply

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # an unsent question cannot be flushed any more
                pipe.close()  # type: ignore[union-attr]

    def _forget(self) -> None:
        """In a forked child: the process is the parent's, and another thread may have held the lock."""
        self._lock = threading.Lock()
        process, self._process = self._process, None
        if process is not None:
            process.returncode = 0  # not this child's to wait for
            for pipe in (process.stdin, process.stdout):
                os.close(pipe.detach().detach())  # type: ignore[union-attr]
