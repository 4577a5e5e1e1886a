"""Lock files: one process at a time may use a folder, and a second one is told which process that is.

The lock is `flock`'s. The kernel releases it when the holder ends for any reason, so a stale lock cannot remain. The
text in the file only says who holds the lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from qwq_rl.errors import RunStateError

LAUNCHER = "QWQ_RL_LAUNCHER"
"""The environment variable with which `qwq-rl run` passes its pid to the processes it starts."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock. `launcher`: pid of the `qwq-rl run` that started it, or of its parent."""

    pid: int
    launcher: int
    started: float
    host: str
    command: str
    what: str

    def describe(self) -> str:
        """One line: what the process is, its pid, since when it runs, and the command that started it."""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
        where = "" if self.host == socket.gethostname() else f" on {self.host}"
        return f"{self.what} is still alive (pid {self.pid}{where}, since {since}: {self.command})"

    def orphaned(self) -> bool:
        """Whether the process that started it has ended, so that nobody waits for its result."""
        return self.host == socket.gethostname() and not is_alive(self.launcher)


@contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs. `what` describes this process to others ("the trainer of 1_x").

    Raises RunStateError, which names the holder, if another process has the lock. A forked child does not inherit it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        # Try twice: a process that only asks for the holder (`holder`) takes the lock for a moment.
        if not (_try_lock(descriptor) or _try_lock(descriptor, after=0.1)):
            raise RunStateError(refusal(path, _read(path)))
        _write(descriptor, what)
    except BaseException:
        os.close(descriptor)
        raise
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:  # false in a forked child: its copy is closed already
            _held.remove(descriptor)
            os.ftruncate(descriptor, 0)
            os.close(descriptor)


def holder(path: Path) -> Holder | None:
    """Return the process that holds the lock file `path` now, or None if it is free or does not exist."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return None if _try_lock(descriptor) else _read(path)
    finally:
        os.close(descriptor)


def refusal(path: Path, who: Holder) -> str:
    """The error message for a process that finds the lock held by `who`."""
    note = ", left by a launcher that died" if who.orphaned() and who.what.startswith("the trainer") else ""
    return f"{path.parent}: {who.describe()}{note}: stop it with `kill {who.pid}`, or wait until it has ended"


# Descriptors of the locks that this process holds. A fork without exec copies them, and flock holds while any copy is
# open: the child closes its copies, so that the lock ends with this process.
_held: set[int] = set()


def _close_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _try_lock(descriptor: int, after: float = 0.0) -> bool:
    time.sleep(after)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(descriptor: int, what: str) -> None:
    """Write who holds the lock. It is one write, so that a reader never sees a part of the text."""
    launcher = int(os.environ.get(LAUNCHER, os.getppid()))
    this_process = Holder(os.getpid(), launcher, time.time(), socket.gethostname(), shlex.join(_command()), what)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(this_process)).encode() + b"\n", 0)


def _read(path: Path) -> Holder:
    """Read who holds the lock. The file is empty for a moment after the lock is taken, so this waits up to 1 s."""
    for _ in range(20):
        try:
            return Holder(**json.loads(path.read_text()))
        except (ValueError, TypeError):
            time.sleep(0.05)
    return Holder(0, 0, path.stat().st_mtime, socket.gethostname(), "it has not said which", "another process")


def _command() -> list[str]:
    return sys.orig_argv or sys.argv


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is running. A zombie (ended, not waited for) is not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
