"""The trainer's end of one server: start it, hand it cases as files, read how they ended."""

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
"""Empty parent packages stand in for ours, so that the fork server loads what is inside, nothing else.

No module hooks into fork: `random` would seed every child anew, `threading` renew locks that nobody holds; both cost
a third of a millisecond a child.
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
    """The fork server ended or no longer answers; the text holds what it last said."""


@dataclass(frozen=True)
class Payload:
    """What one jailed child is given: its role and what that role needs, and the bytes of its standard input."""

    role: str
    fields: Mapping[str, Any]
    stdin: bytes = b""
    program: bytes = b""
    """What stands in the report file beforehand: the program that a native process becomes."""


@dataclass(frozen=True)
class Ending:
    """How one jailed child ended, and what it left."""

    exit: int
    """Exit status, or minus a signal's number."""
    ended_for: str
    """`cpu`, `wall`, `refused` (too many calls that it may not make) or `cancelled` where the fork server ended it."""
    cpu_s: float
    memory_mb: float
    shut_in: bool
    """The jail was complete before the submission began; otherwise the fault is ours."""
    stdout: bytes
    stderr: bytes
    report: bytes
    attempts: tuple[str, ...] = ()
    """Kinds of refused calls that only an attempt to get out makes (`seccomp.KINDS`)."""


_ENDED_FOR = {b"c": "cpu", b"w": "wall", b"r": "refused", b"x": "cancelled"}


class ForkServerLink:
    """One running fork server. Not thread-safe; `close` it."""

    def __init__(self, plan: ForkServerPlan) -> None:
        """Start it and wait for its greeting. Raises `ForkServerDied`."""
        self.plan = plan
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._said = os.memfd_create("fork server")
        start = _START.format(packages=packages(), fd=theirs.fileno(), plan=plan)
        # as isolated as -I is, but with a hash seed that is fixed: a verdict must not depend on it
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-s", "-P", *(["-B"] if sys.dont_write_bytecode else []), "-c", start],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            pass_fds=[theirs.fileno()],
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
        theirs.close()
        self._cases: dict[int, tuple[list[list[int]], Limits]] = {}
        try:
            self.greeting: dict[str, Any] = json.loads(self._receive(_START_SECONDS))
        except BaseException:
            self.close()
            raise

    def send(self, number: int, payloads: Sequence[Payload], limits: Limits) -> None:
        """Have a case run, one process a payload. Raises `ForkServerDied`."""
        files = [_files(payload) for payload in payloads]
        self._cases[number] = (files, limits)
        size = limits.output_kb * 1024 + 1  # one byte more than is allowed tells too much from just enough
        memory = limits.memory_mb << 20
        request = REQUEST.pack(number, len(payloads), limits.cpu_s, limits.wall_s, memory, size)
        try:
            socket.send_fds(self._control, [request], [file for group in files for file in group])
        except OSError as error:
            raise ForkServerDied(f"{error}: {self._last_words()}") from None

    def cancel(self, number: int) -> None:
        """End a case; it is still received. Raises `ForkServerDied`."""
        try:
            self._control.send(REQUEST.pack(number, 0, 0.0, 0.0, 0, 0))
        except OSError as error:
            raise ForkServerDied(f"{error}: {self._last_words()}") from None

    def fileno(self) -> int:
        """The descriptor that is readable when there is something to receive."""
        return self._control.fileno()

    def receive(self) -> tuple[int, float, list[Ending]]:
        """Wait for a case to end: its number, its wall seconds and how its processes ended. Raises `ForkServerDied`."""
        patience = max((limits.wall_s for _, limits in self._cases.values()), default=0.0) * 2 + 30
        packet = self._receive(patience)
        number, wall_s = REPLY.unpack_from(packet)
        files, _ = self._cases.pop(number)
        endings = []
        for place, group in enumerate(files):
            status, cpu_s, memory, reason, seen = PROCESS.unpack_from(packet, REPLY.size + place * PROCESS.size)
            stdout, stderr, report, payload = map(_read, group[1:])
            code = os.waitstatus_to_exitcode(status)
            shut_in = payload.startswith(READY) or reason == b"x"
            attempts = tuple(kind for place, kind in enumerate(seccomp.KINDS) if seen >> place & 1)
            ended_for = _ENDED_FOR.get(reason, "")
            endings.append(Ending(code, ended_for, cpu_s, memory / 2**20, shut_in, stdout, stderr, report, attempts))
            _close(group)
        return number, wall_s, endings

    def close(self) -> None:
        """End it and everything it runs."""
        self.abandon()
        if self.plan.profile.scratch:
            shutil.rmtree(self.plan.profile.scratch, ignore_errors=True)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def abandon(self) -> None:
        """Close this process's descriptors only, as a forked copy of the trainer must."""
        for files, _ in self._cases.values():
            for group in files:
                _close(group)
        self._cases.clear()
        self._control.close()
        if self._said >= 0:
            os.close(self._said)
            self._said = -1

    def _receive(self, patience: float) -> bytes:
        self._control.settimeout(patience)
        try:
            packet = self._control.recv(4096)
        except OSError as error:
            raise ForkServerDied(f"{error}: {self._last_words()}") from None
        if not packet:
            raise ForkServerDied(self._last_words())
        return packet

    def _last_words(self) -> str:
        return _read(self._said)[-2000:].decode("utf-8", "replace").strip() or "it said nothing"


def packages() -> list[tuple[str, str]]:
    """Names and folders of the empty packages in which a process of the sandbox finds its modules."""
    folder = Path(__file__).resolve().parent
    return [("qwq_rl", str(folder.parent)), ("qwq_rl.sandbox", str(folder))]


def _files(payload: Payload) -> list[int]:
    """Standard input, output, error, report and payload, as files in memory that no name leads to."""
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
