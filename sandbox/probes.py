"""What a jailed program can do, tried rather than assumed: a program of attempts runs like any submission."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from qwq_rl.sandbox.fork_server_link import ForkServerLink, Payload
from qwq_rl.sandbox.protocol import LEVELS, Limits
from qwq_rl.sandbox.unjailed import UnjailedServer

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
    "see files": attempt(lambda: os.stat(path)),
    "see parent": attempt(lambda: os.getppid() > 1),
}))
"""
"""A stdin program: reads the path of a file of the host, prints which attempts succeeded. Outside a jail all do."""
_FOR_L3 = ("see files", "see parent")
"""Attempts that only namespaces and a file tree of its own make fail."""
_LIMITS = Limits(cpu_s=10, wall_s=60, memory_mb=64)


def attempt(server: ForkServerLink | UnjailedServer) -> dict[str, bool]:
    """Run the program of attempts in a jail. Raises `ForkServerDied`."""
    path = os.path.abspath(__file__)
    server.send(0, [Payload("program", {"code": ATTEMPTS}, f"{path}\n".encode())], _LIMITS)
    _, _, (ending,) = server.receive()
    return read(ending.stdout.decode("utf-8", "replace")) if ending.shut_in else {}


def level(succeeded: Mapping[str, bool], greeting: Mapping[str, Any], *, native: bool = False) -> str:
    """The isolation that the attempts prove; native programs may fork, and need Landlock for any level at all."""
    base = [name for name in succeeded if name not in _FOR_L3 and not (native and name == "fork")]
    if not base or any(succeeded[name] for name in base) or not greeting["seccomp"]:
        return "L0"
    if not greeting["landlock"]:
        return "L0" if native else "L1"
    if not (greeting["namespaces"] and greeting["own_root"]) or any(succeeded.get(name, True) for name in _FOR_L3):
        return "L2"
    return "L4" if greeting["cgroups"] else "L3"


def what_is_lacking(reached: str, required: str, allow_unsafe: bool) -> str:
    """Why a machine that reaches one level does not do for another; empty where it does."""
    if LEVELS.index(reached) < LEVELS.index(required):
        wanting = next(NEEDS[name] for name in LEVELS if name > reached)
        return (
            f"isolation is {reached} and {required} is required: {wanting}. `qwq-rl sandbox doctor` shows what works. "
            "LocalSandbox(allow_unsafe=True) runs trusted code"
        )
    if reached == "L0" and not allow_unsafe:
        return "isolation is L0: say LocalSandbox(allow_unsafe=True) to run trusted code without walls"
    return ""


NEEDS = {
    "L1": "the kernel must allow seccomp filters, or programs could reach the network or other processes",
    "L2": "the kernel must have Landlock (5.13 or later) and allow it",
    "L3": "the machine must allow user namespaces, or root's own, and mounts in them",
    "L4": "this user must be able to make control groups for memory and pids",
}
"""What each level needs beyond the one before it."""


def read(stdout: str) -> dict[str, bool]:
    """What the program of attempts printed; empty where it printed nothing sensible."""
    try:
        found = json.loads(stdout)
    except ValueError:
        return {}
    return {str(name): bool(value) for name, value in found.items()} if isinstance(found, dict) else {}
