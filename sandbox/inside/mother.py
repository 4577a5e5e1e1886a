"""The warm interpreter that forks one jailed child a test case, or two for an assert test.

Started by exec, so nothing of the trainer is in its memory. It never reads a submission, an input or an output: those
are files whose descriptors pass through it, so no child can find another's in the memory it inherits. Two processes:
the launcher enters the namespaces and watches the trainer; the mother proper is the first process of the new process
namespace, whose end takes every child with it.

Over the control socket, one packet each (wire.py): first a greeting in JSON from the mother, then requests and replies.
"""

from __future__ import annotations

import _sitebuiltins
import builtins
import ctypes
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Collection
from dataclasses import dataclass, field

from qwq_rl.sandbox.inside import child, jail
from qwq_rl.sandbox.inside.wire import FILES, PROCESS, REPLY, REQUEST

_CPU_SLACK = 0.002
_WATCH_MS = 1000
_WARM = """
    abc array bisect calendar cmath collections contextlib copy dataclasses datetime decimal encodings.ascii
    encodings.idna encodings.latin_1 enum fractions functools hashlib heapq io itertools json math mmap numbers operator
    queue random re statistics string struct textwrap threading time traceback types typing unicodedata
"""
"""Imported before forking: children find them ready."""


@dataclass
class _Process:
    pid: int
    look_at: float
    """When its CPU clock is read next."""
    ended_for: bytes = b"-"
    result: bytes | None = None


@dataclass
class _Case:
    number: int
    cpu_s: float
    started: float
    deadline: float
    processes: list[_Process] = field(default_factory=list)


def main(control_fd: int, slots: int, without: Collection[str]) -> None:
    """Launch, and stay until the trainer is gone."""
    trainer = os.getppid()
    namespaces = jail.leave_host(without)
    pid = os.fork()
    if pid == 0:
        jail.die_with_parent()
        try:
            control = socket.socket(fileno=control_fd)
            Mother(control, slots, namespaces, without).serve()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(control_fd)
    watched = select.poll()
    watched.register(os.pidfd_open(pid), select.POLLIN)
    while not watched.poll(_WATCH_MS):
        if os.getppid() != trainer:
            os.kill(pid, signal.SIGKILL)
    os._exit(0)


class Mother:
    """Forks children as requests come, at most `slots` cases at once, and says how each ended."""

    def __init__(self, control: socket.socket, slots: int, namespaces: bool, without: Collection[str]) -> None:
        self._control, self._slots = control, slots
        _warm()
        self._memory = _address_space()
        self._walls = jail.prepare(namespaces, slots, without)
        self._cases: dict[int, _Case] = {}
        self._running: dict[int, tuple[_Case, _Process]] = {}
        self._poll = select.poll()
        greeting = {
            "seccomp": self._walls.filter is not None,
            "landlock": self._walls.landlock,
            "namespaces": namespaces,
            "own_user": self._walls.threads is not None,
            "runtime": f"python {sys.version_info.major}.{sys.version_info.minor}",
        }
        control.send(json.dumps(greeting).encode())

    def serve(self) -> None:
        """Until the other end of the control socket closes."""
        control = self._control.fileno()
        gc.collect()
        gc.freeze()
        while True:
            # a full house takes no requests, but hears the trainer leave
            self._poll.register(control, select.POLLIN if len(self._cases) < self._slots else 0)
            for fd, event in self._poll.poll(self._patience()):
                if fd != control:
                    self._reap(fd)
                elif not event & select.POLLIN or not self._start():
                    return
            self._enforce(time.monotonic())

    def _start(self) -> bool:
        packet, files, _, _ = socket.recv_fds(self._control, REQUEST.size, 2 * FILES)
        if not packet:
            return False
        number, count, cpu_s, wall_s, memory, file_bytes = REQUEST.unpack(packet)
        now = time.monotonic()
        case = _Case(number, cpu_s, now, now + wall_s)
        links = socket.socketpair() if count == 2 else ()
        for place in range(count):
            mine = files[place * FILES : (place + 1) * FILES]
            link = links[place].fileno() if links else None
            pid = os.fork()
            if pid == 0:
                try:
                    child.main(self._walls, mine, link, (self._memory + memory, cpu_s, file_bytes))
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(1)
            process = _Process(pid, now + cpu_s)
            case.processes.append(process)
            handle = os.pidfd_open(pid)
            self._running[handle] = (case, process)
            self._poll.register(handle, select.POLLIN)
        for file in files:
            os.close(file)
        for end in links:
            end.close()
        self._cases[number] = case
        return True

    def _reap(self, handle: int) -> None:
        case, process = self._running.pop(handle)
        self._poll.unregister(handle)
        os.close(handle)
        _, status, usage = os.wait4(process.pid, 0)
        cpu_s = usage.ru_utime + usage.ru_stime
        process.result = PROCESS.pack(status, cpu_s, usage.ru_maxrss * 1024, process.ended_for)
        results = [item.result for item in case.processes if item.result is not None]
        if len(results) == len(case.processes):
            del self._cases[case.number]
            self._control.send(REPLY.pack(case.number, time.monotonic() - case.started) + b"".join(results))

    def _patience(self) -> int | None:
        """Milliseconds to the next time a running process must be looked at."""
        looks = [min(case.deadline, item.look_at) for case, item in self._running.values() if item.ended_for == b"-"]
        return max(0, int((min(looks) - time.monotonic()) * 1000) + 1) if looks else None

    def _enforce(self, now: float) -> None:
        for case, process in self._running.values():
            if process.ended_for != b"-":
                continue
            if now >= case.deadline:
                self._end(process, b"w")
            elif now >= process.look_at:
                left = case.cpu_s - _cpu_seconds(process.pid)
                if left <= _CPU_SLACK:
                    self._end(process, b"c")
                process.look_at = now + max(left / self._slots, _CPU_SLACK)

    def _end(self, process: _Process, reason: bytes) -> None:
        process.ended_for, process.look_at = reason, float("inf")
        os.kill(process.pid, signal.SIGKILL)


def _cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process: its clock, whose id is made of the process id (linux/posix-timers.h)."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0  # already ended


def _address_space() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        return 128 << 20


def _warm() -> None:
    """Do once what every child would otherwise do: imports, the compiler's first run, what `site` adds to builtins."""
    random.seed(0)  # every child starts from here: a verdict must not depend on luck
    for name in _WARM.split():
        importlib.import_module(name)
    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D (i.e. EOF)"))
    exec(compile("import math\nclass A:\n def f(self): return [x for x in range(3)]\nA().f()", "warm", "exec"), {})
    ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX: threads share one heap, or each would reserve 64 MiB of the limit
    os.environ.clear()
