"""The protocol of the trainer, the fork server and its children: packets, descriptors, the mark of a closed jail."""

from __future__ import annotations

import struct
from dataclasses import dataclass

REQUEST = struct.Struct("=IBddQQ")
"""A request: case number, number of processes, CPU seconds, wall seconds, bytes of memory, bytes per file.

`FILES` descriptors per process come with it. If the number of processes is 0, the case of that number is to be ended.
"""
REPLY = struct.Struct("=Id")
"""A reply: case number, wall seconds; one `PROCESS` per process follows."""
PROCESS = struct.Struct("=idQcH")
"""Wait status, CPU seconds, peak resident bytes, why the fork server ended it, and the refused calls it tried.

Why: `-` it did not end it, `c` CPU, `w` wall time, `x` on request, `r` too many refused calls. The refused calls are
one bit for each kind (`seccomp.KINDS`).
"""
FORKED = 0x7FFFFFFF
"""No process has this id. A child that is about to fork tries to signal it: the refused call tells the fork server."""
FILES = 5
"""Descriptors per process: standard input, output, error, the report and the payload."""

REPORT, LINK, PAYLOAD = 3, 4, 5
"""Their numbers in a child: the answer for the judge, the other process of an assert test, the child's task."""
HIGH = 64
"""All other descriptors get this number or a higher one, so that they do not collide with those above."""
READY = b"R"
"""Written over the payload's first byte once the jail is closed. The submission cannot reach that file."""


@dataclass(frozen=True)
class Profile:
    """What the children of one fork server run, and what they may reach."""

    readable: tuple[str, ...]
    """Folders and files of the host that they may read, in addition to the standard library."""
    native: bool = False
    """They execute compilers, shells or other programs that are readable, and may fork. Else they stay warm Pythons."""
    scratch: str = ""
    """A folder with one writable folder per slot, for compilers. A separate file tree has its own instead of it."""


@dataclass(frozen=True)
class ForkServerPlan:
    """The settings of one fork server."""

    slots: int
    profile: Profile
    without: tuple[str, ...] = ()
    """Walls to leave out, to see what a machine without them would give."""
    memory_bytes: int = 1 << 40
    """Memory for it and all its children together, if control groups are available."""
    tasks: int = 1024
    """Processes and threads of it and all its children together, if control groups are available."""
    search: tuple[str, ...] = ()
    """Folders in which modules are found, after the standard library."""
    preload: tuple[str, ...] = ()
    """Modules to import before forking, if they are installed."""
