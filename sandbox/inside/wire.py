"""What the trainer, the fork server and its children agree on: packets, descriptors, the mark of a closed jail."""

from __future__ import annotations

import struct
from dataclasses import dataclass

REQUEST = struct.Struct("=IBddQQ")
"""Case number, processes, CPU seconds, wall seconds, bytes of memory, bytes a file; `FILES` descriptors a process.

No processes: the case of that number is to be ended.
"""
REPLY = struct.Struct("=Id")
"""Case number, wall seconds; one `PROCESS` a process follows."""
PROCESS = struct.Struct("=idQcH")
"""Wait status, CPU seconds, largest resident bytes, what the server ended it for: `-`, `c` CPU, `w` wall, `x` since it
was told to, `r` too many refused calls; and a bit for each kind of refused call (seccomp.py) it was seen to try."""
FORKED = 0x7FFFFFFF
"""No process: a child asks to signal it, and is refused, so that the fork server hears of a fork."""
FILES = 5
"""Standard input, output, error, the report and the payload."""

REPORT, LINK, PAYLOAD = 3, 4, 5
"""Where a child has them: what the judge reads, the other half of an assert test, what it is to do."""
HIGH = 64
"""Other descriptors are kept from here on, clear of those."""
READY = b"R"
"""Written over the payload's first byte once the jail is shut; the submission has no way to that file."""


@dataclass(frozen=True)
class Profile:
    """What the children of one fork server are for, and so what they may reach."""

    readable: tuple[str, ...]
    """Folders and files of the host that they may read, besides the standard library."""
    native: bool = False
    """They fork, and execute what is readable: compilers, shells, other interpreters. Else they are warm Pythons."""
    scratch: str = ""
    """The folder that compilers write in, one below it a slot; in a file tree of its own it is another one."""


@dataclass(frozen=True)
class ForkServerPlan:
    """One fork server."""

    slots: int
    profile: Profile
    without: tuple[str, ...] = ()
    """Walls that are left out, to see what a machine that lacks them would give."""
    memory_bytes: int = 1 << 40
    """What it and all its children may have together, where control groups can be had."""
    tasks: int = 1024
    """As many processes and threads they may be, likewise."""
    search: tuple[str, ...] = ()
    """Folders that modules are found in, after the standard library."""
    preload: tuple[str, ...] = ()
    """Modules imported before forking, where they are installed."""
