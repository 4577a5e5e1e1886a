"""The processes of a run: how one is started, asked to stop, made to stop, and what its last words were.

Every process gets a session of its own, so that Ctrl-C in the terminal reaches only `qwq-rl run`, which passes it on to
the trainers: the launcher between them would die of it at once and leave the trainer behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from qwq_rl.run_folder.locks import LAUNCHER, is_alive

# What `accelerate launch` would otherwise choose by itself, with a warning for each.
LEAN_LAUNCH = (
    "--num_processes=1",
    "--num_machines=1",
    "--mixed_precision=no",
    "--dynamo_backend=no",
)
GRACE_SECONDS = 60.0
QUOTED_LINES = 15
# An error's own line; the lines of source in a traceback are indented.
_NO_SPACE = re.compile(r"^\S.*No space left on device", re.MULTILINE)
# How a process of ours ends its output where the mistake is the user's: one message, no traceback.
_OWN_MESSAGE = re.compile(r"^(?:error|qwq_rl\.evaluate): (.*)\Z", re.MULTILINE | re.DOTALL)


def accelerate_command(config: Path | None) -> tuple[str, ...]:
    """The start of an `accelerate launch` command line: by `config` where there is one, else one process.

    `--num_cpu_threads_per_process` is left out: accelerate takes it from OMP_NUM_THREADS, which `environment` sets.
    """
    chosen = (f"--config_file={config}",) if config else LEAN_LAUNCH
    return (sys.executable, "-m", "accelerate.commands.launch", *chosen)


def environment() -> dict[str, str]:
    """The environment of a job: the caller's, with what a small machine needs where the caller did not say."""
    defaults = {
        "OMP_NUM_THREADS": "1",  # several math threads on a busy small machine are far slower than one
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    return defaults | os.environ | {LAUNCHER: str(os.getpid())}


@dataclass(frozen=True)
class StageProcess:
    """What to start. `launched`: the process is a launcher, and its children do the work. `log` is appended to."""

    name: str
    command: Sequence[str]
    log: Path
    launched: bool
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProcessEnd:
    """How a job ended. `status` is the exit status, negative for a signal; times are seconds since the epoch."""

    job: StageProcess
    status: int
    started: float
    finished: float
    cpu_seconds: float
    log_offset: int


class Process:
    """A started job."""

    def __init__(self, job: StageProcess) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        self.job = job
        self.started = time.time()
        with job.log.open("ab") as log:
            self._log_offset = log.tell()
            self._popen = subprocess.Popen(
                list(job.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment() | dict(job.environment),
                start_new_session=True,
            )
        self._signalled: set[int] = set()
        self._ended: ProcessEnd | None = None

    @property
    def pid(self) -> int:
        """The process id of the launcher, or of the job itself; also its session's id."""
        return self._popen.pid

    def poll(self) -> ProcessEnd | None:
        """How it ended, or None while any process of it lives. What a dead launcher left behind is stopped first."""
        if self._ended is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid == 0:
                return None
            self._popen.returncode = os.waitstatus_to_exitcode(status)
            cpu_seconds = usage.ru_utime + usage.ru_stime
            now = time.time()
            self._ended = ProcessEnd(self.job, self._popen.returncode, self.started, now, cpu_seconds, self._log_offset)
        if not self._members():
            return self._ended
        if time.time() > self._ended.finished + GRACE_SECONDS:
            self.kill()
        else:
            self.interrupt()
        return None

    def interrupt(self) -> None:
        """Ask it to save and stop: SIGINT, once for each process that works. Repeat it until `poll` says it ended."""
        for pid in self._workers() - self._signalled:
            self._signalled.add(pid)
            _send(pid, signal.SIGINT)

    def kill(self) -> None:
        """Kill all of it at once."""
        for pid in self._members():
            _send(pid, signal.SIGKILL)

    def _members(self) -> set[int]:
        """The living processes of the job: its session, and descendants that made sessions of their own."""
        members = {pid for pid in psutil.pids() if _session(pid) == self.pid and is_alive(pid)}
        if self._popen.returncode is None:  # once it is reaped, its pid may be another's
            members |= {child.pid for child in psutil.Process(self.pid).children(recursive=True)}
        return members

    def _workers(self) -> set[int]:
        """Whom to ask: the job's own process, or a launcher's children; a launcher without any is asked itself."""
        if not self.job.launched and self._popen.returncode is None:
            return {self.pid}
        members = self._members() - {self.pid}
        return {pid for pid in members if _parent(pid) not in members} or {self.pid} & self._members()


def last_words(log: Path, offset: int) -> str:
    """What a job printed since `offset` (bytes), without its launcher's account of the failure and progress bars."""
    text = log.read_bytes()[offset:].decode(errors="replace")
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in _own_part(text).split("\n")]
    return "\n".join(line for line in lines if line)


def reported_status(log: Path, offset: int) -> int | None:
    """The trainer's own exit status as its launcher reported it in the log (negative: a signal); None if it did not."""
    text = log.read_bytes()[offset:].decode(errors="replace")
    plain = re.findall(r"returned non-zero exit status (\d+)\.", text)
    killed = re.findall(r"died with <Signals\.\w+: (\d+)>", text)
    distributed = re.findall(r"exitcode\s*: (-?\d+) \(pid", text)
    if plain:
        return int(plain[-1])
    if killed:
        return -int(killed[-1])
    return int(distributed[-1]) if distributed else None


def explain_failure(ended: ProcessEnd) -> str:
    """One message for a job that failed: why as far as its log tells, its last lines, where the log is."""
    log = ended.job.log
    words = last_words(log, ended.log_offset)
    status = reported_status(log, ended.log_offset)
    status = ended.status if status is None else status
    message = _OWN_MESSAGE.search(words)
    free = shutil.disk_usage(log.parent).free // 2**20
    if free == 0 or _NO_SPACE.search(words):
        what = f"failed: the disk is full ({free} MB free at {log.parent}); make room and run the same command again"
    elif status == -signal.SIGKILL:
        what = "was killed (SIGKILL: by hand, or because memory ran out); run the same command to go on"
    elif status < 0:
        what = f"was ended by {signal.Signals(-status).name}; run the same command to go on"
    elif message is not None:
        return f"{ended.job.name}: {message[1]}\nwhole log: {log}"
    else:
        what = f"failed (exit status {status})"
    quoted = "".join(f"\n  | {line}" for line in words.split("\n")[-QUOTED_LINES:] if line)
    return f"{ended.job.name} {what}{quoted}\nwhole log: {log}"


def _own_part(text: str) -> str:
    """Cut what the launcher prints because a trainer failed: from its warning of it, or else its own traceback."""
    several = re.search(r"^[WE]\d{4} .*torch/distributed/elastic/", text, re.MULTILINE)
    if several:
        return text[: several.start()]
    if "subprocess.CalledProcessError" not in text:
        return text
    before = text[: text.rindex("subprocess.CalledProcessError")]
    start = before.rfind("Traceback (most recent call last)")
    return before[:start] if start >= 0 else before


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _parent(pid: int) -> int | None:
    try:
        return psutil.Process(pid).ppid()
    except psutil.NoSuchProcess:
        return None
