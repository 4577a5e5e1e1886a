"""Control groups around the mother and all her children: bounds on memory and tasks, where this user may set them.

Both versions of the interface: https://docs.kernel.org/admin-guide/cgroup-v1/ and .../cgroup-v2.html.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_PREFIX = "qwq-sandbox-"


@dataclass(frozen=True)
class Groups:
    """The groups of one mother: their folders, kept open, since she leaves the file tree they are in."""

    parents: tuple[int, ...]
    name: str
    members: tuple[int, ...]
    """Files a process id is written to, to bring it in."""

    def remove(self) -> None:
        """Delete them; they must be empty."""
        for parent in self.parents:
            with contextlib.suppress(OSError):
                os.rmdir(self.name, dir_fd=parent)


def make(memory_bytes: int, tasks: int) -> Groups | None:
    """Groups with these bounds for this process's children; None where the machine or this user has none to give."""
    name = f"{_PREFIX}{os.getpid()}"
    made: list[Path] = []
    try:
        for parent, bounds in _places(memory_bytes, tasks):
            _sweep(parent)
            place = parent / name
            place.mkdir()
            made.append(place)
            for file, value in bounds.items():
                (place / file).write_text(str(value))
                if int((place / file).read_text()) > value:
                    raise OSError(f"{file} did not take {value}")
        if not made:
            return None
        parents = tuple(os.open(place.parent, os.O_PATH | os.O_CLOEXEC) for place in made)
        members = tuple(os.open(place / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC) for place in made)
    except (OSError, ValueError):
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()
        return None
    return Groups(parents, name, members)


def enter(groups: Groups) -> bool:
    """Bring this process in; False where that is refused."""
    try:
        for member in groups.members:
            os.write(member, b"0")
    except OSError:
        return False
    return True


def _places(memory_bytes: int, tasks: int) -> Iterator[tuple[Path, dict[str, int]]]:
    """The groups this process is in, and the bounds to set in a new one below each."""
    mine = dict(_memberships())
    if {"memory", "pids"} <= mine.keys():
        yield _ROOT / "memory" / mine["memory"].lstrip("/"), {"memory.limit_in_bytes": memory_bytes}
        yield _ROOT / "pids" / mine["pids"].lstrip("/"), {"pids.max": tasks}
    elif "" in mine:
        # processes stand only in leaves there: a group below ours needs its controllers handed down to it already
        yield _ROOT / mine[""].lstrip("/"), {"memory.max": memory_bytes, "pids.max": tasks}


def _memberships() -> Iterator[tuple[str, str]]:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path


def _sweep(parent: Path) -> None:
    """Remove what a killed launcher left."""
    for place in parent.glob(_PREFIX + "*"):
        if not os.path.exists(f"/proc/{place.name.removeprefix(_PREFIX)}"):
            with contextlib.suppress(OSError):
                place.rmdir()
