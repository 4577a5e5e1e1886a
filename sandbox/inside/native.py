"""Programs that are not run by a warm Python: a compiler builds them in one jail, another jail executes them."""

from __future__ import annotations

import os
import sys
from typing import Any

from qwq_rl.sandbox.inside.wire import REPORT

_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8", "OPENSSL_CONF": "/dev/null"}


def build(payload: dict[str, Any]) -> None:
    """Compile the text from standard input, as the file `main`, and write the program to standard output."""
    environment = {**_ENVIRONMENT, "TMPDIR": "."}
    with open("main", "wb") as source:
        source.write(sys.stdin.buffer.read())
    # what the compiler prints must not mix with the program
    null = os.open("/dev/null", os.O_WRONLY)
    quiet = [(os.POSIX_SPAWN_DUP2, null, 1)]
    pid = os.posix_spawn(payload["argv"][0], payload["argv"], environment, file_actions=quiet)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0:
        os._exit(1)
    with open("program", "rb") as program:
        while block := program.read(1 << 20):
            os.write(1, block)
    os._exit(0)


def start(payload: dict[str, Any]) -> None:
    """Become the program: execute the report file, which holds it, or an interpreter that reads it from there."""
    argv = payload["argv"]
    os.execve(argv[0] if argv[0] else REPORT, argv if argv[0] else ["main"], _ENVIRONMENT)
