"""The system calls that a jailed child may make: lists of allowed calls, made into BPF programs without a library.

All other calls fail with EPERM: sockets, fork, exec, ptrace, signals to others, changes of limits, owners or mounts.
Two programs apply to a child, and the stricter one decides: the fork server's (`server_filter`), which the child
inherits, and a short one that the child adds (`childs`).
Layout of `struct seccomp_data`: linux/seccomp.h; of an instruction: linux/filter.h. Call numbers: the kernel's tables.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Sequence

_LOAD, _AND, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_ALLOW, _KILL, _ERRNO, _NOTIFY = 0x7FFF0000, 0x80000000, 0x00050000, 0x7FC00000
_CLONE_THREAD, _AF_UNIX, _SOCK_STREAM = 0x10000, 1, 1
_HARMLESS_IOCTLS = (0x5421, 0x5450, 0x5451, 0x541B)
"""FIONBIO, FIONCLEX, FIOCLEX, FIONREAD."""
NEXT_NOTICE, ANSWER_NOTICE = 0xC0502100, 0xC0182101
"""The two ioctl requests on a filter's listener: take the next refused call; answer it."""
_OWN_PID = 0x5EEDF00D
"""A placeholder for the child's own process id; `of_process` replaces it."""

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
_HARMLESS_PRCTLS = (15, 16, 0x53564D41)
"""PR_SET_NAME, PR_GET_NAME, PR_SET_VMA: the prctl calls that a native program may make."""
_SERVERS_ALONE = {
    "recvmsg": (47, 212), "prctl": (157, 167), "pidfd_open": (434, 434), "close_range": (436, 436),
    "landlock_restrict_self": (446, 446), "pidfd_send_signal": (424, 424), "waitid": (247, 95), "setpgid": (109, 154),
    "unlinkat": (263, 35), "unlink": (87, -1), "rmdir": (84, -1),
}  # fmt: skip
_REPORTED = {
    "network": ((41, 198), (42, 203), (43, 202), (46, 211), (49, 200), (50, 201), (288, 242)),
    "process": ((57, -1), (58, -1), (59, 221), (322, 281)),
    "memory of others": ((101, 117), (310, 270), (311, 271), (312, 272), (438, 438)),
    "signal": ((62, 129), (234, 131), (200, 130), (129, 138), (297, 240)),
    "namespace": ((272, 97), (308, 268), (165, 40), (166, 39), (155, 41), (161, 51)),
    "identity": ((105, 146), (106, 144), (113, 145), (117, 147), (119, 149), (116, 159), (126, 91)),
    "shared memory": ((29, 194), (64, 190), (68, 186), (240, 180)),
    "kernel": ((321, 280), (298, 241), (250, 219), (248, 217), (323, 282), (425, 425), (304, 265), (169, 142)),
}
"""Calls that only an escape attempt makes, by what it aims at. They are refused and reported to the fork server.

socket, connect, accept, sendmsg, bind, listen, accept4; fork, vfork, execve, execveat; ptrace, process_vm_readv and
_writev, kcmp, pidfd_getfd; kill, tgkill, tkill, rt_sigqueueinfo, rt_tgsigqueueinfo; unshare, setns, mount, umount2,
pivot_root, chroot; setuid, setgid, setreuid, setresuid, setresgid, setgroups, capset; shmget, semget, msgget, mq_open;
bpf, perf_event_open, keyctl, add_key, userfaultfd, io_uring_setup, open_by_handle_at, reboot.
"""
KINDS = tuple(_REPORTED)
"""The kinds of escape attempts, in the order of the bits that stand for them."""
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
"""Calls that compilers, shells and other interpreters need, unlike a warm Python. Landlock guards the files."""
_SIGNALLING_FCNTL = (8, 10, 15, 1024, 1026)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY: with these the kernel sends signals for a process."""

Instruction = tuple[int, int, int, int]
"""Operation, how many instructions to skip if true, how many if false, value."""
Rule = tuple[tuple[int, int], Sequence[Instruction]]
"""A call's numbers for each architecture, and the block of instructions for it. Every block must end with a return,
since it may replace the loaded call number.
"""


def supported() -> bool:
    """Whether this file knows the call numbers of this machine."""
    return platform.machine() in _ARCHITECTURES and struct.calcsize("P") == 8


def server_filter(*, may_open: bool, native: bool, tells: bool) -> bytes:
    """The long filter: calls that the fork server or a child needs. The server installs it, its children inherit it.

    Without `may_open` no file can be opened. `native` adds the calls of programs that are not forks of a warm Python.
    With `tells`, calls that only an escape attempt makes wait until the fork server has recorded and refused them.
    """
    opening = _return(_ALLOW) if may_open else _return(_ERRNO | errno.EACCES)
    allowed = [*_PLAIN.values(), *_SERVERS_ALONE.values(), _CLONE, _PRLIMIT, *(_NATIVE.values() if native else ())]
    if native or not tells:
        allowed += [_KILL_CALL, _TGKILL]
    rules: list[Rule] = [(calls, [_return(_ALLOW)]) for calls in allowed]
    rules += [(calls, [opening]) for calls in _OPENING.values()]
    rules += [
        (_CLONE3, [_return(_ERRNO | errno.ENOSYS)]),  # the C library then uses clone, whose flags a filter can read
        (_IOCTL, [_load_argument(1), *_allow_harmless_ioctls(), _return(_ERRNO | errno.ENOTTY)]),
        (_FCNTL, [_load_argument(1), *_refuse_signalling_fcntl(), _return(_ALLOW)]),
        # asyncio needs a pair of stream sockets; a datagram socket could send to any address
        (_SOCKETPAIR, [_load_argument(0), (_EQUAL, 1, 0, _AF_UNIX), _refuse(), *_allow_stream_only()]),
        # without an address only: each argument has 64 bits, of which one load reads half
        (_SENDTO, [_load_argument(4), (_EQUAL, 1, 0, 0), _refuse(), _load_argument(4, high=True), *_allow_only(0)]),
    ]
    if tells:
        rules += [
            (calls, [_return(_NOTIFY)]) for group in _REPORTED.values() for calls in group if calls not in allowed
        ]
    return _program(rules, _refuse())


def childs(*, native: bool, tells: bool, scoped: bool, forks: bool) -> bytes:
    """The short filter that every child adds. It refuses calls that only the fork server needs.

    Processes may be started only with `forks`; threads always. Signals of a warm Python: with `tells` the fork server
    decides, and allows those to the child itself; else the filter allows those to the child's own process id. Signals
    of a native program: with `scoped` Landlock keeps them inside; else only those to its first process are allowed. The
    process id is a placeholder (`of_process`).
    """
    # some of them, such as unlink, are what native programs need as well
    native_calls = _NATIVE.values() if native else ()
    rules: list[Rule] = [(calls, [_refuse()]) for calls in _SERVERS_ALONE.values() if calls not in native_calls]
    rules += [(_PRLIMIT, [_load_argument(0), *_allow_only(0)])]
    if native:
        rules[:] = [rule for rule in rules if rule[0] != _PRCTL]
        rules += [(_PRCTL, [_load_argument(0), *_allow_values(_HARMLESS_PRCTLS), _refuse()])]
    if not forks:
        rules += [(_CLONE, [_load_argument(0), (_ANY_BIT, 0, 1, _CLONE_THREAD), _return(_ALLOW), _refuse()])]
        rules += [(_NATIVE[name], [_refuse()]) for name in ("fork", "vfork") if native]
    if not (scoped if native else tells):
        rules += [(calls, [_load_argument(0), *_allow_only(_OWN_PID)]) for calls in (_KILL_CALL, _TGKILL)]
    return _program(rules, _return(_ALLOW))


def kind_of(number: int, argument: int, *, native: bool) -> int | None:
    """The index in `KINDS` of a refused call with this first argument; None if it is no escape attempt.

    In native programs a local socket is none: the C library of honest programs asks local services for names.
    """
    column = list(_ARCHITECTURES).index(platform.machine())
    if native and number == _SOCKET[column] and argument == _AF_UNIX:
        return None
    kinds = (
        kind for kind, calls in enumerate(_REPORTED.values()) if any(numbers[column] == number for numbers in calls)
    )
    return next(kinds, None)


def names_target(number: int) -> bool:
    """Whether a system call is `kill` or `tgkill`: their first argument is the process that gets the signal."""
    column = list(_ARCHITECTURES).index(platform.machine())
    return number in (_KILL_CALL[column], _TGKILL[column])


def names_process(filter_program: bytes) -> bool:
    """Whether a short filter contains the placeholder for the process id."""
    return struct.pack("=I", _OWN_PID) in filter_program


def of_process(filter_program: bytes, pid: int) -> bytes:
    """The short filter with the process id `pid` in place of the placeholder."""
    return filter_program.replace(struct.pack("=I", _OWN_PID), struct.pack("=I", pid))


def _program(rules: Sequence[Rule], otherwise: Instruction) -> bytes:
    column = list(_ARCHITECTURES).index(platform.machine())
    # the architecture first: on another one (32 bits) the same numbers stand for other calls
    instructions: list[Instruction] = [(_LOAD, 0, 0, _ARCHITECTURE_AT)]
    instructions += [(_EQUAL, 1, 0, _ARCHITECTURES[platform.machine()]), _return(_KILL), (_LOAD, 0, 0, _NUMBER_AT)]
    for calls, block in rules:
        if calls[column] >= 0:
            instructions += [(_EQUAL, 0, len(block), calls[column]), *block]
    instructions.append(otherwise)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def _return(value: int) -> Instruction:
    return (_RETURN, 0, 0, value)


def _refuse() -> Instruction:
    return _return(_ERRNO | errno.EPERM)


def _allow_values(values: Sequence[int]) -> Sequence[Instruction]:
    return [instruction for value in values for instruction in ((_EQUAL, 0, 1, value), _return(_ALLOW))]


def _allow_harmless_ioctls() -> Sequence[Instruction]:
    return _allow_values((*_HARMLESS_IOCTLS, NEXT_NOTICE, ANSWER_NOTICE))


def _refuse_signalling_fcntl() -> Sequence[Instruction]:
    return [instruction for command in _SIGNALLING_FCNTL for instruction in ((_EQUAL, 0, 1, command), _refuse())]


def _load_argument(index: int, *, high: bool = False) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index + (4 if high else 0))


def _allow_only(value: int) -> Sequence[Instruction]:
    return [(_EQUAL, 0, 1, value), _return(_ALLOW), _refuse()]


def _allow_stream_only() -> Sequence[Instruction]:
    return [_load_argument(1), (_AND, 0, 0, 0xF), *_allow_only(_SOCK_STREAM)]
