"""The program of a worker process: it loads one verifier, then judges what comes through a socket until that closes.

Started as a script, `python -P worker_main.py CHANNEL LIFE`, both numbers of open files. Until the first message has
said where modules are found, it imports the standard library only.
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
_F_SETSIG = 10


def main() -> None:
    """Serve one parent; ends when it does."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(channel.fileno(), False)
    os.set_inheritable(int(sys.argv[2]), False)
    _die_with_parent(int(sys.argv[2]))
    os.register_at_fork(after_in_child=channel.close)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    request = pickle.loads(_read(channel))
    os.chdir(request["folder"])
    sys.path[:] = request["path"]
    judge = _loaded(channel, request)
    allowed = _resident_mb() + request["memory_mb"] / 2
    _limit_memory(request["memory_mb"])
    _write(channel, {"ready": True})
    own = os.getpid()
    while True:
        reply = judge(pickle.loads(_read(channel)))
        if os.getpid() != own:  # the verifier forked and its child came back here
            os._exit(0)
        _write(channel, reply | {"grown": _resident_mb() > allowed})


def _loaded(channel: socket.socket, request: dict[str, Any]) -> Callable[[Any], dict[str, Any]]:
    """Load the verifier; returns what turns a request into the last reply to it."""
    try:
        import asyncio

        from qwq_rl.errors import UserError
        from qwq_rl.verifiers.loading import load
        from qwq_rl.verifiers.runner.calls import answer

        verifier = load(request["spec"], request["params"])
    except BaseException as error:
        _write(channel, {"refused": f"{type(error).__name__}: {error}"})
        sys.exit(1)
    loop, own = asyncio.new_event_loop(), os.getpid()

    def emit(place: int, verdict: Any, late: bool) -> None:
        if os.getpid() != own:
            os._exit(0)
        metrics = {name: float(value) for name, value in verdict.metrics.items()}
        fields = [verdict.score, verdict.status, verdict.reason, verdict.answer, metrics, float(verdict.seconds)]
        _write(channel, {"place": place, "verdict": fields, "late": late})

    def judge(message: Any) -> dict[str, Any]:
        how, packed, role, deadline_s = message
        try:
            items = [pickle.loads(item) for item in packed]
        except Exception as error:  # a row of classes that this process does not know
            return {"unread": f"{type(error).__name__}: {error}"}
        try:
            run = loop.run_until_complete
            return {"done": answer(verifier, how, items, role, deadline_s, emit, run, (UserError, MemoryError))}
        except UserError as error:
            return {"user_error": str(error)}
        except MemoryError:  # what is left may be in any state; the parent asks again in a new process
            os._exit(OUT_OF_MEMORY)

    return judge


def _die_with_parent(life: int) -> None:
    """Let the kernel kill this process when the parent's end of a pipe closes, whatever this one is busy with.

    PR_SET_PDEATHSIG would kill it as soon as the parent's thread that started it ends.
    """
    with contextlib.suppress(OSError, AttributeError):  # elsewhere than on Linux it ends when it is next idle
        fcntl.fcntl(life, _F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    os.set_blocking(life, False)
    with contextlib.suppress(BlockingIOError):
        if os.read(life, 1) == b"":
            os._exit(0)  # it was gone before


def _limit_memory(memory_mb: int) -> None:
    """Count from here: what a verifier imports may map many GB that it never touches."""
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_mb * 1024 * 1024, hard))


def _resident_mb() -> float:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 1e6
    except OSError:
        return 0.0


def _read(channel: socket.socket) -> bytes:
    size = int.from_bytes(_exactly(channel, 8), "big")
    return _exactly(channel, size)


def _exactly(channel: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        chunk = channel.recv(min(size - len(received), 1 << 20))
        if not chunk:
            os._exit(0)  # the parent is gone, or has no more to ask
        received += chunk
    return bytes(received)


def _write(channel: socket.socket, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    channel.sendall(len(data).to_bytes(8, "big") + data)


if __name__ == "__main__":
    main()
