"""Builds a separate file tree for the fork server that holds only what programs may read. Its children inherit it.

Constants: linux/mount.h. Call numbers: the kernel's tables.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Sequence

_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_EXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_RELATIVE_TIMES, _DETACH, _NEW_MOUNTS = 1 << 21, 2, 0x00020000
_KEPT_FLAGS = {2: _NO_SUID, 4: _NO_DEVICES, 8: _NO_EXEC, 1024: 1024, 2048: 2048, 4096: _RELATIVE_TIMES}
"""Flags of a mounted file system, as statvfs gives them and as mount takes them. A remount in a user namespace must
keep them, or the kernel refuses it.
"""
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_BASES = ("/mnt", "/tmp", "/home", "/srv", "/opt", "/var")
SCRATCH = "/scratch"

_libc = ctypes.CDLL(None, use_errno=True)


def enter(readable: Sequence[str], devices: Sequence[str], scratch_mb: int) -> None:
    """Make a tree of these folders and files, read-only, and devices, and make it the root for good. Raises OSError.

    With `scratch_mb` there is also a writable folder of that size. /proc is mounted if the machine allows it, since
    /dev/stdin leads through it; it shows a process only itself.
    """
    # the new tree is built over this folder and hides its content, so nothing readable may lie in it
    base = next(folder for folder in _BASES if os.path.isdir(folder) and not _contains(folder, readable))
    _check(_libc.unshare(_NEW_MOUNTS))
    _mount(None, "/", None, _REC | _PRIVATE)  # mounts made here must not appear on the host
    _mount("tmpfs", base, "tmpfs", _NO_SUID | _NO_DEVICES, "size=1m,nr_inodes=4096,mode=755")
    for path in readable:
        _bind(path, base)
    for path in devices:
        if os.path.exists(path):
            _bind(path, base, devices=True)
    os.makedirs(base + "/tmp", exist_ok=True)
    _mount_proc(base)
    if scratch_mb:
        os.mkdir(base + SCRATCH)
        options = f"size={scratch_mb}m,nr_inodes=4096,mode=777"
        _mount("tmpfs", base + SCRATCH, "tmpfs", _NO_SUID | _NO_DEVICES | _NO_EXEC, options)
    os.chdir(base)
    # with "." twice the old root lies over the new one, until it is unmounted: see pivot_root(2)
    _check(_libc.syscall(_PIVOT_ROOT[platform.machine()], b".", b"."))
    _check(_libc.umount2(b".", _DETACH))
    os.chdir("/")
    _mount(None, "/", None, _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_DEVICES)


def _mount_proc(base: str) -> None:
    """Mount /proc if possible, and make the links in /dev that lead through it."""
    os.mkdir(base + "/proc")
    with contextlib.suppress(OSError):
        _mount("proc", base + "/proc", "proc", _NO_SUID | _NO_DEVICES | _NO_EXEC, "subset=pid,hidepid=4")
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink("/proc/self/fd" + target, f"{base}/dev/{name}")


def _bind(path: str, base: str, *, devices: bool = False) -> None:
    """Show a folder or file of the host under the same name below `base`, read-only unless it is a device."""
    target = base + path
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.exists(target):
            return
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))
    _mount(path, target, None, _BIND | _REC)
    # a bind mount takes no flags: they are set by the remount below
    mount_flags = os.statvfs(target).f_flag
    flags = sum(flag for bit, flag in _KEPT_FLAGS.items() if mount_flags & bit)
    if not devices:
        flags |= _READ_ONLY | _NO_DEVICES
    _mount(None, target, None, _REMOUNT | _BIND | _NO_SUID | flags)


def _contains(folder: str, paths: Sequence[str]) -> bool:
    return any(os.path.realpath(path).startswith((folder + "/", os.path.realpath(folder) + "/")) for path in paths)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if argument is None else os.fsencode(argument) for argument in (source, target, kind)]
    data = None if options is None else options.encode()
    _check(_libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), data))


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
