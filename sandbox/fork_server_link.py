"""The trainer's end of one fork server: start it, send it cases as files, receive how they ended."""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwq_rl.sandbox.inside import seccomp
from qwq_rl.sandbox.inside.wire import FILES, PROCESS, READY, REPLY, REQUEST, ForkServerPlan
from qwq_rl.sandbox.protocol import Limits

_START = """
import os, sys, types
register, os.register_at_fork = os.register_at_fork, lambda **hooks: None
for name, path in {packages!r}:
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from qwq_rl.sandbox.inside import fork_server
from qwq_rl.sandbox.inside.wire import ForkServerPlan, Profile
os.register_at_fork = register
fork_server.main({fd}, {plan!r})
"""
"""The program of the fork server.

Empty packages replace our parent packages, so that the fork server loads only the modules in `inside`. No module may
register hooks for fork: `random` would seed every child again, `threading` would renew locks that nobody holds. Both
together cost a third of a millisecond per child.
"""
_START_SECONDS = 60.0
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "LD_BIND_NOW": "1",  # names are bound once in the server, not again by every child
}


class ForkServerDied(Exception):
    """The fork server ended or does not answer; the text holds the end of its standard error."""


@dataclass(frozen=True)
class Payload:
    """The task of one jailed child: its role, the fields that the role needs, and the bytes of its standard input."""

    role: str
    fields: Mapping[str, Any]
    stdin: bytes = b""
    program: bytes = b""
    """The initial content of the report file: the program that a native process becomes."""


@dataclass(frozen=True)
class Ending:
    """How one jailed child ended, and its output."""

    exit: int
    """Exit status, or minus the signal's number."""
    ended_for: str
    """Why the fork server ended it: `cpu`, `wall`, `refused` (too many refused calls) or `cancelled`; else empty."""
    cpu_s: float
    memory_mb: float
    shut_in: bool
    """The jail was closed before the submission began. If not, it is a fault of the sandbox."""
    stdout: bytes
    stderr: bytes
    report: bytes
    attempts: tuple[str, ...] = ()
    """Kinds of refused calls that only an escape attempt makes (`seccomp.KINDS`)."""


_ENDED_FOR = {b"c": "cpu", b"w": "wall", b"r": "refused", b"x": "cancelled"}


class ForkServerLink:
    """One running fork server. Not thread-safe; `close` it."""

    def __init__(self, plan: ForkServerPlan) -> None:
        """Start the server and wait for its greeting. Raises `ForkServerDied`."""
        self.plan = plan
        self._control, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._stderr = os.memfd_create("fork server")
        start = _START.format(packages=packages(), fd=server_end.fileno(), plan=plan)
        # as isolated as with -I, but with a fixed hash seed: a verdict must not depend on it
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-s", "-P", *(["-B"] if sys.dont_write_bytecode else []), "-c", start],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            pass_fds=[server_end.fileno()],
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
        server_end.close()
        self._cases: dict[int, tuple[list[list[int]], Limits]] = {}
        try:
            self.greeting: dict[str, Any] = json.loads(self._receive(_START_SECONDS))
        except BaseException:
            self.close()
            raise

    def send(self, number: int, payloads: Sequence[Payload], limits: Limits) -> None:
        """Start a case, with one process per payload. Raises `ForkServerDied`."""
        files = [_files(payload) for payload in payloads]
        self._cases[number] = (files, limits)
        size = limits.output_kb * 1024 + 1  # one more byte than allowed shows that the output was too long
        memory = limits.memory_mb << 20
        request = REQUEST.pack(number, len(payloads), limits.cpu_s, limits.wall_s, memory, size)
        try:
            socket.send_fds(self._control, [request], [file for group in files for file in group])
        except OSError as error:
            raise ForkServerDied(f"{error}: {self._last_words()}") from None

    def cancel(self, number: int) -> None:
        """End a case; `receive` still returns it. Raises `ForkServerDied`."""
        try:
            self._control.send(REQUEST.pack(number, 0, 0.0, 0.0, 0, 0))
        except OSError as error:
            raise ForkServerDied(f"{error}: {self._last_words()}") from None

    def fileno(self) -> int:
        """The descriptor that becomes readable when there is something to receive."""
        return self._control.fileno()

    def receive(self) -> tuple[int, float, list[Ending]]:
        """Wait for a case to end; its number, wall seconds and how its processes ended. Raises `ForkServerDied`."""
        # twice the wall limit: a case may first wait in the server while another one runs
        timeout = max((limits.wall_s for _, limits in self._cases.values()), default=0.0) * 2 + 30
        packet = self._receive(timeout)
        number, wall_s = REPLY.unpack_from(packet)
        files, _ = self._cases.pop(number)
        endings = []
        for index, group in enumerate(files):
            status, cpu_s, memory, reason, attempt_bits = PROCESS.unpack_from(packet, REPLY.size + index * PROCESS.size)
            stdout, stderr, report, payload = map(_read, group[1:])
            code = os.waitstatus_to_exitcode(status)
            # a cancelled case may end before its jail is closed: no fault of the sandbox
            shut_in = payload.startswith(READY) or reason == b"x"
            attempts = tuple(kind for index, kind in enumerate(seccomp.KINDS) if attempt_bits >> index & 1)
            ended_for = _ENDED_FOR.get(reason, "")
            endings.append(Ending(code, ended_for, cpu_s, memory / 2**20, shut_in, stdout, stderr, report, attempts))
            _close(group)
        return number, wall_s, endings

    def close(self) -> None:
        """End the server and everything it runs."""
        self.abandon()  # the server ends when the control socket closes
        if self.plan.profile.scratch:
            shutil.rmtree(self.plan.profile.scratch, ignore_errors=True)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def abandon(self) -> None:
        """Only close this process's descriptors, for a forked copy of the trainer: the server is not its own."""
        for files, _ in self._cases.values():
            for group in files:
                _close(group)
        self._cases.clear()
        self._control.close()
        if self._stderr >= 0:
            os.close(self._stderr)
            self._stderr = -1

    def _receive(self, timeout: float) -> bytes:
        self._control.settimeout(timeout)
        try:
            packet = self._control.recv(4096)
        except OSError as error:
            raise ForkServerDied(f"{error}: {self._last_words()}") from None
        if not packet:
            raise ForkServerDied(self._last_words())
        return packet

    def _last_words(self) -> str:
        return _read(self._stderr)[-2000:].decode("utf-8", "replace").strip() or "it said nothing"


def packages() -> list[tuple[str, str]]:
    """Names and folders of the empty packages through which a sandbox process finds its modules."""
    folder = Path(__file__).resolve().parent
    return [("qwq_rl", str(folder.parent)), ("qwq_rl.sandbox", str(folder))]


def _files(payload: Payload) -> list[int]:
    """Standard input, output, error, report and payload as files in memory, which have no name in any folder."""
    text = marshal.dumps({"role": payload.role, **payload.fields})
    files = [os.memfd_create("case") for _ in range(FILES)]
    for file, content in ((files[0], payload.stdin), (files[3], payload.program), (files[4], text)):
        if content:
            _write(file, content)
            os.lseek(file, 0, os.SEEK_SET)
    return files


def _write(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]


def _read(file: int) -> bytes:
    size = os.fstat(file).st_size
    return os.pread(file, size, 0) if size else b""


def _close(files: Sequence[int]) -> None:
    for file in files:
        with contextlib.suppress(OSError):
            os.close(file)
