"""The languages besides Python: how programs are compiled and started. To add a language, add a row to `LANGUAGES`."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from dataclasses import dataclass

# both read the program's text from descriptor 3, so that standard input stays free for the test's input
_NODE = (
    "const c=require('fs').readFileSync(3,'utf8'),M=require('module'),m=new M('/main.js',null);"
    "m.filename='/main.js';m.paths=[];process.argv=['node','/main.js'];m._compile(c,'/main.js')"
)
_BASH = 'IFS= read -r -d "" __program <&3; exec 3<&-; eval "unset __program; $__program"'


@dataclass(frozen=True)
class Language:
    """A language whose programs are executed as separate programs, not run inside a warm Python interpreter."""

    tool: str
    """The command that the machine must have; without it the language is not available."""
    compile: tuple[str, ...] = ()
    """Arguments of `tool`, before the source file's name, to compile it to `program`; empty if `tool` runs the text."""
    run: tuple[str, ...] = ()
    """Arguments with which `tool` runs the text from descriptor 3; empty for a compiled program. `{memory_mb}` is
    replaced by the job's memory limit."""
    forks: bool = False
    """Its programs start processes. Programs of other languages may only have threads."""
    address_space_mb: int = 0
    """MiB that its runtime reserves without using them, on top of the job's memory."""
    headers: str = ""
    """A header that programs of this language usually include; it is compiled once and reused."""
    compile_header: tuple[str, ...] = ()
    """Arguments of `tool` to compile the file `main`, which includes the header, to the file `program`."""

    @property
    def path(self) -> str | None:
        """The path of the tool; None if it is not installed."""
        tool_path = shutil.which(self.tool, path="/usr/bin:/bin")
        return os.path.realpath(tool_path) if tool_path else None


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
"""All languages but `python`."""


@functools.cache
def runtime(name: str) -> str | None:
    """A language's tool and version, for results; None if this machine lacks it."""
    path = LANGUAGES[name].path
    if path is None:
        return None
    version_text = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return f"{LANGUAGES[name].tool} {(version_text.splitlines() or ['?'])[0]}"
