"""Imports math-verify once, then forks workers that compare pairs. Each worker may be killed at any time.

It is started as a script (`python -P fork_server.py MEMORY_MB`, see `client`), so that it imports nothing of the
project and nothing of the trainer. Stdin is a socket. Its commands have five bytes: `F` and the number of a new worker,
together with the socket over which this worker talks, or `K` and the number of a worker to kill. When the socket
closes, or the parent is gone, all processes end.

A worker sends one JSON object per line: first that it is ready (or what is missing), then a reply to each question.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import replace
from typing import Any

COMMAND = struct.Struct("!ci")
MOST_QUESTIONS = 300
"""A worker ends after so many questions, so that what the libraries keep in memory does not add up."""
REL_TOL = 1e-6
"""The relative tolerance between a decimal and another value. Exact numbers must agree to 1e-12."""
WARM_UP = [
    (r"\frac{x+1}{2}", r"\frac{1}{2}(x+1)"),
    (r"\sin^2 x+\cos^2 x", "1"),
    ("x>1", r"(1,\infty)"),
    ("y=2x", "2y=4x"),
]
"""Equal pairs that make the libraries load all their parts, so that no question pays for this second of CPU."""


class Late(BaseException):
    """The soft deadline passed. It is no Exception, because the libraries catch those and go on."""


def main() -> None:
    """Serve commands until the parent is gone."""
    memory_mb = int(sys.argv[1])
    commands = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # discard what libraries print
        os.dup2(null, descriptor)
    failure = _load()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from now on closing the commands ends it, with its workers
    gc.freeze()  # else a garbage collection in a worker would copy every shared page
    # When a worker ends, its signal makes `woken` readable, so that `select` returns and the worker is reaped at once.
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    workers: dict[int, int] = {}
    parent = os.getppid()
    while os.getppid() == parent:
        ready, _, _ = select.select([commands, woken], [], [], 5.0)
        if woken in ready:
            woken.recv(4096)
            _reap(workers)
        if commands not in ready:
            continue
        command, number, channel = _command(commands)
        if command == b"K" and number in workers:
            os.kill(workers[number], signal.SIGKILL)  # not reaped yet, so no other process has this id
        elif command == b"F" and failure:
            _send(channel, failure)
            channel.close()
        elif command == b"F":
            try:
                pid = os.fork()
            except OSError as error:  # no memory, too many processes
                _send(channel, {"broken": f"it cannot fork: {error}"})
            else:
                if pid == 0:
                    for inherited in (commands, woken, waker):
                        inherited.close()
                    _work(channel, memory_mb)
                workers[number] = pid
            channel.close()
        elif not command:
            break
    for pid in workers.values():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _load() -> dict[str, str]:
    """Import math-verify and use it once, so that workers start warm.

    Returns why it cannot be used, or an empty dictionary.
    """
    try:
        import logging

        import math_verify  # noqa: F401

        logging.disable(logging.CRITICAL)
        for gold, answer in WARM_UP:
            if compare(gold, answer) != "equal":
                return {"broken": f"it takes {gold} and {answer} for different"}
    except ImportError as error:
        return {"missing": str(error)}
    except Exception as error:
        return {"broken": f"{type(error).__name__}: {error}"}
    return {}


def _reap(workers: dict[int, int]) -> None:
    """Forget the workers that ended."""
    for number, pid in list(workers.items()):
        if os.waitpid(pid, os.WNOHANG)[0]:
            del workers[number]


def _command(commands: socket.socket) -> tuple[bytes, int, Any]:
    """The next command with its number and its socket. An empty command if the parent closed its end."""
    received, descriptors, _, _ = socket.recv_fds(commands, COMMAND.size, 1)
    while received and len(received) < COMMAND.size:
        chunk = commands.recv(COMMAND.size - len(received))
        received = received + chunk if chunk else b""
    if not received:
        return b"", 0, None
    command, number = COMMAND.unpack(received)
    return command, number, socket.socket(fileno=descriptors[0]) if descriptors else None


def _send(channel: Any, reply: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the other end is closed
        channel.sendall(json.dumps(reply).encode() + b"\n")


def _work(channel: Any, memory_mb: int) -> None:
    """Answer questions in a fresh fork, then end the process. Never returns."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _die_with_parent()
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _send(channel, {"ready": True})
        lines = channel.makefile("rb")
        for count, line in enumerate(lines, start=1):
            reply = _reply_in_time(json.loads(line))
            # After an error or an interruption the state of the libraries is unknown: take no other question.
            last = count == MOST_QUESTIONS or "outcome" not in reply
            _send(channel, {**reply, "last": last})
            if last:
                break
    finally:
        os._exit(0)


