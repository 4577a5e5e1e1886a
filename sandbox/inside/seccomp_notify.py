"""Notices that the kernel sends to the fork server about refused system calls. Struct layout: linux/seccomp.h."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from dataclasses import dataclass

from qwq_rl.sandbox.inside import seccomp

_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SET_FILTER, _NEW_LISTENER, _CONTINUE = 1, 8, 1
_NOTICE = struct.Struct("=QIIiIQ6Q")
"""Id, thread, flags; call number, architecture, instruction pointer, arguments."""
_ANSWER = struct.Struct("=QqiI")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Notice:
    """One refused call. The thread that made it waits for the answer."""

    id: int
    thread: int
    call: int
    target: int
    """The call's first argument; for `kill` and `tgkill` the process that gets the signal."""


class FilterProgram(ctypes.Structure):
    """struct sock_fprog: the number of 8-byte instructions and their address."""

    _fields_ = (("count", ctypes.c_ushort), ("code", ctypes.c_void_p))


def install(program: bytes) -> int:
    """Install a filter in this process and return the descriptor for its notices. Raises OSError."""
    header = FilterProgram(len(program) // 8, ctypes.cast(ctypes.c_char_p(program), ctypes.c_void_p))
    syscall_number = ctypes.c_long(_SECCOMP[platform.machine()])
    listener: int = _libc.syscall(
        syscall_number, ctypes.c_uint(_SET_FILTER), ctypes.c_uint(_NEW_LISTENER), ctypes.byref(header)
    )
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp listener")
    return listener


def take(listener: int) -> Notice | None:
    """The next notice; None if the thread that made the call is gone."""
    # the kernel wants the buffer filled with zeros
    buffer = bytearray(_NOTICE.size)
    try:
        fcntl.ioctl(listener, seccomp.NEXT_NOTICE, buffer)
    except OSError:
        return None
    notice_id, thread, _, call, _, _, target, *_ = _NOTICE.unpack(buffer)
    return Notice(notice_id, thread, call, target & 0xFFFFFFFF)


def answer(listener: int, notice: Notice, *, allow: bool) -> None:
    """Refuse the call, or let it run."""
    packed = _ANSWER.pack(notice.id, 0, 0 if allow else -errno.EPERM, _CONTINUE if allow else 0)
    try:
        fcntl.ioctl(listener, seccomp.ANSWER_NOTICE, bytearray(packed))
    except OSError:
        return  # the thread that made the call is gone


def is_thread_of(thread: int, process: int) -> bool:
    """Whether a thread is known to belong to a process. Without /proc only the first thread of a process is known."""
    return thread == process or os.path.exists(f"/proc/{process}/task/{thread}")
