"""A folder belongs to one process at a time, and whoever comes second is told to whom.

The lock is `flock`'s: the kernel drops it when the holder dies, however it dies, so there is no stale lock to remove.
The file's text only says who holds it.
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
"""The environment variable by which `qwq-rl run` gives its pid to the processes it starts."""


@dataclass(frozen=True)
class Holder:
    """The living process that holds a lock; `launcher` is the `qwq-rl run` that started it, or else its parent."""

    pid: int
    launcher: int
    started: float
    host: str
    command: str
    what: str

    def describe(self) -> str:
        """One line: what it is, its pid, since when, and the command it was started with."""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
        where = "" if self.host == socket.gethostname() else f" on {self.host}"
        return f"{self.what} is still alive (pid {self.pid}{where}, since {since}: {self.command})"

    def orphaned(self) -> bool:
        """Whether the process that started it is gone, so that nothing waits for it any more."""
        return self.host == socket.gethostname() and not is_alive(self.launcher)


@contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; `what` names this process to others ("the trainer of 1_x").

    Raises RunStateError naming the living holder where another process has it. A forked child does not inherit it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        # A second try, because somebody who only asks who the holder is has the lock for an instant.
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
        if descriptor in _held:  # not so in a forked child that leaves the block
            _held.remove(descriptor)
            os.ftruncate(descriptor, 0)
            os.close(descriptor)


def holder(path: Path) -> Holder | None:
    """The process that holds the lock file `path` now, or None where it is free or absent."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return None if _try_lock(descriptor) else _read(path)
    finally:
        os.close(descriptor)


def refusal(path: Path, who: Holder) -> str:
    """What to tell the one who came second."""
    left = ", left by a launcher that died" if who.orphaned() and who.what.startswith("the trainer") else ""
    return f"{path.parent}: {who.describe()}{left}: stop it with `kill {who.pid}`, or wait until it has ended"


# The descriptors of locks this process holds. A fork without exec shares them, and flock lasts while any copy is open.
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
    """Say who holds the lock, in one write, so that a reader sees all of it or an older text."""
    launcher = int(os.environ.get(LAUNCHER, os.getppid()))
    me = Holder(os.getpid(), launcher, time.time(), socket.gethostname(), shlex.join(_command()), what)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(me)).encode() + b"\n", 0)


def _read(path: Path) -> Holder:
    """Read the holder's text; it is empty for the instant between taking the lock and saying so."""
    for _ in range(20):
        try:
            return Holder(**json.loads(path.read_text()))
        except (ValueError, TypeError):
            time.sleep(0.05)
    return Holder(0, 0, path.stat().st_mtime, socket.gethostname(), "it has not said which", "another process")


def _command() -> list[str]:
    return sys.orig_argv or sys.argv


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that ended and was not waited for does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
