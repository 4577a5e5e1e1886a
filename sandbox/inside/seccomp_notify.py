"""What the kernel tells the fork server of refused system calls: who tried what. Struct layout: linux/seccomp.h."""

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
"""Id, thread, flags; call number, architecture, instruction, arguments."""
_ANSWER = struct.Struct("=QqiI")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Notice:
    """A thread waits for the answer to one refused call."""

    id: int
    thread: int
    call: int
    target: int
    """The first argument: of a signal, the process that is meant."""


class FilterProgram(ctypes.Structure):
    """struct sock_fprog: a count of 8-byte instructions, and where they are."""

    _fields_ = (("count", ctypes.c_ushort), ("code", ctypes.c_void_p))


def install(program: bytes) -> int:
    """Put this process under a filter, and return the descriptor its notices come from. Raises OSError."""
    header = FilterProgram(len(program) // 8, ctypes.cast(ctypes.c_char_p(program), ctypes.c_void_p))
    number = ctypes.c_long(_SECCOMP[platform.machine()])
    listener: int = _libc.syscall(
        number, ctypes.c_uint(_SET_FILTER), ctypes.c_uint(_NEW_LISTENER), ctypes.byref(header)
    )
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp listener")
    return listener


def take(listener: int) -> Notice | None:
    """The next notice; None where whoever it was about is gone."""
    buffer = bytearray(_NOTICE.size)
    try:
        fcntl.ioctl(listener, seccomp.NEXT_NOTICE, buffer)
    except OSError:
        return None
    number, thread, _, call, _, _, target, *_ = _NOTICE.unpack(buffer)
    return Notice(number, thread, call, target & 0xFFFFFFFF)


def answer(listener: int, notice: Notice, *, allow: bool) -> None:
    """Refuse the call, or let it be made."""
    packed = _ANSWER.pack(notice.id, 0, 0 if allow else -errno.EPERM, _CONTINUE if allow else 0)
    try:
        fcntl.ioctl(listener, seccomp.ANSWER_NOTICE, bytearray(packed))
    except OSError:
        return  # whoever it was about is gone


def is_thread_of(thread: int, process: int) -> bool:
    """Whether a thread is known to belong to a process; without /proc only a process's first thread is."""
    return thread == process or os.path.exists(f"/proc/{process}/task/{thread}")
