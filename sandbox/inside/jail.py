"""The walls: namespaces, file tree and identity once for the fork server; limits, Landlock and seccomp for every child.

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
"""User ids from here on belong to nobody: a fork server that starts as root takes one of its own."""
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_OPEN_FILES, _MOTHERS_FILES, _THREADS, _SCRATCH_MB = 64, 1024, 64, 512
_OTHERS_GROWTH = 1024
"""Where the user id is shared: how many more threads than now may run under it, the programs' among them."""
_SIGNALS_SCOPED = 6
"""From this version on Landlock keeps signals in."""

_HARD = {
    kind: resource.getrlimit(kind)[1]
    for kind in map(resource.__dict__.__getitem__, ("RLIMIT_CPU", "RLIMIT_AS", "RLIMIT_FSIZE", "RLIMIT_NPROC"))
} | {resource.RLIMIT_NOFILE: _MOTHERS_FILES}
"""What a fork server started with: a child cannot have more."""
_DIE_WITH_PARENT = (_SET_PDEATHSIG, *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0)))

_libc = ctypes.CDLL(None, use_errno=True)


class Filter:
    """A seccomp program, with all that installing it takes made beforehand: children then do little."""

    def __init__(self, program: bytes) -> None:
        self._program = program
        self._names_process = seccomp.names_process(program)
        self._arguments = self._prepared(program)

    def install(self) -> None:
        """Put this process under it, for good. Raises OSError."""
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
    """What the fork server found that it can put around a child."""

    namespaces: bool
    """Own network, IPC, UTS and process namespaces."""
    own_root: bool
    """A file tree of its own, with little in it."""
    own_user: bool
    """A user id that nothing else has, or a user namespace, where processes are counted apart."""
    threads: int | None
    """How many threads and processes may run under this user id; None where the kernel does not hold it to any."""
    bounded: bool
    """There is a bound on processes, by that or by a control group: only then may programs have any."""
    filter: Filter | None
    """The short seccomp program that a child adds to the fork server's; None where none can be installed."""
    forking: Filter | None
    """The one for children that may start processes."""
    limits: bool
    """Whether limits are set at all."""
    listener: int | None
    """Where the kernel tells of refused calls; None where they are refused silently."""
    rules: tuple[int, ...]
    """File descriptors of the Landlock rules, one a slot; empty where it cannot be used."""
    landlock: int
    """The version of Landlock in use; 0 for none."""
    scratch: str
    """The folder of folders that slots may write in; empty for none."""
    native: bool


def leave_host(without: Collection[str]) -> bool:
    """Enter new network, IPC, UTS and (for children) process namespaces; False where the machine forbids it."""
    if "namespaces" in without:
        return False
    kinds = _NEW_PID | _NEW_NET | _NEW_IPC | _NEW_UTS
    uid, gid = os.getuid(), os.getgid()
    if _libc.unshare(kinds) == 0:
        socket.sethostname("sandbox")
        return True
    if _libc.unshare(kinds | _NEW_USER) != 0:
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    socket.sethostname("sandbox")
    return True


def prepare(profile: Profile, namespaces: bool, grouped: bool, slots: int, without: Collection[str]) -> Walls:
    """Give up every privilege and build what children put on; each wall is tried in a child before it is counted on."""
    user_namespace = namespaces and os.geteuid() != 0
    readable = [*profile.readable, os.path.dirname(os.__file__)]
    own_root = namespaces and "root" not in without and _enter_own_tree(readable, profile)
    scratch = file_tree.SCRATCH if own_root and profile.scratch else profile.scratch
    own_user = _take_own_uid(scratch) or user_namespace
    threads = _THREADS * slots if own_user else None
    if threads is None and os.getuid() != 0:
        threads = _tasks_of_user() + _OTHERS_GROWTH
    _drop_capabilities()
    prctl(_SET_DUMPABLE, 1)  # off after a change of user, and then /dev/stdin could not be opened
    prctl(_SET_NO_NEW_PRIVS, 1)
    if profile.native:
        prctl(_SET_SUBREAPER, 1)
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, _MOTHERS_FILES)
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
    """Shut this child in, for good: limits on bytes of address space, CPU seconds, bytes a file; Landlock; seccomp.

    Of its descriptors, only those below `keep` stay open.
    """
    die_with_parent()
    if walls.native:
        os.setpgid(0, 0)  # what it starts stays in this group: the filter refuses to leave it
    if walls.limits:
        _limit(
            resource.RLIMIT_CPU, int(cpu_s) + 2
        )  # the fork server ends it at cpu_s; this holds should that come late
        _limit(resource.RLIMIT_AS, memory_bytes)
        _limit(resource.RLIMIT_FSIZE, file_bytes)
        _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    if walls.limits and walls.threads is not None:
        _limit(resource.RLIMIT_NPROC, walls.threads)
    if walls.rules:
        landlock.restrict(walls.rules[slot % len(walls.rules)])
    os.closerange(keep, _MOTHERS_FILES)
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
    """Have the kernel kill this process when the thread that started it ends. Raises OSError."""
    if _libc.prctl(*_DIE_WITH_PARENT) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def works(action: Callable[[], object]) -> bool:
    """Whether `action` succeeds, tried in a forked child."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _enter_own_tree(readable: Sequence[str], profile: Profile) -> bool:
    """Go to a file tree of our own, if that can be had; tried in a child first, since half a move cannot be undone."""

    def move() -> None:
        file_tree.enter(readable, _DEVICES, _SCRATCH_MB if profile.scratch else 0)

    if not works(move):
        return False
    move()
    return True


def _landlock_rules(readable: Sequence[str], folders: Sequence[str | None], native: bool) -> tuple[int, ...]:
    kinds = folders if native else folders[:1]
    made = [landlock.ruleset(readable, _DEVICES, runnable=native, writable=folder) for folder in kinds]
    rules = tuple(fcntl.fcntl(item, fcntl.F_DUPFD_CLOEXEC, HIGH) for item in made)
    for item in made:
        os.close(item)
    return rules if works(lambda: landlock.restrict(rules[0])) else ()


def _filter_calls(
    native: bool, landlock_version: int, *, quiet: bool
) -> tuple[tuple[Filter | None, Filter | None], int | None]:
    """Put on the fork server's filter: what each child adds that may not fork, or may; and where refusals are told.

    None for what is not to be had.
    """
    scoped, opens = landlock_version >= _SIGNALS_SCOPED, landlock_version > 0

    def added(*, tells: bool) -> tuple[Filter, Filter]:
        plain, forking = (
            Filter(seccomp.childs(native=native, tells=tells, scoped=scoped, forks=forks)) for forks in (False, native)
        )
        return plain, forking

    telling = seccomp.server_filter(may_open=opens, native=native, tells=True)
    if not quiet and works(lambda: seccomp_notify.install(telling)):
        return added(tells=True), fcntl.fcntl(seccomp_notify.install(telling), fcntl.F_DUPFD_CLOEXEC, HIGH)
    silent = seccomp.server_filter(may_open=opens, native=native, tells=False)
    if not works(Filter(silent).install):
        return (None, None), None
    Filter(silent).install()
    return added(tells=False), None


def _take_own_uid(scratch: str) -> bool:
    """As root, become a user id that nothing else has, if it can read the standard library."""
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
    """How many threads run under this user id; those that cannot be seen are not counted."""
    found = 0
    for place in glob.glob("/proc/[0-9]*/task"):
        with contextlib.suppress(OSError):
            found += len(os.listdir(place)) if os.stat(place).st_uid == os.getuid() else 0
    return found


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
