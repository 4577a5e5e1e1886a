"""A worker process that loads a verifier by its name and judges with it; it is killed when it hangs."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwq_rl.errors import UserError
from qwq_rl.verifiers.contract import Verdict, Verifier
from qwq_rl.verifiers.loading import LoadedVerifier
from qwq_rl.verifiers.runner.calls import Emit, How, Item, Role
from qwq_rl.verifiers.runner.workers import GRACE_S, NoWorker, WorkerBroken
from qwq_rl.verifiers.verdicts import describe, fault

LOG = logging.getLogger("qwq_rl.verifiers")
PROGRAM = Path(__file__).with_name("worker_main.py")
START_S = 120.0
"""A verifier may import torch, on a busy machine."""

_ALL: weakref.WeakSet[Any] = weakref.WeakSet()


class ProcessWorker:
    """Starts clean, as a child of its own session, never as a fork of a process with threads and a GPU.

    Requests are pickled, since a row may hold what JSON cannot; replies are JSON, so that nothing of the worker's is
    ever unpickled. The channel is a socket of its own: a verifier may print or close what it likes.
    """

    def __init__(self, loaded: LoadedVerifier) -> None:
        """Start it and load there what `loaded` names; raises NoWorker where that fails."""
        self.usable = self.fresh = self._open = True
        self._name, self._deadline_s = loaded.spec, loaded.running.deadline_s
        self._channel, theirs = socket.socketpair()
        their_life, self._life = os.pipe()
        self._received = bytearray()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM), str(theirs.fileno()), str(their_life)],
                pass_fds=(theirs.fileno(), their_life),
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a verifier prints is for the log: stdout may be somebody's data
                env={"OMP_NUM_THREADS": "1", **os.environ},
                start_new_session=True,  # Ctrl-C is for the parent
            )
        except OSError as error:
            self._channel.close()
            os.close(self._life)
            raise NoWorker(f"its process does not start: {error}") from error
        finally:
            theirs.close()
            os.close(their_life)
        _ALL.add(self)
        self._load(loaded)

    @property
    def pid(self) -> int:
        """The process id, also that of its session and process group."""
        return self._process.pid

    def ask(self, verifier: Verifier, how: How, items: Sequence[Item], role: Role, emit: Emit) -> str:
        """As `Worker.ask`; the process has the verifier already, by its name."""
        self.fresh = False
        places, packed = [], []
        for place, item in enumerate(items):
            try:
                packed.append(pickle.dumps(item, protocol=5))
                places.append(place)
            except Exception as error:  # a row that holds a lock or an open file
                emit(place, fault(f"the row cannot be sent to the verifier's process: {describe(error)}"), False)
        if not packed:
            return ""
        try:
            self._send(pickle.dumps((how, packed, role, self._deadline_s), protocol=5))
            while True:
                reply = json.loads(self._receive(self._deadline_s + GRACE_S))
                if "user_error" in reply:
                    raise UserError(reply["user_error"])
                if "unread" in reply:
                    return self._unread(reply["unread"], places, emit)
                if "done" in reply:
                    self.usable = not reply["grown"]
                    if reply["grown"]:
                        LOG.warning("verifier %s: process %d takes ever more memory: ended", self._name, self.pid)
                    return str(reply["done"])
                emit(places[reply["place"]], Verdict(*reply["verdict"]), reply["late"])
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise WorkerBroken("crash", f"the verifier's process {self._give_up()} ({describe(error)})") from error

    def interrupt(self) -> None:
        """As `Worker.interrupt`."""
        with contextlib.suppress(OSError):
            os.kill(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill the process and what it started."""
        if not self._open:
            return
        self._open = self.usable = False
        _kill_all(self._process.pid)
        self._process.wait()
        self._channel.close()
        os.close(self._life)

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()

    def forget(self) -> None:
        """In a forked child: the process is the parent's, and so is its life line."""
        if self._open:
            self._open = self.usable = False
            self._channel.close()
            os.close(self._life)
            self._process.returncode = 0  # not this child's to wait for

    def _unread(self, why: str, places: Sequence[int], emit: Emit) -> str:
        if len(places) > 1:
            return f"held a row that the verifier's process cannot read: {why}"
        emit(places[0], fault(f"the verifier's process cannot read the row: {why}"), False)
        return ""

    def _load(self, loaded: LoadedVerifier) -> None:
        request = {
            "path": sys.path,
            "folder": loaded.folder,
            "spec": loaded.spec,
            "params": dict(loaded.params),
            "memory_mb": loaded.running.memory_mb,
        }
        try:
            self._send(pickle.dumps(request))
            reply = json.loads(self._receive(START_S))
        except WorkerBroken as error:
            late = f"loading it took longer than {START_S:g} s"
            raise NoWorker(late if error.status == "timeout" else f"its process does not start: {error}") from error
        except BaseException as error:
            self.close()
            if isinstance(error, Exception):
                raise NoWorker(f"its process does not start: {describe(error)}") from error
            raise
        if "refused" in reply:
            self.close()
            raise NoWorker(f"it cannot be loaded in a process of its own: {reply['refused']}")

    def _send(self, message: bytes) -> None:
        self._channel.settimeout(START_S)
        self._channel.sendall(len(message).to_bytes(8, "big") + message)

    def _receive(self, seconds: float) -> bytes:
        end = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        while len(self._received) < 8 or len(self._received) < 8 + int.from_bytes(self._received[:8], "big"):
            left = end - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                self._give_up("killed: it took too long")
                raise WorkerBroken("timeout", f"no verdict within {self._deadline_s:g} s")
            chunk = self._channel.recv(1 << 20)
            if not chunk:
                raise WorkerBroken("crash", f"the verifier's process {self._give_up()}")
            self._received += chunk
        size = 8 + int.from_bytes(self._received[:8], "big")
        message = bytes(self._received[8:size])
        del self._received[:size]
        return message

    def _give_up(self, why: str = "") -> str:
        """Kill what is left of the process; returns how it ended."""
        self.close()
        ending = why or _ending(self._process.returncode)
        LOG.warning("verifier %s: process %d %s", self._name, self._process.pid, ending)
        return ending


def _ending(status: int | None) -> str:
    if status is None or status >= 0:
        return f"ended with status {status}" + (": out of memory" if status == 137 else "")
    name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
    return "was killed" if -status == signal.SIGKILL else f"died of {name}"


def _kill_all(pid: int) -> None:
    """Kill a process, its group, and descendants that left the group; not yet waited for, its id is still its own."""
    family = _descendants(pid)
    for one in family:
        with contextlib.suppress(OSError):
            os.kill(one, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """Of the process itself and what it started, as far as `/proc` tells; parents before children."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(entry.read_bytes().rpartition(b")")[2].split()[1])
            parents.setdefault(parent, []).append(int(entry.parent.name))
    family = [pid]
    for one in family:
        family += parents.get(one, [])
    return family


def _close_all() -> None:
    for worker in list(_ALL):
        worker.close()


def _forget_all() -> None:
    for worker in list(_ALL):
        worker.forget()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
