"""The program of a worker process. It loads one verifier, then judges what comes through a socket until that closes.

Started as a script, `python -P worker_main.py CHANNEL LIFE`. Both arguments are numbers of open files: the socket, and
a pipe that closes when the parent ends. It imports only the standard library until the first message has said where
modules are found.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pickle
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

OUT_OF_MEMORY = 137
"""The exit status after a MemoryError."""
_F_SETSIG = 10  # Linux only: chooses the signal that is sent for a file


def main() -> None:
    """Serve one parent; ends when the parent does."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(channel.fileno(), False)
    os.set_inheritable(int(sys.argv[2]), False)
    _die_with_parent(int(sys.argv[2]))
    # A child of the verifier must not keep the socket open: the parent would never see this process end.
    os.register_at_fork(after_in_child=channel.close)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    request = pickle.loads(_read(channel))
    os.chdir(request["folder"])
    sys.path[:] = request["path"]
    judge = _load_judge(channel, request)
    # Half of the limit, so that a process that leaks is ended between items, before an allocation fails.
    allowed_mb = _resident_mb() + request["memory_mb"] / 2
    _limit_memory(request["memory_mb"])
    _write(channel, {"ready": True})
    own_pid = os.getpid()
    while True:
        reply = judge(pickle.loads(_read(channel)))
        if os.getpid() != own_pid:  # the verifier forked, and its child returned here
            os._exit(0)
        _write(channel, reply | {"grown": _resident_mb() > allowed_mb})


def _load_judge(channel: socket.socket, request: dict[str, Any]) -> Callable[[Any], dict[str, Any]]:
    """Load the verifier. Returns a function that handles a request and returns the last reply to it."""
    try:
        import asyncio

        from qwq_rl.errors import UserError
        from qwq_rl.verifiers.loading import load
        from qwq_rl.verifiers.runner.calls import answer

        verifier = load(request["spec"], request["params"])
    except BaseException as error:
        _write(channel, {"refused": f"{type(error).__name__}: {error}"})
        sys.exit(1)
    loop, own_pid = asyncio.new_event_loop(), os.getpid()

    def emit(index: int, verdict: Any, late: bool) -> None:
        if os.getpid() != own_pid:  # a child that the verifier forked must not write to the socket
            os._exit(0)
        metrics = {name: float(value) for name, value in verdict.metrics.items()}
        fields = [verdict.score, verdict.status, verdict.reason, verdict.answer, metrics, float(verdict.seconds)]
        _write(channel, {"place": index, "verdict": fields, "late": late})

    def judge(message: Any) -> dict[str, Any]:
        how, packed, role, deadline_s = message
        try:
            items = [pickle.loads(item) for item in packed]
        except Exception as error:  # a row may hold classes that this process cannot import
            return {"unread": f"{type(error).__name__}: {error}"}
        try:
            run = loop.run_until_complete
            return {"done": answer(verifier, how, items, role, deadline_s, emit, run, (UserError, MemoryError))}
        except UserError as error:
            return {"user_error": str(error)}
        except MemoryError:  # the process may be in any state; the parent asks again in a new one
            os._exit(OUT_OF_MEMORY)

    return judge


def _die_with_parent(lifeline: int) -> None:
    """Let the kernel kill this process when the parent's end of a pipe closes, whatever this process is doing.

    PR_SET_PDEATHSIG is no alternative: it would kill this process as soon as the parent's thread that started it ends.
    """
    with contextlib.suppress(OSError, AttributeError):  # not on Linux: it ends when it next reads from the socket
        fcntl.fcntl(lifeline, _F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    os.set_blocking(lifeline, False)
    with contextlib.suppress(BlockingIOError):
        if os.read(lifeline, 1) == b"":
            os._exit(0)  # the parent ended before the signal was set up


def _limit_memory(memory_mb: int) -> None:
    """Limit the address space to what is mapped now plus `memory_mb`.

    What a verifier imports may map many GB that it never touches, so this must not count.
    """
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_mb * 1024 * 1024, hard))


def _resident_mb() -> float:
    """The memory that this process uses; 0 if `/proc` is missing."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 1e6
    except OSError:
        return 0.0


def _read(channel: socket.socket) -> bytes:
    size = int.from_bytes(_read_bytes(channel, 8), "big")
    return _read_bytes(channel, size)


def _read_bytes(channel: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        chunk = channel.recv(min(size - len(received), 1 << 20))
        if not chunk:
            os._exit(0)  # the parent has ended, or closed the socket
        received += chunk
    return bytes(received)


def _write(channel: socket.socket, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    channel.sendall(len(data).to_bytes(8, "big") + data)


if __name__ == "__main__":
    main()
