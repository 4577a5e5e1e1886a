"""The kinds of fork servers: what their children may read, and which modules are imported in advance."""

from __future__ import annotations

import functools
import glob
import os
import re
import sysconfig
from collections.abc import Collection
from typing import Literal

from qwq_rl.sandbox.compiled import header_folder
from qwq_rl.sandbox.inside.wire import ForkServerPlan, Profile

Kind = Literal["lean", "scientific", "native"]
"""`lean`: warm Python with the standard library. `scientific`: also with numpy and similar packages. `native`:
compilers and programs that are executed."""

_LIBRARIES = ("/lib/*-linux-*", "/usr/lib/*-linux-*", "/lib64", "/usr/lib64", "/etc/ld.so.cache")
_TOOLS = ("/bin", "/usr/bin", "/lib", "/usr/lib", "/usr/libexec", "/usr/include", "/etc/alternatives")
_PACKAGES = {
    "numpy": ("numpy", "numpy.libs"),
    "scipy": ("scipy", "scipy.libs"),
    "sympy": ("sympy", "mpmath"),
    "mpmath": ("mpmath",),
    "networkx": ("networkx",),
    "pandas": ("pandas", "pandas.libs", "dateutil", "pytz", "six.py", "tzdata"),
    "sortedcontainers": ("sortedcontainers",),
}
"""Packages that a submission may import if they are installed, and the folders and files that each consists of."""
_PRELOADED = ("numpy", "sympy", "networkx", "sortedcontainers")
_MENTIONS = re.compile(rf"\b(?:{'|'.join(_PACKAGES)})\b")
_THREADS = 64
"""Threads and processes that one case may have."""
_SHARE = 0.8
"""The share of the machine's memory for a fork server and all its children; the rest keeps the machine alive."""


def kind_of(code: str) -> Kind:
    """The pool for a Python program: `scientific` if its text names one of the packages and any is installed."""
    return "scientific" if _MENTIONS.search(code) and _installed() else "lean"


def plan(kind: Kind, slots: int, without: Collection[str], scratch: str = "") -> ForkServerPlan:
    """The plan for a fork server of a kind. `scratch`: the folder for compilers, unless the file tree gets its own."""
    patterns = (*_LIBRARIES, *_TOOLS) if kind == "native" else _LIBRARIES
    readable = [path for pattern in patterns for path in sorted(glob.glob(pattern))]
    search: tuple[str, ...] = ()
    if kind == "native" and (folder := header_folder()):
        readable.append(folder)
    if kind == "scientific":
        readable += _installed()
        search = tuple(sorted({os.path.dirname(path) for path in _installed()}))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return ForkServerPlan(
        slots,
        Profile(tuple(readable), native=kind == "native", scratch=scratch),
        tuple(sorted(without)),
        memory_bytes=int(memory * _SHARE),
        tasks=slots * _THREADS + 16,  # 16 for the fork server itself
        search=search,
        preload=_PRELOADED if kind == "scientific" else (),
    )


@functools.cache
def _installed() -> list[str]:
    """The paths of the scientific packages of this interpreter."""
    homes = [os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    names = {part for parts in _PACKAGES.values() for part in parts}
    return sorted({path for home in homes for name in names if os.path.exists(path := f"{home}/{name}")})
