"""The warm interpreter that forks one jailed child a test case, or two for an assert test.

Started by exec, so nothing of the trainer is in its memory. It never reads a submission, an input or an output: those
are files whose descriptors pass through it, so no child can find another's in the memory it inherits. Two processes:
the launcher enters the namespaces and watches the trainer; the server proper is the first process of the new process
namespace, whose end takes every child with it.

Over the control socket, one packet each (wire.py): first its greeting in JSON, then requests and replies.
"""

from __future__ import annotations

import _sitebuiltins
import builtins
import contextlib
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
from collections import deque
from dataclasses import dataclass, field

from qwq_rl.sandbox.inside import cgroups, child, jail, landlock, seccomp, seccomp_notify
from qwq_rl.sandbox.inside.wire import FILES, FORKED, PROCESS, REPLY, REQUEST, ForkServerPlan

_CPU_SLACK = 0.002
_WATCH_MS = 1000
_ROOM = socket.CMSG_SPACE(2 * FILES * 4)
_MOST_NOTICES = 1000
"""Refused calls after which a process is ended: each costs the fork server time."""
_WARM = """
    abc array bisect cmath collections contextlib copy dataclasses datetime decimal encodings.ascii encodings.latin_1
    enum fractions functools heapq io itertools json math numbers operator queue random re statistics string struct
    textwrap threading time traceback types typing
"""
"""Imported before forking: children find them ready. Every page that they fill costs each fork and each exit a little,
so that what few programs name is not here."""
_WARM_BEHIND_WALLS = "calendar encodings.idna hashlib mmap unicodedata"
"""Where no file can be opened, for want of Landlock, what is not imported by then cannot be had."""


@dataclass
class _Process:
    pid: int
    handle: int
    """Its descriptor: readable when it has ended."""
    look_at: float
    """When its CPU clock is read next."""
    ended_for: bytes = b"-"
    result: bytes | None = None
    seen: int = 0
    """A bit for each kind of refused call."""
    notices: int = 0


@dataclass
class _RunningCase:
    number: int
    slot: int
    cpu_s: float
    started: float
    deadline: float
    processes: list[_Process] = field(default_factory=list)


def main(control_fd: int, plan: ForkServerPlan) -> None:
    """Launch, and stay until the trainer is gone."""
    trainer = os.getppid()
    groups = None if "cgroups" in plan.without else cgroups.make(plan.memory_bytes, plan.tasks)
    namespaces = jail.leave_host(plan.without)
    pid = os.fork()
    if pid == 0:
        jail.die_with_parent()
        try:
            grouped = groups is not None and cgroups.enter(groups)
            for file in () if groups is None else (*groups.parents, *groups.members):
                os.close(file)
            control = socket.socket(fileno=control_fd)
            ForkServer(control, plan, namespaces, grouped).serve()
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
    if groups is not None:
        os.waitpid(pid, 0)
        groups.remove()
    os._exit(0)


