"""Programs that try to get out, to look around, or to change something: each prints BROKEN if it can."""

from __future__ import annotations

_LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
_BROKEN = "\nprint('BROKEN', flush=True)"


def _call(numbers: tuple[int, int], *arguments: str, good: str = ">= 0") -> str:
    """A system call by its number (x86_64, aarch64)."""
    number = f"{{'x86_64': {numbers[0]}, 'aarch64': {numbers[1]}}}[os.uname().machine]"
    given = ", ".join(f"ctypes.c_long({item})" if not item.startswith("ctypes") else item for item in arguments)
    return f"{_LIBC}assert libc.syscall(ctypes.c_long({number}), {given}) {good}"


ATTACKS = {
    # the network and other channels
    "a socket": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "a stream socket": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_STREAM)",
    "a version 6 socket": "import socket\nsocket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
    "a unix socket": "import socket\nsocket.socket(socket.AF_UNIX, socket.SOCK_STREAM)",
    "a netlink socket": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "a datagram pair": "import socket\nsocket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "a shared memory segment": _LIBC + "assert libc.shmget(0, 4096, 0o600) >= 0",
    "a message queue": _LIBC + "assert libc.msgget(0, 0o600) >= 0",
    "a semaphore": _LIBC + "assert libc.semget(0, 1, 0o600) >= 0",
    # files of the host
    "a file of the host": "open('/etc/passwd').read()",
    "a folder of the host": "import os\nos.listdir('/etc')",
    "the root folder": "import os\nos.listdir('/')",
    "home folders": "import os\nos.listdir(os.path.expanduser('~root' if os.getuid() == 0 else '/home'))",
    "own memory as a file": "open('/proc/self/maps').read()",
    "own memory, writable": "open('/proc/self/mem', 'r+b')",
    "own command line": "open('/proc/self/cmdline').read()",
    "the parent's environment": "import os\nopen(f'/proc/{os.getppid()}/environ').read()",
    "the machine's memory": "open('/proc/meminfo').read()",
    "a setting of the kernel": "open('/proc/sys/kernel/hostname').read()",
    "the kernel's devices": "import os\nos.listdir('/sys')",
    # changes
    "a nameless file": "import os\nos.open('/tmp', os.O_TMPFILE | os.O_WRONLY)",
    "a file in memory": "import os\nos.memfd_create('x')",
    "a file in shared memory": "import os\nos.open('/dev/shm', os.O_TMPFILE | os.O_WRONLY)",
    "a folder": "import os\nos.mkdir('/tmp/qwq-attack-folder')\nos.rmdir('/tmp/qwq-attack-folder')",
    "a link": "import os\nos.symlink('/etc', '/tmp/qwq-attack-link')\nos.unlink('/tmp/qwq-attack-link')",
    "a pipe with a name": "import os\nos.mkfifo('/tmp/qwq-attack-pipe')\nos.unlink('/tmp/qwq-attack-pipe')",
    "changed modes": "import os\nos.chmod('/tmp', os.stat('/tmp').st_mode & 0o7777)",
    "a changed time": "import os\nos.utime('/tmp')",
    "a changed library": "import os\nos.close(os.open(os.__file__, os.O_WRONLY))",
    # processes
    "fork": "import os\nif os.fork() == 0: os._exit(0)",
    "fork by hand": _LIBC + "pid = libc.fork()\nif pid == 0: libc._exit(0)\nassert pid > 0",
    "clone by number": _call((56, 220), "17", "0", "0", "0", "0") + "\n",
    "a subprocess": "import subprocess\nsubprocess.run(['/bin/true'], check=True)",
    "os.system": "import os\nassert os.system('true') == 0",
    "multiprocessing": (
        "import multiprocessing as m\np = m.get_context('fork').Process(target=int)\np.start()\np.join()\n"
        "assert p.exitcode == 0"
    ),
    "a spawned process": "import os\nos.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)",
    "exec": "import os\nos.execv('/bin/echo', ['echo', 'BROKEN'])",
    "a session": "import os\nos.setpgid(0, 0)\nassert os.getpgrp() == os.getpid()",
    # other processes
    "a signal to the parent": "import os\nos.kill(os.getppid(), 0)",
    "a signal to a group": "import os\nos.killpg(os.getpgrp(), 0)",
    "a signal to all": "import os\nos.kill(1, 0)",
    "a signal through a socket": (
        "import fcntl, os, socket\na, b = socket.socketpair()\nfcntl.fcntl(a, fcntl.F_SETOWN, os.getppid())"
    ),
    "a signal through a descriptor": "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)",
    "ptrace": _LIBC + "assert libc.ptrace(0, 0, 0, 0) == 0",
    "memory of a process": _LIBC + "assert libc.process_vm_readv(os.getpid(), None, 0, None, 0, 0) == 0",
    "limits of the parent": "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
    "priority": "import os\nos.setpriority(os.PRIO_PROCESS, 0, 19)",
    # the walls themselves
    "a higher limit": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (900, 900))",
    "more memory": "import mmap\nmmap.mmap(-1, 2 << 30).close()",
    "more descriptors": "import os\nassert len([os.dup(0) for _ in range(300)]) == 300",
    "prctl": _LIBC + "assert libc.prctl(15, b'x', 0, 0, 0) == 0",
    "a user namespace": _LIBC + "assert libc.unshare(0x10000000) == 0",
    "personality": _LIBC + "assert libc.personality(0xFFFFFFFF) >= 0",
    "another filter": _LIBC + "assert libc.prctl(38, 1, 0, 0, 0) == 0",
    "a ring of calls": _call((425, 425), "2", "ctypes.create_string_buffer(120)"),
    "a memory fault handler": _call((323, 282), "1"),
    "a keyring": _call((250, 219), "0", "-3", "1"),
    "the schedule": "import os\nos.sched_setaffinity(0, os.sched_getaffinity(0))",
    "a terminal's input": "import fcntl, os\nfcntl.ioctl(os.pipe()[0], 0x5452, bytearray(4))",
}
"""Name: program; the last lines of most raise where the attempt fails."""
ATTACKS = {name: code if "BROKEN" in code else code + _BROKEN for name, code in ATTACKS.items()}

