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
_ALLOW, _KILL, _ERRNO, _TELL = 0x7FFF0000, 0x80000000, 0x00050000, 0x7FC00000
_CLONE_THREAD, _AF_UNIX, _SOCK_STREAM = 0x10000, 1, 1
_HARMLESS_IOCTLS = (0x5421, 0x5450, 0x5451, 0x541B)
"""FIONBIO, FIONCLEX, FIOCLEX, FIONREAD."""
NEXT_NOTICE, ANSWER_NOTICE = 0xC0502100, 0xC0182101
"""The two requests (ioctl) on a filter's listener: take the next refused call, answer it."""
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
_SOCKET = (41, 198)
_CLONE3, _IOCTL, _FCNTL, _SOCKETPAIR, _SENDTO = (435, 435), (16, 29), (72, 25), (53, 199), (44, 206)
_CLONE, _KILL_CALL, _TGKILL, _PRLIMIT, _PRCTL = (56, 220), (62, 129), (234, 131), (302, 261), (157, 167)
_NAMING = (15, 16, 0x53564D41)
"""PR_SET_NAME, PR_GET_NAME, PR_SET_VMA: the prctl calls that a native program may make."""
_SERVERS_ALONE = {
    "recvmsg": (47, 212), "prctl": (157, 167), "pidfd_open": (434, 434), "close_range": (436, 436),
    "landlock_restrict_self": (446, 446), "pidfd_send_signal": (424, 424), "waitid": (247, 95), "setpgid": (109, 154),
    "unlinkat": (263, 35), "unlink": (87, -1), "rmdir": (84, -1),
}  # fmt: skip
_TOLD = {
    "network": ((41, 198), (42, 203), (43, 202), (46, 211), (49, 200), (50, 201), (288, 242)),
    "process": ((57, -1), (58, -1), (59, 221), (322, 281)),
    "memory of others": ((101, 117), (310, 270), (311, 271), (312, 272), (438, 438)),
    "signal": ((62, 129), (234, 131), (200, 130), (129, 138), (297, 240)),
    "namespace": ((272, 97), (308, 268), (165, 40), (166, 39), (155, 41), (161, 51)),
    "identity": ((105, 146), (106, 144), (113, 145), (117, 147), (119, 149), (116, 159), (126, 91)),
    "shared memory": ((29, 194), (64, 190), (68, 186), (240, 180)),
    "kernel": ((321, 280), (298, 241), (250, 219), (248, 217), (323, 282), (425, 425), (304, 265), (169, 142)),
}
"""Calls that only an attempt to get out makes, by what it is after: refused, and the fork server told.

socket, connect, accept, sendmsg, bind, listen, accept4; fork, vfork, execve, execveat; ptrace, process_vm_readv and
_writev, kcmp, pidfd_getfd; kill, tgkill, tkill, rt_sigqueueinfo, rt_tgsigqueueinfo; unshare, setns, mount, umount2,
pivot_root, chroot; setuid, setgid, setreuid, setresuid, setresgid, setgroups, capset; shmget, semget, msgget, mq_open;
bpf, perf_event_open, keyctl, add_key, userfaultfd, io_uring_setup, open_by_handle_at, reboot.
"""
KINDS = tuple(_TOLD)
"""What an attempt can be after, in the order of the bits that stand for it."""
_NATIVE = {
    "fork": (57, -1), "vfork": (58, -1), "execve": (59, 221), "execveat": (322, 281), "waitid": (247, 95),
    "arch_prctl": (158, -1), "chdir": (80, 49), "umask": (95, 166), "getpgrp": (111, -1), "getpgid": (121, 155),
    "mkdir": (83, -1), "mkdirat": (258, 34), "rmdir": (84, -1), "unlink": (87, -1), "unlinkat": (263, 35),
    "rename": (82, -1), "renameat": (264, 38), "renameat2": (316, 276), "ftruncate": (77, 46), "fallocate": (285, 47),
    "getdents": (78, -1), "fchdir": (81, 50), "sched_setaffinity": (203, 122), "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120), "mlock": (149, 228), "mincore": (27, 232), "eventfd": (284, -1),
    "get_mempolicy": (239, 236), "getcpu": (309, 168), "capget": (125, 90), "sendfile": (40, 71),
    "splice": (275, 76), "copy_file_range": (326, 285), "fadvise64": (221, 223), "timerfd_create": (283, 85),
    "timerfd_settime": (286, 86), "sched_get_priority_max": (146, 125), "sched_get_priority_min": (147, 126),
    "openat2": (437, 437), "pkey_alloc": (330, 289), "pkey_mprotect": (329, 288),
    "fdatasync": (75, 83), "setrlimit": (160, 164), "readahead": (187, 213),
}  # fmt: skip
"""What compilers, shells and other interpreters need beyond a warm Python; files are Landlock's to guard."""
_SIGNALLING_FCNTL = (8, 10, 15, 1024, 1026)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY: ways to have the kernel send a signal."""

Instruction = tuple[int, int, int, int]
"""Operation, how many instructions to skip if true and if false, value."""
Rule = tuple[tuple[int, int], Sequence[Instruction]]
"""A call's numbers, and what is done about it; every block ends by itself."""


