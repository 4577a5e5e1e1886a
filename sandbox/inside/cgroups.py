"""Control groups for the fork server and all its children: bounds on memory and tasks, if this user may set them.

It handles both versions of the interface: https://docs.kernel.org/admin-guide/cgroup-v1/ and .../cgroup-v2.html. Paths
are strings: `pathlib` would fill memory, which makes every child's fork and exit slower.
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
    """The groups of one fork server. Their folders stay open, since the server leaves the file tree that holds them."""

    parents: tuple[int, ...]
    name: str
    members: tuple[int, ...]
    """Open files; writing a process id to them adds that process to the groups."""

    def remove(self) -> None:
        """Delete the groups; they must be empty."""
        for parent in self.parents:
            with contextlib.suppress(OSError):
                os.rmdir(self.name, dir_fd=parent)


def make(memory_bytes: int, tasks: int) -> ControlGroups | None:
    """Make control groups with these bounds for this process's children; None if that is not possible."""
    name = f"{_PREFIX}{os.getpid()}"
    created: list[str] = []
    try:
        for parent, bounds in _folders_and_bounds(memory_bytes, tasks):
            _remove_stale(parent)
            folder = f"{parent}/{name}"
            os.mkdir(folder)
            created.append(folder)
            for file, value in bounds.items():
                _write_bound(f"{folder}/{file}", value)
        if not created:
            return None
        parents = tuple(os.open(os.path.dirname(folder), os.O_PATH | os.O_CLOEXEC) for folder in created)
        members = tuple(os.open(f"{folder}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC) for folder in created)
    except (OSError, ValueError):
        for folder in created:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        return None
    return ControlGroups(parents, name, members)


def enter(groups: ControlGroups) -> bool:
    """Add this process to the groups; False if that is refused."""
    try:
        for member in groups.members:
            os.write(member, b"0")  # 0 means the process that writes
    except OSError:
        return False
    return True


def _write_bound(path: str, value: int) -> None:
    """Write a bound and read it back, since the kernel may take another value. Raises OSError and ValueError."""
    with open(path, "w") as file:
        file.write(str(value))
    with open(path) as file:
        if int(file.read()) > value:
            raise OSError(f"{path} did not take {value}")


def _folders_and_bounds(memory_bytes: int, tasks: int) -> Iterator[tuple[str, dict[str, int]]]:
    """The folders of the groups that this process is in, and the bounds for a new group below each."""
    own_paths = dict(_memberships())
    # version 1 has a hierarchy per controller; version 2 has one, listed with an empty controller name
    if {"memory", "pids"} <= own_paths.keys():
        yield _folder("memory", own_paths["memory"]), {"memory.limit_in_bytes": memory_bytes}
        yield _folder("pids", own_paths["pids"]), {"pids.max": tasks}
    elif "" in own_paths:
        # version 2: only leaf groups hold processes, so ours must already pass its controllers on to groups below it
        yield _folder("", own_paths[""]), {"memory.max": memory_bytes, "pids.max": tasks}


def _folder(controller: str, path: str) -> str:
    return os.path.join(_ROOT, controller, path.lstrip("/")).rstrip("/")


def _memberships() -> Iterator[tuple[str, str]]:
    with open("/proc/self/cgroup") as file:
        for line in file.read().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                yield controller, path


def _remove_stale(parent: str) -> None:
    """Remove groups that a killed launcher left behind. Raises OSError."""
    for name in os.listdir(parent):
        if name.startswith(_PREFIX) and not os.path.exists(f"/proc/{name.removeprefix(_PREFIX)}"):
            with contextlib.suppress(OSError):
                os.rmdir(f"{parent}/{name}")
