"""The walls of the jail. Once for the fork server: namespaces, file tree, user id. For every child: limits, Landlock,
seccomp. Read `Walls`, `prepare` and `enter` first.

Constants: linux/prctl.h, linux/sched.h, linux/capability.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import glob
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from qwq_rl.sandbox.inside import file_tree, landlock, seccomp, seccomp_notify
from qwq_rl.sandbox.inside.wire import HIGH, Profile

_NEW_USER, _NEW_PID, _NEW_NET, _NEW_IPC, _NEW_UTS = 0x10000000, 0x20000000, 0x40000000, 0x08000000, 0x04000000
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _SET_SUBREAPER, _SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
_CAPABILITY_VERSION_3 = 0x20080522
_FIRST_UID = 0x70000000
"""No user has an id from here on. A fork server that starts as root takes one of these ids for itself."""
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_OPEN_FILES, _SERVER_FILES, _THREADS, _SCRATCH_MB = 64, 1024, 64, 512
_OTHERS_GROWTH = 1024
"""If others use the same user id: how many more threads than now may run under it, including those of programs."""
_SIGNALS_SCOPED = 6
"""From this version on, Landlock can stop signals to processes outside."""

_HARD = {
    kind: resource.getrlimit(kind)[1]
    for kind in map(resource.__dict__.__getitem__, ("RLIMIT_CPU", "RLIMIT_AS", "RLIMIT_FSIZE", "RLIMIT_NPROC"))
} | {resource.RLIMIT_NOFILE: _SERVER_FILES}
"""The hard limits that the fork server started with; a child cannot get more."""
_DIE_WITH_PARENT = (_SET_PDEATHSIG, *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0)))

_libc = ctypes.CDLL(None, use_errno=True)


class Filter:
    """A seccomp program. All that its installation needs is prepared once, so that children have little to do."""

    def __init__(self, program: bytes) -> None:
        self._program = program
        self._names_process = seccomp.names_process(program)
        self._arguments = self._prepared(program)

    def install(self) -> None:
        """Install the filter in this process; it cannot be removed. Raises OSError."""
        arguments = self._arguments
        if self._names_process:
            arguments = self._prepared(seccomp.of_process(self._program, os.getpid()))
        if _libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "seccomp")

    @staticmethod
    def _prepared(program: bytes) -> tuple[Any, ...]:
        header = seccomp_notify.FilterProgram(len(program) // 8, ctypes.cast(ctypes.c_char_p(program), ctypes.c_void_p))
        zero = ctypes.c_ulong(0)
        return _SET_SECCOMP, ctypes.c_ulong(2), ctypes.byref(header), zero, zero


@dataclass(frozen=True)
class Walls:
    """The walls that the fork server can put around a child on this machine."""

    namespaces: bool
    """There are separate network, IPC, UTS and process namespaces."""
    own_root: bool
    """There is a separate file tree that holds only what programs may read."""
    own_user: bool
    """The user id is used by nothing else, or there is a user namespace, which counts its processes separately."""
    threads: int | None
    """How many threads and processes may run under this user id; None if the kernel does not limit it (root)."""
    bounded: bool
    """`threads` or a control group bounds the number of processes. Only then may programs start processes."""
    filter: Filter | None
    """The short seccomp program that a child adds to the fork server's; None if none can be installed."""
    forking: Filter | None
    """The same for children that may start processes."""
    limits: bool
    """Whether resource limits are set."""
    listener: int | None
    """The descriptor on which the kernel reports refused calls; None if it reports none."""
    rules: tuple[int, ...]
    """File descriptors of the Landlock rules, one per slot for native programs, else one; empty without Landlock."""
    landlock: int
    """The version of Landlock in use; 0 if it is not used."""
    scratch: str
    """The folder with one writable folder per slot; an empty string for none."""
    native: bool


def leave_host(without: Collection[str]) -> bool:
    """Enter new network, IPC, UTS and (for children) process namespaces; False if the machine forbids it."""
    if "namespaces" in without:
        return False
    flags = _NEW_PID | _NEW_NET | _NEW_IPC | _NEW_UTS
    uid, gid = os.getuid(), os.getgid()
    # root needs no user namespace; others get these rights only inside one
    if _libc.unshare(flags) == 0:
        socket.sethostname("sandbox")
        return True
    if _libc.unshare(flags | _NEW_USER) != 0:
        return False
    # setgroups first: only then may an ordinary user write gid_map (user_namespaces(7))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    socket.sethostname("sandbox")
    return True


def prepare(profile: Profile, namespaces: bool, grouped: bool, slots: int, without: Collection[str]) -> Walls:
    """Give up every privilege and prepare the walls for children. Each wall is first tried in a forked child."""
    user_namespace = namespaces and os.geteuid() != 0
    readable = [*profile.readable, os.path.dirname(os.__file__)]
    # the order matters: mounts need the privileges that the change of user and the capabilities' end take away
    own_root = namespaces and "root" not in without and _enter_own_tree(readable, profile)
    scratch = file_tree.SCRATCH if own_root and profile.scratch else profile.scratch
    own_user = _take_own_uid(scratch) or user_namespace
    threads = _THREADS * slots if own_user else None
    if threads is None and os.getuid() != 0:
        threads = _tasks_of_user() + _OTHERS_GROWTH
    _drop_capabilities()
    prctl(_SET_DUMPABLE, 1)  # a change of user turns it off, and then /dev/stdin could not be opened
    prctl(_SET_NO_NEW_PRIVS, 1)  # Landlock and seccomp need it
    if profile.native:
        prctl(_SET_SUBREAPER, 1)  # orphans of native programs come to the fork server, which reaps them
    die_with_parent()  # again: a change of user clears it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, _SERVER_FILES)
    version = 0 if "landlock" in without else landlock.version()
    folders = [f"{scratch}/{slot}" if scratch else None for slot in range(slots)]
    for folder in folders:
        if folder:
            os.mkdir(folder, 0o700)
    rules = _landlock_rules(readable, folders, profile.native) if version else ()
    version = version if rules else 0
    filters: tuple[Filter | None, Filter | None] = (None, None)
    listener: int | None = None
    if "seccomp" not in without and seccomp.supported():
        filters, listener = _filter_calls(profile.native, version, quiet="notices" in without)
    return Walls(
        namespaces=namespaces,
        own_root=own_root,
        own_user=own_user,
        threads=threads,
        bounded=threads is not None or grouped,
        filter=filters[0],
        forking=filters[1],
        limits="limits" not in without,
        listener=listener,
        rules=rules,
        landlock=version,
        scratch=scratch,
        native=profile.native,
    )


