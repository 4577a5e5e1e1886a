"""What one mother is for: the trainer's end writes it, the mother reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outfit:
    """What the children of one mother are for, and so what they may reach."""

    readable: tuple[str, ...]
    """Folders and files of the host that they may read, besides the standard library."""
    native: bool = False
    """They fork, and execute what is readable: compilers, shells, other interpreters. Else they are warm Pythons."""
    scratch: str = ""
    """The folder that compilers write in, one below it a slot; in a file tree of its own it is another one."""


@dataclass(frozen=True)
class Plan:
    """One mother."""

    slots: int
    outfit: Outfit
    without: tuple[str, ...] = ()
    """Walls that are left out, to see what a machine that lacks them would give."""
    memory_bytes: int = 1 << 40
    """What she and all her children may have together, where control groups can be had."""
    tasks: int = 1024
    """As many processes and threads they may be, likewise."""
    search: tuple[str, ...] = ()
    """Folders that modules are found in, after the standard library."""
    preload: tuple[str, ...] = ()
    """Modules imported before forking, where they are installed."""
