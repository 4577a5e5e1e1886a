"""What a jailed program can do, tried rather than assumed: a program of attempts runs like any submission."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

ATTEMPTS = """
import json, mmap, os, resource, socket, sys

def attempt(action):
    try:
        return action() is not False
    except BaseException:
        return False

def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

def open_file(path, flags):
    os.close(os.open(path, flags))

path = sys.stdin.readline().strip()
print(json.dumps({
    "network": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()),
    "fork": attempt(fork),
    "signal": attempt(lambda: os.kill(os.getppid(), 0)),
    "limits": attempt(lambda: resource.setrlimit(resource.RLIMIT_CPU, (900, 900))),
    "memory": attempt(lambda: mmap.mmap(-1, 1 << 30).close()),
    "read": attempt(lambda: open_file(path, os.O_RDONLY)),
    "list": attempt(lambda: os.listdir("/")),
    "write": attempt(lambda: open_file("/tmp", os.O_TMPFILE | os.O_WRONLY)),
}))
"""
"""A stdin program: reads the path of a file of the host, prints which attempts succeeded. Outside a jail all do."""


def level(succeeded: Mapping[str, bool], greeting: Mapping[str, Any]) -> str:
    """The isolation that the attempts prove: L1 if all failed in a seccomp filter, L2 if Landlock holds too."""
    if not succeeded or any(succeeded.values()) or not greeting["seccomp"]:
        return "L0"
    return "L2" if greeting["landlock"] else "L1"


def read(stdout: str) -> dict[str, bool]:
    """What the program of attempts printed; empty where it printed nothing sensible."""
    try:
        found = json.loads(stdout)
    except ValueError:
        return {}
    return {str(name): bool(value) for name, value in found.items()} if isinstance(found, dict) else {}
