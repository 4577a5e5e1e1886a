"""The system calls a jailed child may make: a list of what is allowed, as BPF programs built without a library.

Everything else fails with EPERM: sockets, fork, exec, ptrace, signals to others, changes of limits, owners or mounts.
Layout of `struct seccomp_data`: linux/seccomp.h; of an instruction: linux/filter.h. Call numbers: the kernel's tables.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Sequence

_LOAD, _AND, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_CLONE_THREAD, _AF_UNIX, _SOCK_STREAM, _FIONBIO = 0x10000, 1, 1, 0x5421
_OWN_PID = 0x5EEDF00D
"""Stands for the child's own process id until `of_process` is told it."""

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# name: (x86_64, aarch64); -1 where the architecture has no such call
_PLAIN = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, -1), "fstat": (5, 80), "lstat": (6, -1),
    "poll": (7, -1), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67),
    "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "access": (21, -1), "pipe": (22, -1),
    "select": (23, -1), "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23),
    "dup2": (33, -1), "pause": (34, -1), "nanosleep": (35, 101), "getitimer": (36, 102), "alarm": (37, -1),
    "setitimer": (38, 103), "getpid": (39, 172), "recvfrom": (45, 207), "shutdown": (48, 210), "exit": (60, 93),
    "wait4": (61, 260), "uname": (63, 160), "fsync": (74, 82), "getcwd": (79, 17), "readlink": (89, -1),
    "gettimeofday": (96, 169), "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179),
    "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177),
    "getppid": (110, 173), "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132), "gettid": (186, 178), "time": (201, -1), "futex": (202, 98),
    "sched_getaffinity": (204, 123), "getdents64": (217, 61), "restart_syscall": (219, 128),
    "epoll_create": (213, -1), "set_tid_address": (218, 96), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "epoll_wait": (232, -1), "epoll_ctl": (233, 21),
    "newfstatat": (262, 79), "readlinkat": (267, 78), "faccessat": (269, 48), "pselect6": (270, 72),
    "ppoll": (271, 73), "set_robust_list": (273, 99), "epoll_pwait": (281, 22), "eventfd2": (290, 19),
    "epoll_create1": (291, 20), "dup3": (292, 24), "pipe2": (293, 59), "getrandom": (318, 278),
    "membarrier": (324, 283), "statx": (332, 291), "rseq": (334, 293), "faccessat2": (439, 439),
    "futex_waitv": (449, 449),
}  # fmt: skip
_OPENING = {"open": (2, -1), "openat": (257, 56)}
_CLONE3, _IOCTL, _FCNTL, _SOCKETPAIR, _SENDTO = (435, 435), (16, 29), (72, 25), (53, 199), (44, 206)
_CLONE, _KILL_CALL, _TGKILL, _PRLIMIT = (56, 220), (62, 129), (234, 131), (302, 261)
_MOTHERS_ALONE = {
    "recvmsg": (47, 212), "prctl": (157, 167), "pidfd_open": (434, 434), "close_range": (436, 436),
    "landlock_restrict_self": (446, 446),
}  # fmt: skip
_SIGNALLING_FCNTL = (8, 10, 15, 1024, 1026)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY: ways to have the kernel send a signal."""

Instruction = tuple[int, int, int, int]
"""Operation, how many instructions to skip if true and if false, value."""
Rule = tuple[tuple[int, int], Sequence[Instruction]]
"""A call's numbers, and what is done about it; every block ends by itself."""


def supported() -> bool:
    """Whether the call numbers of this machine are known here."""
    return platform.machine() in _ARCHITECTURES and struct.calcsize("P") == 8


def mothers(*, may_open: bool) -> bytes:
    """The long filter, which the mother puts on and her children inherit: calls that a child or she herself needs.

    Without `may_open` no file can be opened at all.
    """
    opening = _give(_ALLOW) if may_open else _give(_ERRNO | errno.EACCES)
    allowed = [*_PLAIN.values(), *_MOTHERS_ALONE.values(), _CLONE, _KILL_CALL, _TGKILL, _PRLIMIT]
    rules: list[Rule] = [(calls, [_give(_ALLOW)]) for calls in allowed]
    rules += [(calls, [opening]) for calls in _OPENING.values()]
    rules += [
        (_CLONE3, [_give(_ERRNO | errno.ENOSYS)]),  # the C library then takes clone, whose flags can be read
        (_IOCTL, [_load_argument(1), (_EQUAL, 0, 1, _FIONBIO), _give(_ALLOW), _give(_ERRNO | errno.ENOTTY)]),
        (_FCNTL, [_load_argument(1), *_no_signals(), _give(_ALLOW)]),
        # asyncio needs a pair of stream sockets; a datagram one could be sent to an address
        (_SOCKETPAIR, [_load_argument(0), (_EQUAL, 1, 0, _AF_UNIX), _refuse(), *_stream_only()]),
        (_SENDTO, [_load_argument(4), (_EQUAL, 1, 0, 0), _refuse(), _load_argument(4, high=True), *_only_if(0)]),
    ]
    return _program(rules, _refuse())


def childs() -> bytes:
    """The short filter that every child adds, with a place for its process id: what is hers alone is refused."""
    rules: list[Rule] = [(calls, [_refuse()]) for calls in _MOTHERS_ALONE.values()]
    rules += [
        (_CLONE, [_load_argument(0), (_ANY_BIT, 0, 1, _CLONE_THREAD), _give(_ALLOW), _refuse()]),
        (_KILL_CALL, [_load_argument(0), *_only_if(_OWN_PID)]),
        (_TGKILL, [_load_argument(0), *_only_if(_OWN_PID)]),
        (_PRLIMIT, [_load_argument(0), *_only_if(0)]),
    ]
    return _program(rules, _give(_ALLOW))


def of_process(filter_program: bytes, pid: int) -> bytes:
    """The short filter of the process `pid`."""
    return filter_program.replace(struct.pack("=I", _OWN_PID), struct.pack("=I", pid))


def _program(rules: Sequence[Rule], otherwise: Instruction) -> bytes:
    column = list(_ARCHITECTURES).index(platform.machine())
    code: list[Instruction] = [(_LOAD, 0, 0, _ARCHITECTURE_AT)]
    code += [(_EQUAL, 1, 0, _ARCHITECTURES[platform.machine()]), _give(_KILL), (_LOAD, 0, 0, _NUMBER_AT)]
    for calls, block in rules:
        if calls[column] >= 0:
            code += [(_EQUAL, 0, len(block), calls[column]), *block]
    code.append(otherwise)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _give(value: int) -> Instruction:
    return (_RETURN, 0, 0, value)


def _refuse() -> Instruction:
    return _give(_ERRNO | errno.EPERM)


def _no_signals() -> Sequence[Instruction]:
    return [step for command in _SIGNALLING_FCNTL for step in ((_EQUAL, 0, 1, command), _refuse())]


def _load_argument(index: int, *, high: bool = False) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index + (4 if high else 0))


def _only_if(value: int) -> Sequence[Instruction]:
    return [(_EQUAL, 0, 1, value), _give(_ALLOW), _refuse()]


def _stream_only() -> Sequence[Instruction]:
    return [_load_argument(1), (_AND, 0, 0, 0xF), *_only_if(_SOCK_STREAM)]