def supported() -> bool:
    """Whether the call numbers of this machine are known here."""
    return platform.machine() in _ARCHITECTURES and struct.calcsize("P") == 8


def server_filter(*, may_open: bool, native: bool, tells: bool) -> bytes:
    """The long filter, which the fork server puts on and its children inherit: calls that a child or it needs.

    Without `may_open` no file can be opened at all; `native` adds what programs need that are not a fork of a warm
    Python; with `tells` the calls that betray an attempt wait for the fork server's refusal, so that it knows of them.
    """
    opening = _give(_ALLOW) if may_open else _give(_ERRNO | errno.EACCES)
    allowed = [*_PLAIN.values(), *_SERVERS_ALONE.values(), _CLONE, _PRLIMIT, *(_NATIVE.values() if native else ())]
    if native or not tells:
        allowed += [_KILL_CALL, _TGKILL]
    rules: list[Rule] = [(calls, [_give(_ALLOW)]) for calls in allowed]
    rules += [(calls, [opening]) for calls in _OPENING.values()]
    rules += [
        (_CLONE3, [_give(_ERRNO | errno.ENOSYS)]),  # the C library then takes clone, whose flags can be read
        (_IOCTL, [_load_argument(1), *_only_these_ioctls(), _give(_ERRNO | errno.ENOTTY)]),
        (_FCNTL, [_load_argument(1), *_no_signals(), _give(_ALLOW)]),
        # asyncio needs a pair of stream sockets; a datagram one could be sent to an address
        (_SOCKETPAIR, [_load_argument(0), (_EQUAL, 1, 0, _AF_UNIX), _refuse(), *_stream_only()]),
        (_SENDTO, [_load_argument(4), (_EQUAL, 1, 0, 0), _refuse(), _load_argument(4, high=True), *_only_if(0)]),
    ]
    if tells:
        rules += [(calls, [_give(_TELL)]) for group in _TOLD.values() for calls in group if calls not in allowed]
    return _program(rules, _refuse())


def childs(*, native: bool, tells: bool, scoped: bool, forks: bool) -> bytes:
    """The short filter that every child adds, with a place for its process id: what is the server's alone is refused.

    Only with `forks` may it start processes; threads it always may.
    Signals: where the fork server is told of them it lets those to the child itself pass; where Landlock keeps them in
    (`scoped`), a native program may send them; else only to its first process.
    """
    kept = _NATIVE.values() if native else ()
    rules: list[Rule] = [(calls, [_refuse()]) for calls in _SERVERS_ALONE.values() if calls not in kept]
    rules += [(_PRLIMIT, [_load_argument(0), *_only_if(0)])]
    if native:
        rules[:] = [rule for rule in rules if rule[0] != _PRCTL]
        rules += [(_PRCTL, [_load_argument(0), *_only_these(_NAMING), _refuse()])]
    if not forks:
        rules += [(_CLONE, [_load_argument(0), (_ANY_BIT, 0, 1, _CLONE_THREAD), _give(_ALLOW), _refuse()])]
        rules += [(_NATIVE[name], [_refuse()]) for name in ("fork", "vfork") if native]
    if not (scoped if native else tells):
        rules += [(calls, [_load_argument(0), *_only_if(_OWN_PID)]) for calls in (_KILL_CALL, _TGKILL)]
    return _program(rules, _give(_ALLOW))


def kind_of(number: int, argument: int, *, native: bool) -> int | None:
    """Which of `KINDS` a refused call with that first argument is an attempt at; None where it is none.

    The C library of honest native programs asks local services for names: no attempt at the network.
    """
    column = list(_ARCHITECTURES).index(platform.machine())
    if native and number == _SOCKET[column] and argument == _AF_UNIX:
        return None
    found = (place for place, calls in enumerate(_TOLD.values()) if any(pair[column] == number for pair in calls))
    return next(found, None)


def names_target(number: int) -> bool:
    """Whether a system call is `kill` or `tgkill`, whose first argument is the process that is meant."""
    column = list(_ARCHITECTURES).index(platform.machine())
    return number in (_KILL_CALL[column], _TGKILL[column])


def names_process(filter_program: bytes) -> bool:
    """Whether a short filter has a place for the process id."""
    return struct.pack("=I", _OWN_PID) in filter_program


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


def _only_these(values: Sequence[int]) -> Sequence[Instruction]:
    return [step for value in values for step in ((_EQUAL, 0, 1, value), _give(_ALLOW))]


def _only_these_ioctls() -> Sequence[Instruction]:
    return _only_these((*_HARMLESS_IOCTLS, NEXT_NOTICE, ANSWER_NOTICE))


def _no_signals() -> Sequence[Instruction]:
    return [step for command in _SIGNALLING_FCNTL for step in ((_EQUAL, 0, 1, command), _refuse())]


def _load_argument(index: int, *, high: bool = False) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index + (4 if high else 0))


def _only_if(value: int) -> Sequence[Instruction]:
    return [(_EQUAL, 0, 1, value), _give(_ALLOW), _refuse()]


def _stream_only() -> Sequence[Instruction]:
    return [_load_argument(1), (_AND, 0, 0, 0xF), *_only_if(_SOCK_STREAM)]