def enter(walls: Walls, slot: int, memory_bytes: int, cpu_s: float, file_bytes: int, *, keep: int, forks: bool) -> None:
    """Close the jail around this child for good: resource limits, Landlock, seccomp.

    `memory_bytes` is address space; `file_bytes` holds per file. Only descriptors below `keep` stay open. With `forks`
    the child may start processes.
    """
    die_with_parent()
    if walls.native:
        os.setpgid(0, 0)  # processes that it starts stay in this group: the filter refuses to leave it
    if walls.limits:
        # the fork server ends the process at cpu_s; this limit holds in case it is late
        _limit(resource.RLIMIT_CPU, int(cpu_s) + 2)
        _limit(resource.RLIMIT_AS, memory_bytes)
        _limit(resource.RLIMIT_FSIZE, file_bytes)
        _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    if walls.limits and walls.threads is not None:
        _limit(resource.RLIMIT_NPROC, walls.threads)
    if walls.rules:
        landlock.restrict(walls.rules[slot % len(walls.rules)])
    os.closerange(keep, _SERVER_FILES)
    # last: the filter refuses most of the calls above
    if forks and walls.forking is not None:
        walls.forking.install()
    elif walls.filter is not None:
        walls.filter.install()


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument. Raises OSError."""
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends. Raises OSError."""
    if _libc.prctl(*_DIE_WITH_PARENT) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def works(action: Callable[[], object]) -> bool:
    """Whether `action` succeeds. It is tried in a forked child, so that it changes nothing in this process."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _enter_own_tree(readable: Sequence[str], profile: Profile) -> bool:
    """Move to a separate file tree if possible. It is tried in a child first, since half a move cannot be undone."""

    def move() -> None:
        file_tree.enter(readable, _DEVICES, _SCRATCH_MB if profile.scratch else 0)

    if not works(move):
        return False
    move()
    return True


def _landlock_rules(readable: Sequence[str], folders: Sequence[str | None], native: bool) -> tuple[int, ...]:
    writable_folders = folders if native else folders[:1]
    rulesets = [landlock.ruleset(readable, _DEVICES, runnable=native, writable=folder) for folder in writable_folders]
    rules = tuple(fcntl.fcntl(ruleset, fcntl.F_DUPFD_CLOEXEC, HIGH) for ruleset in rulesets)
    for ruleset in rulesets:
        os.close(ruleset)
    return rules if works(lambda: landlock.restrict(rules[0])) else ()


def _filter_calls(
    native: bool, landlock_version: int, *, quiet: bool
) -> tuple[tuple[Filter | None, Filter | None], int | None]:
    """Install the fork server's filter.

    Returns the filters that children add, one for those that may not fork and one for those that may, and the
    descriptor on which refused calls are reported. What is not available is None.
    """
    signals_scoped, may_open = landlock_version >= _SIGNALS_SCOPED, landlock_version > 0

    def added(*, tells: bool) -> tuple[Filter, Filter]:
        plain, forking = (
            Filter(seccomp.childs(native=native, tells=tells, scoped=signals_scoped, forks=forks))
            for forks in (False, native)
        )
        return plain, forking

    telling = seccomp.server_filter(may_open=may_open, native=native, tells=True)
    if not quiet and works(lambda: seccomp_notify.install(telling)):
        return added(tells=True), fcntl.fcntl(seccomp_notify.install(telling), fcntl.F_DUPFD_CLOEXEC, HIGH)
    silent = seccomp.server_filter(may_open=may_open, native=native, tells=False)
    if not works(Filter(silent).install):
        return (None, None), None
    Filter(silent).install()
    return added(tells=False), None


def _take_own_uid(scratch: str) -> bool:
    """As root, switch to a user id that nothing else has, if that id can read the standard library."""
    uid = _FIRST_UID + int.from_bytes(os.urandom(2), "little")
    if os.geteuid() != 0 or not works(lambda: _read_library_as(uid)):
        return False
    if scratch:
        os.chown(scratch, uid, uid)
    _become(uid)
    return True


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _read_library_as(uid: int) -> None:
    _become(uid)
    os.listdir(os.path.dirname(os.__file__))


def _tasks_of_user() -> int:
    """How many threads run under this user id, as far as /proc shows them."""
    count = 0
    for folder in glob.glob("/proc/[0-9]*/task"):
        with contextlib.suppress(OSError):
            count += len(os.listdir(folder)) if os.stat(folder).st_uid == os.getuid() else 0
    return count


def _drop_capabilities() -> None:
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, struct.pack("=6I", *[0] * 6)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _lower(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _limit(kind: int, value: int) -> None:
    hard = _HARD[kind]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))
