"""The fork server: a warm interpreter that forks one jailed child per test case, or two for an assert test.

It is started by exec, so its memory holds nothing of the trainer. It never reads a submission, an input or an output:
these are files, and only their descriptors pass through it. So no child can find another one's data in the memory that
it inherits. There are two processes. The launcher enters the namespaces and watches the trainer. The server itself is
the first process of the new process namespace; when it ends, the kernel ends every child with it.

On the control socket each message is one packet (wire.py): first the server's greeting in JSON, then requests and
replies.
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
"""CPU seconds by which a process may be ended early, and the shortest time between two looks at its clock."""
_WATCH_MS = 1000
_ANCILLARY_BYTES = socket.CMSG_SPACE(2 * FILES * 4)
_MAX_NOTICES = 1000
"""A process is ended after so many refused calls, since each one costs the fork server time."""
_WARM = """
    abc array bisect cmath collections contextlib copy dataclasses datetime decimal encodings.ascii encodings.latin_1
    enum fractions functools heapq io itertools json math numbers operator queue random re statistics string struct
    textwrap threading time traceback types typing
"""
"""Modules imported before forking, so that children need not. Each page of memory that they fill makes every fork and
every exit a little slower, so modules that few programs use are not in the list."""
_WARM_WITHOUT_FILES = "calendar encodings.idna hashlib mmap unicodedata"
"""More modules if there is no Landlock: children then cannot open files, so cannot import modules later."""


@dataclass
class _Process:
    pid: int
    handle: int
    """Its process descriptor (pidfd): readable when the process has ended."""
    look_at: float
    """When its CPU clock is read next, by `time.monotonic`."""
    ended_for: bytes = b"-"
    result: bytes | None = None
    seen: int = 0
    """A bit for each kind of refused call (`seccomp.KINDS`) that it tried."""
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
    """Start the server process and stay until it ends or the trainer is gone."""
    trainer = os.getppid()
    groups = None if "cgroups" in plan.without else cgroups.make(plan.memory_bytes, plan.tasks)
    namespaces = jail.leave_host(plan.without)
    # a new process namespace only holds children of the process that made it
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
    os.close(control_fd)  # only the server may hold it open, so that its end is seen by the trainer
    poll = select.poll()
    poll.register(os.pidfd_open(pid), select.POLLIN)
    while not poll.poll(_WATCH_MS):
        if os.getppid() != trainer:
            os.kill(pid, signal.SIGKILL)
    if groups is not None:
        os.waitpid(pid, 0)
        groups.remove()
    os._exit(0)


class ForkServer:
    """Forks children for requests, at most `slots` cases at once, and replies how each child ended."""

    def __init__(self, control: socket.socket, plan: ForkServerPlan, namespaces: bool, grouped: bool) -> None:
        self._control = control
        _warm(plan)  # before the walls: modules are read from files that may be out of reach then
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
        """Handle requests until the other end of the control socket closes."""
        control, listener = self._control.fileno(), self._walls.listener
        gc.collect()
        gc.freeze()  # a collection in a child would otherwise write to, and so copy, every shared page
        self._poll.register(control, select.POLLIN)
        if listener is not None:
            self._poll.register(listener, select.POLLIN)
        while True:
            for fd, event in self._poll.poll(self._poll_timeout()):
                if fd == listener:
                    self._answer_notice(fd)
                elif fd != control:
                    self._reap(fd)
                elif not event & select.POLLIN or not self._receive_request():
                    return
            self._enforce(time.monotonic())

    def _receive_request(self) -> bool:
        """Receive a request and start or cancel its case; False if the control socket was closed."""
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
        for request in [request for request in self._waiting if REQUEST.unpack(request[0])[0] == number]:
            self._waiting.remove(request)
            for file in request[1]:
                os.close(file)
            count = REQUEST.unpack(request[0])[1]
            self._control.send(REPLY.pack(number, 0.0) + PROCESS.pack(signal.SIGKILL, 0.0, 0, b"x", 0) * count)

    def _start(self, case: _RunningCase, count: int, files: list[int], limits: tuple[int, float, int]) -> None:
        links = socket.socketpair() if count == 2 else ()
        for index in range(count):
            process_files = files[index * FILES : (index + 1) * FILES]
            link = links[index].fileno() if links else None
            pid = os.fork()
            if pid == 0:
                try:
                    child.main(self._walls, case.slot, process_files, link, limits)
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
            _kill_group(process.pid)  # before the leader is reaped: no other process can have its number yet
        _, status, usage = os.wait4(process.pid, 0)
        cpu_s = usage.ru_utime + usage.ru_stime
        process.result = PROCESS.pack(status, cpu_s, usage.ru_maxrss * 1024, process.ended_for, process.seen)
        results = [ended.result for ended in case.processes if ended.result is not None]
        if len(results) < len(case.processes):
            return  # the other process of an assert test still runs
        if self._walls.native:
            self._reap_orphans()
        if self._walls.scratch:
            _empty(f"{self._walls.scratch}/{case.slot}")
        del self._cases[case.number]
        self._free.append(case.slot)
        self._control.send(REPLY.pack(case.number, time.monotonic() - case.started) + b"".join(results))
        self._start_waiting()

    def _reap_orphans(self) -> None:
        """Reap orphans of native programs. They were killed with their group, and became the fork server's children."""
        running_pids = {process.pid for _, process in self._running.values()}
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if ended.si_pid in running_pids:
                    return  # `_reap` will handle it; orphans after it wait for the next case
                os.waitpid(ended.si_pid, 0)

    def _answer_notice(self, listener: int) -> None:
        """Answer a refused call. A signal of a process to itself is allowed; all else is recorded and stays refused."""
        notice = seccomp_notify.take(listener)
        if notice is None:
            return
        process = self._process_of(notice.thread)
        if process is None:  # it has ended, or its thread cannot be found without /proc
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
        if process.notices > _MAX_NOTICES:
            self._end(process, b"r")
        seccomp_notify.answer(listener, notice, allow=False)

    def _process_of(self, thread: int) -> _Process | None:
        processes = [process for _, process in self._running.values()]
        for process in processes:
            if process.pid == thread:
                return process
        return next((owner for owner in processes if seccomp_notify.is_thread_of(thread, owner.pid)), None)

    def _poll_timeout(self) -> int | None:
        """Milliseconds until the next running process must be checked; None if none is running."""
        times = [
            min(case.deadline, process.look_at) for case, process in self._running.values() if process.ended_for == b"-"
        ]
        return max(0, int((min(times) - time.monotonic()) * 1000) + 1) if times else None

    def _enforce(self, now: float) -> None:
        for case, process in self._running.values():
            if process.ended_for != b"-":
                continue
            if now >= case.deadline:
                self._end(process, b"w")
            elif now >= process.look_at:
                remaining_s = case.cpu_s - _cpu_seconds(process.pid)
                if remaining_s <= _CPU_SLACK:
                    self._end(process, b"c")
                # threads may use several CPUs at once, so the limit may be reached sooner than in `remaining_s`
                process.look_at = now + max(remaining_s / self._slots, _CPU_SLACK)

    def _end(self, process: _Process, reason: bytes) -> None:
        if process.result is None and process.ended_for == b"-":
            process.ended_for, process.look_at = reason, float("inf")
            signal.pidfd_send_signal(process.handle, signal.SIGKILL)


