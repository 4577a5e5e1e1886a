"""A replacement for the fork server on systems other than Linux: each process of a case is a bare interpreter.

There are no walls, so the isolation is L0, and the user must ask for it explicitly. It is meant for trusted programs,
while one writes a recipe on a laptop. The limits on CPU, wall time and output hold; memory has no limit.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from qwq_rl.sandbox.fork_server_link import Ending, Payload, packages
from qwq_rl.sandbox.inside.wire import FILES, READY
from qwq_rl.sandbox.protocol import Limits

_START = """
import sys, types
for name, path in {packages!r}:
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from qwq_rl.sandbox.inside import child
child.plainly({files!r}, {link!r}, {limits!r})
"""
_LOOK_S, _START_S = 0.005, 60.0
"""Seconds between two looks at a running process, and seconds for an interpreter to start."""
_RESIDENT_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes per unit of the kernel's count of resident memory."""
_Process = tuple["subprocess.Popen[bytes]", list[IO[bytes]]]


class UnjailedServer:
    """Has the same calls as `ForkServerLink`; uses one thread per case. Not thread-safe; `close` it."""

    greeting: Mapping[str, Any] = dict.fromkeys(
        ("seccomp", "landlock", "namespaces", "own_root", "own_user", "cgroups", "notices"), 0
    )

    def __init__(self, slots: int) -> None:
        self._slots = threading.Semaphore(slots)
        self._ended: SimpleQueue[tuple[int, float, list[Ending]]] = SimpleQueue()
        self._readable, self._writable = os.pipe()
        self._cancelled: set[int] = set()
        self._threads: dict[int, threading.Thread] = {}
        self._closing = False

    def send(self, number: int, payloads: Sequence[Payload], limits: Limits) -> None:
        """Start a case, with one process per payload."""
        thread = threading.Thread(target=self._run, args=(number, payloads, limits), daemon=True)
        self._threads[number] = thread
        thread.start()

    def cancel(self, number: int) -> None:
        """End a case; `receive` still returns it."""
        self._cancelled.add(number)

    def fileno(self) -> int:
        """The descriptor that becomes readable when there is something to receive."""
        return self._readable

    def receive(self) -> tuple[int, float, list[Ending]]:
        """Wait for a case to end; its number, wall seconds and how its processes ended."""
        os.read(self._readable, 1)
        number, wall_s, endings = self._ended.get()
        self._threads.pop(number).join()
        self._cancelled.discard(number)
        return number, wall_s, endings

    def close(self) -> None:
        """End all that runs, and wait for it."""
        self._closing = True
        for thread in self._threads.values():
            thread.join()
        self.abandon()

    def abandon(self) -> None:
        """Only close this process's descriptors, for a forked copy of the process."""
        os.close(self._readable)
        os.close(self._writable)

    def _run(self, number: int, payloads: Sequence[Payload], limits: Limits) -> None:
        with self._slots:
            started = time.monotonic()
            try:
                endings = self._endings(number, payloads, limits)
            except OSError as error:
                message = f"{type(error).__name__}: {error}".encode()
                endings = [Ending(1, "", 0.0, 0.0, False, b"", message, b"")] * len(payloads)
            self._ended.put((number, time.monotonic() - started, endings))
        os.write(self._writable, b"!")  # one byte per ended case, for `receive`

    def _endings(self, number: int, payloads: Sequence[Payload], limits: Limits) -> list[Ending]:
        links = socket.socketpair() if len(payloads) == 2 else ()
        processes: list[_Process] = []
        try:
            for index, payload in enumerate(payloads):
                processes.append(_start_process(payload, links[index].fileno() if links else None, limits))
            for end in links:
                end.close()
            return [self._ending(number, process, limits.wall_s) for process in processes]
        finally:
            for process, files in processes:
                _kill_all(process)
                for file in files:
                    file.close()

    def _ending(self, number: int, started: _Process, wall_s: float) -> Ending:
        process, files = started
        ended_for, deadline = "", time.monotonic() + _START_S
        ready = False
        while (waited := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            if not ready and _content(files[4]).startswith(
                READY
            ):  # the wall limit begins when the interpreter has started
                ready, deadline = True, time.monotonic() + wall_s
            ended_for = self._why_end(number, deadline)
            if ended_for:
                process.send_signal(signal.SIGKILL)
                waited = os.wait4(process.pid, 0)
                break
            time.sleep(_LOOK_S)
        _, status, usage = waited
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout, stderr, report, payload = map(_content, files[1:])
        cpu_s, memory_mb = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * _RESIDENT_UNIT / 2**20
        shut_in = payload.startswith(READY) or ended_for == "cancelled"
        return Ending(process.returncode, ended_for, cpu_s, memory_mb, shut_in, stdout, stderr, report)

    def _why_end(self, number: int, deadline: float) -> str:
        if self._closing or number in self._cancelled:
            return "cancelled"
        return "wall" if time.monotonic() >= deadline else ""


def _start_process(payload: Payload, link: int | None, limits: Limits) -> _Process:
    files: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(FILES)]  # noqa: SIM115  (closed by the caller)
    for file, content in (
        (files[0], payload.stdin),
        (files[4], marshal.dumps({"role": payload.role, **payload.fields})),
    ):
        file.write(content)
        file.flush()
        file.seek(0)
    descriptors = [file.fileno() for file in files]
    # whole CPU seconds are all that the kernel takes; one more byte shows that the output was too long
    bounds = (int(limits.cpu_s) + 1, limits.output_kb * 1024 + 1)
    process = subprocess.Popen(
        [
            sys.executable,
            "-S",
            "-s",
            "-P",
            "-c",
            _START.format(packages=packages(), files=descriptors, link=link, limits=bounds),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=files[2],
        pass_fds=[*descriptors, *([] if link is None else [link])],
        env={"PYTHONHASHSEED": "0"},
        cwd=Path("/"),
        start_new_session=True,
    )
    return process, files


def _kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with its group, which holds what it started, unless that left the group on purpose."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.returncode is None:
        with contextlib.suppress(ChildProcessError):
            process.wait()


def _content(file: IO[bytes]) -> bytes:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)