def _die_with_parent() -> None:
    """On Linux the kernel kills this process when the fork server ends; elsewhere it ends when its socket closes."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        server = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != server:  # it ended before the call above
            os._exit(0)


def _reply_in_time(question: dict[str, Any]) -> dict[str, Any]:
    """The reply to one question.

    The question is late after its `seconds` of wall time or its `cpu` seconds, whichever comes first.
    """
    running, started = True, time.process_time()

    def late(*_: object) -> None:
        if running:
            raise Late

    signal.signal(signal.SIGALRM, late)
    signal.signal(signal.SIGPROF, late)
    try:
        try:
            _alarm(question["seconds"], question["cpu"])
            return {"outcome": compare(question["gold"], question["answer"])}
        finally:
            running = False  # an alarm from here on must not raise
            _alarm(0, 0)
    except Late:
        _alarm(0, 0)  # an alarm may have come again before the first stop
        return {"late": time.process_time() - started}
    except (Exception, RecursionError, MemoryError) as error:
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}


def _alarm(seconds: float, cpu: float) -> None:
    """Set both alarms, or stop them with 0. They repeat, because some code of the libraries catches everything."""
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.02)
    signal.setitimer(signal.ITIMER_PROF, cpu, 0.02)


def compare(gold: str, answer: str) -> str:
    """Return `equal`, `different` or `gold_unread` for two LaTeX formulas.

    math-verify is not symmetric (it takes the right side of an equation for its value), so both directions must agree.
    It rounds to 6 decimals, so numbers must also agree relative to their size.
    """
    from math_verify import verify

    read_gold = _read(gold)
    if not read_gold:
        return "gold_unread"
    read_answer = _read(answer)
    settings = {"allow_set_relation_comp": True, "timeout_seconds": None}
    same = (
        bool(read_answer)
        and verify(read_gold, read_answer, **settings)
        and verify(read_answer, read_gold, **settings)
        and all(
            _near(gold_value, answer_value) for gold_value, answer_value in zip(read_gold, read_answer, strict=False)
        )
    )
    return "equal" if same else "different"


def _read(latex: str) -> list[Any]:
    """The formula as sympy reads it: a list with one value, or an empty list if it cannot be read.

    It never takes a number out of a text that it cannot read as a whole.
    """
    from math_verify import LatexExtractionConfig, parse

    plain = LatexExtractionConfig(boxed_match_priority=0)
    # By default units are dropped, so 5 m and 5 cm would be equal.
    config = replace(plain, normalization_config=replace(plain.normalization_config, units=False))
    values = parse(
        f"\\boxed{{{latex}}}",
        extraction_config=[config],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )
    return list(values)


def _near(gold: Any, answer: Any) -> bool:
    """Whether two numbers agree relative to their size. True if one of them is no number."""
    if not (getattr(gold, "is_number", False) and getattr(answer, "is_number", False)):
        return True
    difference = abs(gold - answer).doit().evalf(30)
    if not difference.is_comparable:  # none of its digits is significant, so it is zero
        return True
    size = max(abs(value).doit().evalf(30) for value in (gold, answer))
    has_decimal = any(atom.is_Float for value in (gold, answer) for atom in value.atoms())
    return bool(difference <= (REL_TOL if has_decimal else 1e-12) * size)


if __name__ == "__main__":
    main()
