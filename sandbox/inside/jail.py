"""The walls: namespaces and identity once for the mother, limits, Landlock and seccomp for every child.

Constants: linux/prctl.h, linux/sched.h, linux/capability.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass

from qwq_rl.sandbox.inside import landlock, seccomp
from qwq_rl.sandbox.inside.wire import HIGH

_NEW_USER, _NEW_PID, _NEW_NET, _NEW_IPC, _NEW_UTS = 0x10000000, 0x20000000, 0x40000000, 0x08000000, 0x04000000
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _SET_NO_NEW_PRIVS = 1, 4, 22, 38
_CAPABILITY_VERSION_3 = 0x20080522
_FIRST_UID = 0x70000000
"""User ids from here on belong to nobody: a mother that starts as root takes one of its own."""
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_OPEN_FILES, _MOTHERS_FILES, _THREADS = 64, 1024, 64

_libc = ctypes.CDLL(None, use_errno=True)


class _FilterProgram(ctypes.Structure):
    _fields_ = (("count", ctypes.c_ushort), ("code", ctypes.c_void_p))


@dataclass(frozen=True)
class Walls:
    """What the mother found she can put around a child."""

    namespaces: bool
    """Own network, IPC, UTS and process namespaces."""
    threads: int | None
    """How many threads all children together may have; None where the user id is shared with others that count too."""
    filter: bytes | None
    """The short seccomp program that a child adds to the mother's; None where none can be installed."""
    rules: int | None
    """The file descriptor of the Landlock rules; None where it cannot be used."""
    landlock: int
    """The version of Landlock in use; 0 for none."""


def leave_host(without: Collection[str]) -> bool:
    """Enter new network, IPC, UTS and (for children) process namespaces; False where the machine forbids it."""
    if "namespaces" in without:
        return False
    kinds = _NEW_PID | _NEW_NET | _NEW_IPC | _NEW_UTS
    uid, gid = os.getuid(), os.getgid()
    if _libc.unshare(kinds) == 0:
        return True
    if _libc.unshare(kinds | _NEW_USER) != 0:
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return True


def prepare(namespaces: bool, slots: int, without: Collection[str]) -> Walls:
    """Give up every privilege and build what children put on; each wall is tried in a child before it is counted on."""
    user_namespace = namespaces and os.geteuid() != 0
    own_user = _take_own_uid() or user_namespace
    _drop_capabilities()
    prctl(_SET_DUMPABLE, 1)  # off after a change of user, and then /dev/stdin could not be opened
    prctl(_SET_NO_NEW_PRIVS, 1)
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, _MOTHERS_FILES)
    version = landlock.version()
    rules = None if "landlock" in without or not version else _landlock_rules()
    added = None if "seccomp" in without else _filter_calls(may_open=rules is not None)
    threads = _THREADS * slots if own_user else None
    return Walls(namespaces, threads, added, rules, 0 if rules is None else version)


def enter(walls: Walls, memory_bytes: int, cpu_s: float, file_bytes: int, keep: int) -> None:
    """Shut this child in, for good: limits on bytes of address space, CPU seconds, bytes a file; Landlock; seccomp.

    Of its descriptors, only those below `keep` stay open.
    """
    die_with_parent()
    seconds = int(cpu_s) + 2  # the mother ends it at cpu_s; this holds should she be late
    _lower(resource.RLIMIT_CPU, seconds)
    _lower(resource.RLIMIT_AS, memory_bytes)
    _lower(resource.RLIMIT_FSIZE, file_bytes)
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)
    if walls.threads is not None:
        _lower(resource.RLIMIT_NPROC, walls.threads)
    if walls.rules is not None:
        landlock.restrict(walls.rules)
    os.closerange(keep, _MOTHERS_FILES)
    if walls.filter is not None:
        _install(seccomp.of_process(walls.filter, os.getpid()))


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument. Raises OSError."""
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    prctl(_SET_PDEATHSIG, signal.SIGKILL)


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


def _landlock_rules() -> int | None:
    rules = fcntl.fcntl(landlock.ruleset(_standard_library(), _DEVICES), fcntl.F_DUPFD_CLOEXEC, HIGH)
    return rules if works(lambda: landlock.restrict(rules)) else None


def _filter_calls(*, may_open: bool) -> bytes | None:
    """Put on the mother's filter; what each child adds, or None where filters cannot be had."""
    if not seccomp.supported():
        return None
    inherited, added = seccomp.mothers(may_open=may_open), seccomp.childs()
    if not works(lambda: _install(inherited)):
        return None
    _install(inherited)
    return added


def _take_own_uid() -> bool:
    """As root, become a user id that nothing else has, if it can read the standard library."""
    uid = _FIRST_UID + int.from_bytes(os.urandom(2), "little")
    if os.geteuid() != 0 or not works(lambda: _read_library_as(uid)):
        return False
    _become(uid)
    return True


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _read_library_as(uid: int) -> None:
    _become(uid)
    for folder in _standard_library():
        os.listdir(folder)


def _standard_library() -> list[str]:
    return [os.path.dirname(os.__file__)]


def _drop_capabilities() -> None:
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, struct.pack("=6I", *[0] * 6)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _lower(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _install(program: bytes) -> None:
    # struct sock_fprog: a count of 8-byte instructions, and where they are
    header = _FilterProgram(len(program) // 8, ctypes.cast(ctypes.c_char_p(program), ctypes.c_void_p))
    if _libc.prctl(_SET_SECCOMP, ctypes.c_ulong(2), ctypes.byref(header), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")
