"""One jailed child: it reads its payload, enters the jail and runs its role. Submissions run only here.

It keeps these descriptors: 0, 1, 2 as usual, the report (a file that the judge reads), and the link between the two
processes of an assert test. What a submission writes to them is only its answer: nothing in it can make a wrong answer
right.
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
    """Run one child in the jail; never returns.

    `files`: as in wire.py. `limits`: bytes of memory, CPU seconds, bytes per file.
    """
    _arrange([*files[:4], link, files[4]])
    payload = marshal.loads(os.pread(PAYLOAD, os.fstat(PAYLOAD).st_size, 0))
    if walls.scratch:
        os.chdir(f"{walls.scratch}/{slot}")
    if walls.listener is not None and not walls.native:
        os.register_at_fork(before=_report_fork)
    jail.enter(walls, slot, *limits, keep=PAYLOAD + 1, forks=_may_fork(walls, payload))
    _run_role(payload)


def plainly(files: list[int], link: int | None, limits: tuple[int, int]) -> None:
    """As `main`, but without walls, in a fresh interpreter. `limits`: CPU seconds, bytes per file."""
    _arrange([*files[:4], link, files[4]])
    payload = marshal.loads(os.pread(PAYLOAD, os.fstat(PAYLOAD).st_size, 0))
    dress()
    os.environ.clear()  # the host's environment may hold secrets
    for kind, value in zip((resource.RLIMIT_CPU, resource.RLIMIT_FSIZE), limits, strict=True):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (value, value))
    _run_role(payload)


def _run_role(payload: dict[str, Any]) -> None:
    os.pwrite(PAYLOAD, READY, 0)
    os.close(PAYLOAD)  # before the submission begins: it must not be able to write the mark itself
    status = 0
    try:
        ROLES[payload["role"]](payload)
    except program.ProgramEnded as end:
        status = end.status
    os._exit(program.finish(status))


def dress() -> None:
    """Make this interpreter look like one that runs `main.py`. The fork server does it once for all its children."""
    for signal_number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(signal_number, _signal.SIG_DFL)
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
    """Move each file to the descriptor number that is its index in the list."""
    # first out of the way, since a file may hold the number that another one is to get
    moved = [None if file is None else fcntl.fcntl(file, fcntl.F_DUPFD, HIGH) for file in files]
    for number, file in enumerate(moved):
        if file is not None:
            os.dup2(file, number)
        elif number > 2:
            _close(number)


def _may_fork(walls: jail.Walls, payload: dict[str, Any]) -> bool:
    """Compilers always may. Programs may if their language needs it and the number of processes is bounded."""
    return payload["role"] == "compile" or (walls.bounded and payload.get("forks", False))


def _report_fork() -> None:
    # the refusal of the fork itself (clone) is not reported to the fork server, that of this signal is
    with contextlib.suppress(OSError):
        os.kill(FORKED, 0)


def _close(file: int) -> None:
    with contextlib.suppress(OSError):
        os.close(file)
