"""The languages that programs may be in: how each is compiled and started. A new one is a new row."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from dataclasses import dataclass

_NODE = (
    "const c=require('fs').readFileSync(3,'utf8'),M=require('module'),m=new M('/main.js',null);"
    "m.filename='/main.js';m.paths=[];process.argv=['node','/main.js'];m._compile(c,'/main.js')"
)
_BASH = 'IFS= read -r -d "" __program <&3; exec 3<&-; eval "unset __program; $__program"'


@dataclass(frozen=True)
class Language:
    """One language whose programs are executed rather than run by a warm Python."""

    tool: str
    """The command it needs on the machine; without it the language is not to be had."""
    compile: tuple[str, ...] = ()
    """Arguments of `tool`, before the text's name, that make `program` of it; empty where the tool runs the text."""
    run: tuple[str, ...] = ()
    """Arguments with which `tool` runs the text that stands ready as descriptor 3; empty for a compiled program.
    `{memory_mb}` stands for a job's memory."""
    forks: bool = False
    """Its programs are made of processes; all others may only have threads."""
    address_space_mb: int = 0
    """What its runtime reserves without using it, on top of a job's memory."""
    headers: str = ""
    """A header that is compiled once and for all, where programs of this language usually include it."""
    compile_header: tuple[str, ...] = ()
    """Arguments of `tool` that make `program` of the file `main` that includes it."""

    @property
    def path(self) -> str | None:
        """Where the tool is; None where it is not."""
        found = shutil.which(self.tool, path="/usr/bin:/bin")
        return os.path.realpath(found) if found else None


LANGUAGES = {
    "cpp": Language(
        "g++",
        compile=("-std=c++17", "-O2", "-static", "-o", "program", "-x", "c++"),
        headers="bits/stdc++.h",
        compile_header=("-std=c++17", "-O2", "-x", "c++-header", "main", "-o", "program"),
    ),
    "javascript": Language(
        "node", run=("--stack-size=3000", "--max-old-space-size={memory_mb}", "-e", _NODE), address_space_mb=6144
    ),
    "bash": Language("bash", run=("--noprofile", "--norc", "-c", _BASH, "main.sh"), forks=True),
}
"""Besides `python`."""


@functools.cache
def runtime(name: str) -> str | None:
    """A language's tool and version, for results; None where this machine lacks it."""
    path = LANGUAGES[name].path
    if path is None:
        return None
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return f"{LANGUAGES[name].tool} {(said.splitlines() or ['?'])[0]}"