class ForkServer:
    """Forks children as requests come, at most `slots` cases at once, and says how each ended."""

    def __init__(self, control: socket.socket, plan: ForkServerPlan, namespaces: bool, grouped: bool) -> None:
        self._control = control
        _warm(plan)
        self._memory = _address_space()
        self._walls = jail.prepare(plan.profile, namespaces, grouped, plan.slots, plan.without)
        self._free = list(range(plan.slots))
        self._slots = plan.slots
        self._cases: dict[int, _RunningCase] = {}
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._running: dict[int, tuple[_RunningCase, _Process]] = {}
        self._poll = select.poll()
        greeting = {
            "seccomp": self._walls.filter is not None,
            "landlock": self._walls.landlock,
            "namespaces": namespaces,
            "own_root": self._walls.own_root,
            "own_user": self._walls.own_user,
            "cgroups": grouped,
            "notices": self._walls.listener is not None,
            "runtime": f"python {sys.version_info.major}.{sys.version_info.minor}",
        }
        control.send(json.dumps(greeting).encode())

    def serve(self) -> None:
        """Until the other end of the control socket closes."""
        control, listener = self._control.fileno(), self._walls.listener
        gc.collect()
        gc.freeze()
        self._poll.register(control, select.POLLIN)
        if listener is not None:
            self._poll.register(listener, select.POLLIN)
        while True:
            for fd, event in self._poll.poll(self._patience()):
                if fd == listener:
                    self._hear(fd)
                elif fd != control:
                    self._reap(fd)
                elif not event & select.POLLIN or not self._take():
                    return
            self._enforce(time.monotonic())

    def _take(self) -> bool:
        """The next request; False at the end."""
        packet, files = _received(self._control)
        if not packet:
            return False
        number, count, *_ = REQUEST.unpack(packet)
        if count:
            self._waiting.append((packet, files))
            self._start_waiting()
        else:
            self._cancel(number)
        return True

    def _start_waiting(self) -> None:
        while self._free and self._waiting:
            packet, files = self._waiting.popleft()
            number, count, cpu_s, wall_s, memory, file_bytes = REQUEST.unpack(packet)
            now = time.monotonic()
            case = self._cases[number] = _RunningCase(number, self._free.pop(), cpu_s, now, now + wall_s)
            self._start(case, count, files, (self._memory + memory, cpu_s, file_bytes))

    def _cancel(self, number: int) -> None:
        if number in self._cases:
            for process in self._cases[number].processes:
                self._end(process, b"x")
        for item in [item for item in self._waiting if REQUEST.unpack(item[0])[0] == number]:
            self._waiting.remove(item)
            for file in item[1]:
                os.close(file)
            count = REQUEST.unpack(item[0])[1]
            self._control.send(REPLY.pack(number, 0.0) + PROCESS.pack(signal.SIGKILL, 0.0, 0, b"x", 0) * count)

    def _start(self, case: _RunningCase, count: int, files: list[int], limits: tuple[int, float, int]) -> None:
        links = socket.socketpair() if count == 2 else ()
        for place in range(count):
            mine = files[place * FILES : (place + 1) * FILES]
            link = links[place].fileno() if links else None
            pid = os.fork()
            if pid == 0:
                try:
                    child.main(self._walls, case.slot, mine, link, limits)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(1)
            process = _Process(pid, os.pidfd_open(pid), case.started + case.cpu_s)
            case.processes.append(process)
            self._running[process.handle] = (case, process)
            self._poll.register(process.handle, select.POLLIN)
        for file in files:
            os.close(file)
        for end in links:
            end.close()

    def _reap(self, handle: int) -> None:
        case, process = self._running.pop(handle)
        self._poll.unregister(handle)
        os.close(handle)
        if self._walls.native:
            _kill_group(process.pid)  # while its leader is not reaped, the number is nobody else's
        _, status, usage = os.wait4(process.pid, 0)
        cpu_s = usage.ru_utime + usage.ru_stime
        process.result = PROCESS.pack(status, cpu_s, usage.ru_maxrss * 1024, process.ended_for, process.seen)
        results = [item.result for item in case.processes if item.result is not None]
        if len(results) < len(case.processes):
            return
        if self._walls.native:
            self._reap_orphans()
        if self._walls.scratch:
            _empty(f"{self._walls.scratch}/{case.slot}")
        del self._cases[case.number]
        self._free.append(case.slot)
        self._control.send(REPLY.pack(case.number, time.monotonic() - case.started) + b"".join(results))
        self._start_waiting()

    def _reap_orphans(self) -> None:
        """What native programs left and was ended with their group has come to the fork server."""
        known = {process.pid for _, process in self._running.values()}
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if ended.si_pid in known:
                    return  # its own turn comes; orphans behind it wait for the next case
                os.waitpid(ended.si_pid, 0)

    def _hear(self, listener: int) -> None:
        """Answer a refused call: signals to oneself are let through, all else is noted and stays refused."""
        notice = seccomp_notify.take(listener)
        if notice is None:
            return
        process = self._process_of(notice.thread)
        if process is None:
            seccomp_notify.answer(listener, notice, allow=False)
            return
        about_signal = seccomp.names_target(notice.call)
        if about_signal and notice.target in (process.pid, 0):
            seccomp_notify.answer(listener, notice, allow=notice.target == process.pid)
            return
        kind = seccomp.kind_of(notice.call, notice.target, native=self._walls.native)
        if about_signal and notice.target == FORKED:
            kind = seccomp.KINDS.index("process")
        process.seen |= 0 if kind is None else 1 << kind
        process.notices += 1
        if process.notices > _MOST_NOTICES:
            self._end(process, b"r")
        seccomp_notify.answer(listener, notice, allow=False)

    def _process_of(self, thread: int) -> _Process | None:
        processes = [process for _, process in self._running.values()]
        for process in processes:
            if process.pid == thread:
                return process
        return next((item for item in processes if seccomp_notify.is_thread_of(thread, item.pid)), None)

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
        if process.result is None and process.ended_for == b"-":
            process.ended_for, process.look_at = reason, float("inf")
            signal.pidfd_send_signal(process.handle, signal.SIGKILL)


def _received(control: socket.socket) -> tuple[bytes, list[int]]:
    """A request and its files; `socket.recv_fds` makes more of it and costs each case more."""
    packet, held, _, _ = control.recvmsg(REQUEST.size, _ROOM)
    return packet, [file for _, _, data in held for file in memoryview(data)[: len(data) // 4 * 4].cast("i")]


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _empty(folder: str) -> None:
    """Remove everything in a folder that a compiler wrote in."""
    for item in list(os.scandir(folder)):
        if item.is_dir(follow_symlinks=False):
            _empty(item.path)
            os.rmdir(item.path)
        else:
            os.unlink(item.path)


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


def _warm(plan: ForkServerPlan) -> None:
    """Do once what every child would otherwise do: imports, the compiler's first run, what `site` adds to builtins."""
    sys.path += plan.search
    for name in plan.preload:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    random.seed(0)  # every child starts from here: a verdict must not depend on luck
    opens = "landlock" not in plan.without and landlock.version() > 0
    for name in () if plan.profile.native else f"{_WARM} {'' if opens else _WARM_BEHIND_WALLS}".split():
        importlib.import_module(name)
    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D (i.e. EOF)"))
    exec(compile("import math\nclass A:\n def f(self): return [x for x in range(3)]\nA().f()", "warm", "exec"), {})
    ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX: threads share one heap, or each would reserve 64 MiB of the limit
    os.environ.clear()
    child.dress()
