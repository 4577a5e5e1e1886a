"""Landlock: a child may read only the standard library and a few devices, and may send signals only inside its domain.

Constants and struct layout: linux/landlock.h. https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_FILE, _TRUNCATE = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 14
_FILE_RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many file access rights each version of the interface knows. Later versions count as the last one here."""
_TCP_RIGHTS, _SCOPES = 0b11, 0b11

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """The kernel's version of the interface; 0 if it has none."""
    return max(0, _libc.syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG)))


def ruleset(
    readable: Iterable[str], devices: Iterable[str], *, runnable: bool = False, writable: str | None = None
) -> int:
    """Make rules and return their descriptor. Raises OSError.

    `readable` folders and files may be read and, with `runnable`, executed. `devices` may be read and written. Files in
    the folder `writable` may be read, written, made and removed.
    """
    abi = version()
    rights = (1 << _FILE_RIGHTS_BY_VERSION[min(abi, 5)]) - 1
    # all rights of files, TCP (version 4) and scopes (version 6) are handled: what no rule allows is refused
    fields = [rights] + [_TCP_RIGHTS] * (abi >= 4) + [_SCOPES] * (abi >= 6)
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    rules = _check(_libc.syscall(_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)))
    execute = _EXECUTE if runnable else 0
    for path in readable:
        _allow(rules, path, _READ_FILE | execute | (_READ_DIR if os.path.isdir(path) else 0))
    for path in devices:
        _allow(rules, path, _READ_FILE | _WRITE_FILE)
    if writable is not None:
        change = _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_FILE | (_TRUNCATE if abi >= 3 else 0)
        _allow(rules, writable, _READ_FILE | _READ_DIR | _WRITE_FILE | change)
    return rules


def restrict(rules: int) -> None:
    """Apply the rules to this process for good. It must have set no_new_privs before. Raises OSError."""
    _check(_libc.syscall(_RESTRICT, rules, 0))


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        path_fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        attributes = struct.pack("=Qi", rights, path_fd)
        _check(_libc.syscall(_ADD_RULE, rules, ctypes.c_int(_PATH_BENEATH), attributes, ctypes.c_uint32(0)))
    finally:
        os.close(path_fd)


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
