"""Finds the isolation level by trying: a program that attempts to break out runs in the jail like any submission."""

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
"""A stdin program. It reads the path of a host file and prints which attempts succeeded. Outside a jail all do."""
_FOR_L3 = ("see files", "see parent")
"""Attempts that fail only in namespaces with a separate file tree."""
_LIMITS = Limits(cpu_s=10, wall_s=60, memory_mb=64)


def attempt(server: ForkServerLink | UnjailedServer) -> dict[str, bool]:
    """Run the program of attempts in a jail; for each attempt, whether it succeeded. Raises `ForkServerDied`."""
    path = os.path.abspath(__file__)
    server.send(0, [Payload("program", {"code": ATTEMPTS}, f"{path}\n".encode())], _LIMITS)
    _, _, (ending,) = server.receive()
    return read(ending.stdout.decode("utf-8", "replace")) if ending.shut_in else {}


def level(succeeded: Mapping[str, bool], greeting: Mapping[str, Any], *, native: bool = False) -> str:
    """The isolation level that the attempts prove. Native programs may fork, and without Landlock they get L0."""
    l1_attempts = [name for name in succeeded if name not in _FOR_L3 and not (native and name == "fork")]
    if not l1_attempts or any(succeeded[name] for name in l1_attempts) or not greeting["seccomp"]:
        return "L0"
    # without Landlock only "no file can be opened" protects files, and native programs must open files
    if not greeting["landlock"]:
        return "L0" if native else "L1"
    if not (greeting["namespaces"] and greeting["own_root"]) or any(succeeded.get(name, True) for name in _FOR_L3):
        return "L2"
    return "L4" if greeting["cgroups"] else "L3"


def what_is_lacking(reached: str, required: str, allow_unsafe: bool) -> str:
    """Why the reached isolation level is not enough for the required one; an empty string if it is."""
    if LEVELS.index(reached) < LEVELS.index(required):
        need = next(NEEDS[name] for name in LEVELS if name > reached)
        return (
            f"isolation is {reached} and {required} is required: {need}. `qwq-rl sandbox doctor` shows what works. "
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
"""What each level needs in addition to the one before."""


def read(stdout: str) -> dict[str, bool]:
    """The outcomes that the program of attempts printed; an empty dict if the output is not what it prints."""
    try:
        outcomes = json.loads(stdout)
    except ValueError:
        return {}
    return {str(name): bool(value) for name, value in outcomes.items()} if isinstance(outcomes, dict) else {}