def _received(control: socket.socket) -> tuple[bytes, list[int]]:
    """Receive a request and its files. `socket.recv_fds` does the same but more slowly."""
    packet, ancillary, _, _ = control.recvmsg(REQUEST.size, _ANCILLARY_BYTES)
    return packet, [file for _, _, data in ancillary for file in memoryview(data)[: len(data) // 4 * 4].cast("i")]


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _empty(folder: str) -> None:
    """Remove everything from a folder that a compiler wrote to."""
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            _empty(entry.path)
            os.rmdir(entry.path)
        else:
            os.unlink(entry.path)


def _cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, read from its clock. The clock's id is made from the process id
    (linux/posix-timers.h).
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0  # already ended


def _address_space() -> int:
    """Bytes of address space that this interpreter has mapped; a job's memory limit is added to it."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        return 128 << 20


def _warm(plan: ForkServerPlan) -> None:
    """Do once what every child would otherwise do: imports, the compiler's first run, the builtins that `site` adds."""
    sys.path += plan.search
    for name in plan.preload:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    random.seed(0)  # every child starts from this state: a verdict must not depend on luck
    can_open = "landlock" not in plan.without and landlock.version() > 0
    for name in () if plan.profile.native else f"{_WARM} {'' if can_open else _WARM_WITHOUT_FILES}".split():
        importlib.import_module(name)
    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D (i.e. EOF)"))
    exec(compile("import math\nclass A:\n def f(self): return [x for x in range(3)]\nA().f()", "warm", "exec"), {})
    ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX = 1: else each thread's own heap would reserve 64 MiB of the limit
    os.environ.clear()
    child.dress()
