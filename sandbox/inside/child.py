"""One jailed child: it takes its payload, shuts itself in and plays its role. Submissions run here and nowhere else.

Descriptors it is left with: 0, 1, 2 as usual, the report (a file the judge reads), and the link between the two halves
of an assert test. What it writes to them is only ever an answer: nothing it could say makes a wrong one right.
"""

from __future__ import annotations

import _signal
import contextlib
import fcntl
import io
import marshal
import os
import resource
import sys
from typing import Any

from qwq_rl.sandbox.inside import checker, jail, native, program, split
from qwq_rl.sandbox.inside.wire import FORKED, HIGH, PAYLOAD, READY

ROLES = {
    "program": program.main,
    "call": program.call,
    "calls": program.calls,
    "solve": split.solve,
    "check": split.check,
    "checker": checker.main,
    "compile": native.build,
    "native": native.start,
}


def main(walls: jail.Walls, slot: int, files: list[int], link: int | None, limits: tuple[int, float, int]) -> None:
    """Never returns. `files` as in wire.py; `limits`: bytes of memory, CPU seconds, bytes a file."""
    _arrange([*files[:4], link, files[4]])
    payload = marshal.loads(os.pread(PAYLOAD, os.fstat(PAYLOAD).st_size, 0))
    if walls.scratch:
        os.chdir(f"{walls.scratch}/{slot}")
    if walls.listener is not None and not walls.native:
        os.register_at_fork(before=_tell_of_fork)
    jail.enter(walls, slot, *limits, keep=PAYLOAD + 1, forks=_may_fork(walls, payload))
    _play(payload)


def plainly(files: list[int], link: int | None, limits: tuple[int, int]) -> None:
    """The same where there are no walls, in an interpreter of its own; `limits`: CPU seconds, bytes a file."""
    _arrange([*files[:4], link, files[4]])
    payload = marshal.loads(os.pread(PAYLOAD, os.fstat(PAYLOAD).st_size, 0))
    dress()
    os.environ.clear()
    for kind, value in zip((resource.RLIMIT_CPU, resource.RLIMIT_FSIZE), limits, strict=True):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (value, value))
    _play(payload)


def _play(payload: dict[str, Any]) -> None:
    os.pwrite(PAYLOAD, READY, 0)
    os.close(PAYLOAD)
    status = 0
    try:
        ROLES[payload["role"]](payload)
    except program.ProgramEnded as end:
        status = end.status
    os._exit(program.finish(status))


def dress() -> None:
    """Make this interpreter look like one that runs `main.py`; done by the fork server, its children need not do it."""
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(  # type: ignore[misc]
        io.BufferedReader(io.FileIO(0, "r", closefd=False)), encoding="utf-8", errors="surrogateescape"
    )
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(  # type: ignore[misc]
        io.BufferedWriter(io.FileIO(1, "w", closefd=False)), encoding="utf-8", errors="surrogateescape"
    )
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(  # type: ignore[misc]
        io.BufferedWriter(io.FileIO(2, "w", closefd=False)),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )
    sys.argv[:] = ["main.py"]


def _arrange(files: list[int | None]) -> None:
    """Make each file the descriptor of its place in the list."""
    moved = [None if file is None else fcntl.fcntl(file, fcntl.F_DUPFD, HIGH) for file in files]
    for place, file in enumerate(moved):
        if file is not None:
            os.dup2(file, place)
        elif place > 2:
            _close(place)


def _may_fork(walls: jail.Walls, payload: dict[str, Any]) -> bool:
    """Compilers always; programs of languages that need it where the number of processes has a bound."""
    return payload["role"] == "compile" or (walls.bounded and payload.get("forks", False))


def _tell_of_fork() -> None:
    with contextlib.suppress(OSError):
        os.kill(FORKED, 0)


def _close(file: int) -> None:
    with contextlib.suppress(OSError):
        os.close(file)
