"""A worker process that loads a verifier by its name and judges with it. It is killed if it hangs.

`worker_main` is the program that runs in the process.
"""

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
"""How long loading may take. A verifier may import torch, on a busy machine."""

_ALL: weakref.WeakSet[Any] = weakref.WeakSet()
"""All workers of this process, to be closed when it ends."""


class ProcessWorker:
    """A new process in a session of its own, never a fork of this process with its threads and its GPU.

    Requests are pickled, because a row may hold what JSON cannot. Replies are JSON, so that nothing that the worker
    sends is ever unpickled. They use a socket of their own, because a verifier may print anything and close any
    standard stream.
    """

    def __init__(self, loaded: LoadedVerifier) -> None:
        """Start the process and load there what `loaded` names; raises NoWorker if that fails."""
        self.usable = self.fresh = self._open = True
        self._name, self._deadline_s = loaded.spec, loaded.running.deadline_s
        self._channel, child_channel = socket.socketpair()
        child_lifeline, self._lifeline = os.pipe()
        self._received = bytearray()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM), str(child_channel.fileno()), str(child_lifeline)],
                pass_fds=(child_channel.fileno(), child_lifeline),
                stdin=subprocess.DEVNULL,
                stdout=2,  # the verifier's prints go to the log: stdout may carry results
                env={"OMP_NUM_THREADS": "1", **os.environ},
                start_new_session=True,  # Ctrl-C must reach only the parent
            )
        except OSError as error:
            self._channel.close()
            os.close(self._lifeline)
            raise NoWorker(f"its process does not start: {error}") from error
        finally:
            child_channel.close()
            os.close(child_lifeline)
        _ALL.add(self)
        self._load(loaded)

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its session and process group."""
        return self._process.pid

    def ask(self, verifier: Verifier, how: How, items: Sequence[Item], role: Role, emit: Emit) -> str:
        """As `Worker.ask`. `verifier` is not sent: the process has loaded it already."""
        self.fresh = False
        indices, packed = [], []
        for index, item in enumerate(items):
            try:
                packed.append(pickle.dumps(item, protocol=5))
                indices.append(index)
            except Exception as error:  # for example a row that holds a lock or an open file
                emit(index, fault(f"the row cannot be sent to the verifier's process: {describe(error)}"), False)
        if not packed:
            return ""
        try:
            self._send(pickle.dumps((how, packed, role, self._deadline_s), protocol=5))
            while True:
                reply = json.loads(self._receive(self._deadline_s + GRACE_S))
                if "user_error" in reply:
                    raise UserError(reply["user_error"])
                if "unread" in reply:
                    return self._unread(reply["unread"], indices, emit)
                if "done" in reply:
                    self.usable = not reply["grown"]
                    if reply["grown"]:
                        LOG.warning("verifier %s: process %d takes ever more memory: ended", self._name, self.pid)
                    return str(reply["done"])
                emit(indices[reply["place"]], Verdict(*reply["verdict"]), reply["late"])
        # Not only OSError: a verifier can write to any open file, so a reply may be garbled.
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise WorkerBroken("crash", f"the verifier's process {self._give_up()} ({describe(error)})") from error

    def interrupt(self) -> None:
        """As `Worker.interrupt`."""
        with contextlib.suppress(OSError):
            # The `ask` that is waiting then finds the socket closed.
            os.kill(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill the process and everything that it started."""
        if not self._open:
            return
        self._open = self.usable = False
        _kill_all(self._process.pid)
        self._process.wait()
        self._channel.close()
        os.close(self._lifeline)

    def __del__(self) -> None:
        if hasattr(self, "_process"):  # missing if the process could not be started
            self.close()

    def forget(self) -> None:
        """In a forked child, let go of the process without ending it: it belongs to the parent."""
        if self._open:
            self._open = self.usable = False
            self._channel.close()
            os.close(self._lifeline)
            self._process.returncode = 0  # so that Popen does not wait for a process that is not this child's

    def _unread(self, why: str, indices: Sequence[int], emit: Emit) -> str:
        """Handle a message that the process could not unpickle: a fault if it held one row, else a failed batch."""
        if len(indices) > 1:
            return f"held a row that the verifier's process cannot read: {why}"
        emit(indices[0], fault(f"the verifier's process cannot read the row: {why}"), False)
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
        """The next message; its first 8 bytes are its size. Raises WorkerBroken if it is late or the process ended."""
        end = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        while len(self._received) < 8 or len(self._received) < 8 + int.from_bytes(self._received[:8], "big"):
            remaining = end - time.monotonic()
            if remaining <= 0 or not poll.poll(remaining * 1000):
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
    """How a process ended, in words."""
    if status is None or status >= 0:
        return f"ended with status {status}" + (": out of memory" if status == 137 else "")
    name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
    return "was killed" if -status == signal.SIGKILL else f"died of {name}"


def _kill_all(pid: int) -> None:
    """Kill a process, its process group, and descendants that left the group.

    The process was not waited for yet, so its id cannot belong to another one.
    """
    # List them first: once the process is dead, its children have another parent.
    family = _descendants(pid)
    for member in family:
        with contextlib.suppress(OSError):
            os.kill(member, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """The ids of the process and of all its descendants that `/proc` shows, parents before children."""
    parents: dict[int, list[int]] = {}
    for stat_file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name of the program, in parentheses, may hold spaces. The parent's id is the second field after it.
            parent = int(stat_file.read_bytes().rpartition(b")")[2].split()[1])
            parents.setdefault(parent, []).append(int(stat_file.parent.name))
    family = [pid]
    for member in family:
        # The list grows while it is read, so children of children are found too.
        family += parents.get(member, [])
    return family


def _close_all() -> None:
    for worker in list(_ALL):
        worker.close()


def _forget_all() -> None:
    for worker in list(_ALL):
        worker.forget()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