SEEN_BELOW_L3 = {
    "that a file exists": "import os\nos.stat('/etc/passwd')" + _BROKEN,
    "the host's name": "import os\nassert os.uname().nodename == input()" + _BROKEN,
    "process numbers": "import os\nassert os.getppid() > 1" + _BROKEN,
}
"""What can be seen, though not read or changed, without namespaces."""

_TIME, _MEMORY, _OUTPUT, _FAILED = "time_limit", "memory_limit", "output_limit", "runtime_error"
_CATCH = """
import signal
for n in range(1, 65):
    try: signal.signal(n, signal.SIG_IGN)
    except (OSError, ValueError): pass
"""
BOMBS = {
    "a loop": ("while True: pass", (_TIME,)),
    "a loop in threads": (
        "import threading\ndef f():\n    while True: pass\nfor _ in range(4): threading.Thread(target=f).start()",
        (_TIME,),
    ),
    "a loop that ignores signals": (_CATCH + "while True: pass", (_TIME,)),
    "a sleep": ("import time\ntime.sleep(60)", (_TIME,)),
    "a stopped process": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", (_TIME, _FAILED)),
    "a sleep at exit": ("import atexit, time\natexit.register(time.sleep, 60)", (_TIME,)),
    "a thread that waits": ("import threading\nthreading.Thread(target=threading.Event().wait).start()", (_TIME,)),
    "a big power": ("x = 10 ** 10 ** 8", (_TIME,)),
    "a bad pattern": ("import re\nre.match('(a+)+$', 'a' * 40 + 'b')", (_TIME,)),
    "forks": (
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        (_TIME, _FAILED),
    ),
    "threads": (
        "import threading, time\nthreading.stack_size(32768)\n"
        "while True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        (_TIME, _MEMORY, _FAILED),
    ),
    "memory at once": ("x = 'a' * (1 << 32)", (_MEMORY,)),
    "memory bit by bit": ("x = []\nwhile True: x.append(bytearray(1 << 20))", (_MEMORY,)),
    "memory in a dictionary": ("x = {}\nwhile True: x[len(x)] = str(x.keys)", (_MEMORY, _TIME)),
    "an unpacked bomb": (
        "import zlib\nx = zlib.compress(b'0' * (64 << 20), 9)\ny = [zlib.decompress(x) for _ in range(9)]",
        (_MEMORY, _TIME, _FAILED),
    ),
    "output": ("while True: print('x' * 10000)", (_OUTPUT,)),
    "errors": ("import sys\nwhile True: print('x' * 10000, file=sys.stderr)", (_OUTPUT,)),
    "output past the signal": (
        _CATCH + "while True:\n    try: print('x' * 10000, flush=True)\n    except OSError: break",
        (_OUTPUT,),
    ),
    "a grown output": ("import os\nos.truncate(1, 1 << 40)", (_OUTPUT, _FAILED)),
    "a deep call": ("import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()", (_FAILED, _MEMORY, _TIME)),
    "a deep program": ("(" * 100_000, ("compile_error",)),
}
"""Programs without an end or a bound, and the verdicts that end them."""

CHEATS = {
    "exit": "import sys\ndef f(x): sys.exit(0)",
    "_exit": "import os\ndef f(x): os._exit(0)",
    "SystemExit": "def f(x): raise SystemExit",
    "exit while loading": "import os\nos._exit(0)\ndef f(x): return 0",
    "equals everything": "class E:\n    def __eq__(self, other): return True\ndef f(x): return E()",
    "a number that equals everything": (
        "class E(int):\n    __eq__ = lambda self, other: True\n    __hash__ = int.__hash__\ndef f(x): return E(7)"
    ),
    "a text that equals everything": (
        "class E(str):\n    __eq__ = lambda self, other: True\n    __hash__ = str.__hash__\ndef f(x): return E('7')"
    ),
    "a patched exec": "import builtins\nbuiltins.exec = exec = lambda *a: None\ndef f(x): return 0",
    "an answer from the caller's constants": (
        "import sys\ndef f(x):\n    return max(c for c in sys._getframe(1).f_code.co_consts if isinstance(c, int))"
    ),
    "a handler of errors": "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\ndef f(x): return 0",
    "an exit at exit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 0",
}
"""Submissions whose `f(1)` is not 8 and that pass a judge in the same process."""
