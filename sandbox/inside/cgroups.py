"""Control groups around the fork server and all its children: bounds on memory and tasks, where this user may set them.

Both versions of the interface: https://docs.kernel.org/admin-guide/cgroup-v1/ and .../cgroup-v2.html. Paths are texts:
`pathlib` would fill memory that every child's fork and exit pay for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

_ROOT = "/sys/fs/cgroup"
_PREFIX = "qwq-sandbox-"


@dataclass(frozen=True)
class ControlGroups:
    """The groups of one server: their folders, kept open, since it leaves the file tree they are in."""

    parents: tuple[int, ...]
    name: str
    members: tuple[int, ...]
    """Files a process id is written to, to bring it in."""

    def remove(self) -> None:
        """Delete them; they must be empty."""
        for parent in self.parents:
            with contextlib.suppress(OSError):
                os.rmdir(self.name, dir_fd=parent)


def make(memory_bytes: int, tasks: int) -> ControlGroups | None:
    """Control groups with these bounds for this process's children; None where there are none to give."""
    name = f"{_PREFIX}{os.getpid()}"
    made: list[str] = []
    try:
        for parent, bounds in _places(memory_bytes, tasks):
            _sweep(parent)
            place = f"{parent}/{name}"
            os.mkdir(place)
            made.append(place)
            for file, value in bounds.items():
                _set(f"{place}/{file}", value)
        if not made:
            return None
        parents = tuple(os.open(os.path.dirname(place), os.O_PATH | os.O_CLOEXEC) for place in made)
        members = tuple(os.open(f"{place}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC) for place in made)
    except (OSError, ValueError):
        for place in made:
            with contextlib.suppress(OSError):
                os.rmdir(place)
        return None
    return ControlGroups(parents, name, members)


def enter(groups: ControlGroups) -> bool:
    """Bring this process in; False where that is refused."""
    try:
        for member in groups.members:
            os.write(member, b"0")
    except OSError:
        return False
    return True


def _set(path: str, value: int) -> None:
    """Write a bound and read it back. Raises OSError and ValueError."""
    with open(path, "w") as file:
        file.write(str(value))
    with open(path) as file:
        if int(file.read()) > value:
            raise OSError(f"{path} did not take {value}")


def _places(memory_bytes: int, tasks: int) -> Iterator[tuple[str, dict[str, int]]]:
    """The groups this process is in, and the bounds to set in a new one below each."""
    mine = dict(_memberships())
    if {"memory", "pids"} <= mine.keys():
        yield _below("memory", mine["memory"]), {"memory.limit_in_bytes": memory_bytes}
        yield _below("pids", mine["pids"]), {"pids.max": tasks}
    elif "" in mine:
        # processes stand only in leaves there: a group below ours needs its controllers handed down to it already
        yield _below("", mine[""]), {"memory.max": memory_bytes, "pids.max": tasks}


def _below(controller: str, path: str) -> str:
    return os.path.join(_ROOT, controller, path.lstrip("/")).rstrip("/")


def _memberships() -> Iterator[tuple[str, str]]:
    with open("/proc/self/cgroup") as file:
        for line in file.read().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                yield controller, path


def _sweep(parent: str) -> None:
    """Remove what a killed launcher left. Raises OSError."""
    for name in os.listdir(parent):
        if name.startswith(_PREFIX) and not os.path.exists(f"/proc/{name.removeprefix(_PREFIX)}"):
            with contextlib.suppress(OSError):
                os.rmdir(f"{parent}/{name}")
