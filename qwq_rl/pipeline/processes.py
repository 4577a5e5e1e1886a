"""The processes of a run: start one, ask it to stop, kill it, and explain from its log why it failed.

Every process gets its own session, so that Ctrl-C in the terminal reaches only `qwq-rl run`, which passes it on to the
trainers. The launcher between them would die at once from Ctrl-C, and its trainer would go on alone.
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

# The defaults of `accelerate launch`, which gives a warning for each that is not set.
LEAN_LAUNCH = (
    "--num_processes=1",
    "--num_machines=1",
    "--mixed_precision=no",
    "--dynamo_backend=no",
)
GRACE_SECONDS = 60.0
"""How long a process may take to save and stop before it is killed."""
QUOTED_LINES = 15
"""How many lines of its output the message for a failed process quotes."""
# Not indented: only the line of the error itself counts, not the source lines of a traceback.
_NO_SPACE = re.compile(r"^\S.*No space left on device", re.MULTILINE)
# The end of the output of one of our processes after a mistake of the user: one message, no traceback.
_OWN_MESSAGE = re.compile(r"^(?:error|qwq_rl\.evals\.evaluate): (.*)\Z", re.MULTILINE | re.DOTALL)


def accelerate_command(config: Path | None) -> tuple[str, ...]:
    """The first words of an `accelerate launch` command: with the file `config`, or without it for one process.

    `--num_cpu_threads_per_process` is not given: accelerate takes it from OMP_NUM_THREADS, which `environment` sets.
    """
    options = (f"--config_file={config}",) if config else LEAN_LAUNCH
    return (sys.executable, "-m", "accelerate.commands.launch", *options)


def environment() -> dict[str, str]:
    """The environment of a job: that of the caller, with defaults for a small machine where the caller set nothing."""
    defaults = {
        "OMP_NUM_THREADS": "1",  # several math threads on a busy small machine are far slower than one
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    return defaults | os.environ | {LAUNCHER: str(os.getpid())}


@dataclass(frozen=True)
class StageProcess:
    """What to start. `launched`: the process is a launcher whose children do the work. Output is appended to `log`."""

    name: str
    command: Sequence[str]
    log: Path
    launched: bool
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProcessEnd:
    """How a job ended. `status` is the exit status, or minus the number of a signal.

    Times are in seconds since the epoch; `log_offset` is the byte in the log at which the job's output begins.
    """

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
        """The process id of the launcher, or of the job itself. It is also the id of their session."""
        return self._popen.pid

    def poll(self) -> ProcessEnd | None:
        """Return how the job ended, or None while any of its processes lives.

        What a dead launcher left running is asked to stop, and killed after GRACE_SECONDS.
        """
        if self._ended is None:
            # wait4 and not Popen.poll, which does not tell the CPU time.
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
        """Ask the job to save and stop: one SIGINT to each working process. Repeat until `poll` says that it ended."""
        for pid in self._workers() - self._signalled:
            self._signalled.add(pid)
            _send(pid, signal.SIGINT)

    def kill(self) -> None:
        """Kill all processes of the job at once."""
        for pid in self._members():
            _send(pid, signal.SIGKILL)

    def _members(self) -> set[int]:
        """The living processes of the job: those of its session, and descendants with their own sessions."""
        members = {pid for pid in psutil.pids() if _session_of(pid) == self.pid and is_alive(pid)}
        if self._popen.returncode is None:  # once it is reaped, its pid may belong to another process
            members |= {child.pid for child in psutil.Process(self.pid).children(recursive=True)}
        return members

    def _workers(self) -> set[int]:
        """The processes to interrupt: the job itself, or the children of a launcher, or a launcher without children."""
        if not self.job.launched and self._popen.returncode is None:
            return {self.pid}
        members = self._members() - {self.pid}
        return {pid for pid in members if _parent_of(pid) not in members} or {self.pid} & self._members()


def last_words(log: Path, offset: int) -> str:
    """What a job printed since `offset` (bytes), without progress bars and without its launcher's own error report."""
    text = log.read_bytes()[offset:].decode(errors="replace")
    # A progress bar overwrites its line with carriage returns: keep only its last state.
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in _without_launcher(text).split("\n")]
    return "\n".join(line for line in lines if line)


def reported_status(log: Path, offset: int) -> int | None:
    """The trainer's exit status as its launcher wrote it into the log (negative: a signal); None if it is not there."""
    text = log.read_bytes()[offset:].decode(errors="replace")
    exit_statuses = re.findall(r"returned non-zero exit status (\d+)\.", text)
    signals = re.findall(r"died with <Signals\.\w+: (\d+)>", text)
    exit_codes = re.findall(r"exitcode\s*: (-?\d+) \(pid", text)
    if exit_statuses:
        return int(exit_statuses[-1])
    if signals:
        return -int(signals[-1])
    return int(exit_codes[-1]) if exit_codes else None


def explain_failure(ended: ProcessEnd) -> str:
    """One message for a job that failed: the reason as far as the log shows it, its last lines, and the log's path."""
    log = ended.job.log
    words = last_words(log, ended.log_offset)
    status = reported_status(log, ended.log_offset)
    status = ended.status if status is None else status
    message = _OWN_MESSAGE.search(words)
    free_mb = shutil.disk_usage(log.parent).free // 2**20
    # A full disk comes first, because it may be the cause of the other failures.
    if free_mb == 0 or _NO_SPACE.search(words):
        reason = (
            f"failed: the disk is full ({free_mb} MB free at {log.parent}); make room and run the same command again"
        )
    elif status == -signal.SIGKILL:
        reason = "was killed (SIGKILL: by hand, or because memory ran out); run the same command to go on"
    elif status < 0:
        reason = f"was ended by {signal.Signals(-status).name}; run the same command to go on"
    elif message is not None:
        return f"{ended.job.name}: {message[1]}\nwhole log: {log}"
    else:
        reason = f"failed (exit status {status})"
    quotation = "".join(f"\n  | {line}" for line in words.split("\n")[-QUOTED_LINES:] if line)
    return f"{ended.job.name} {reason}{quotation}\nwhole log: {log}"


def _without_launcher(text: str) -> str:
    """Cut off what the launcher prints when a trainer fails: all from its first warning, or else its traceback."""
    elastic_log = re.search(r"^[WE]\d{4} .*torch/distributed/elastic/", text, re.MULTILINE)
    if elastic_log:
        return text[: elastic_log.start()]
    if "subprocess.CalledProcessError" not in text:
        return text
    text_before = text[: text.rindex("subprocess.CalledProcessError")]
    start = text_before.rfind("Traceback (most recent call last)")
    return text_before[:start] if start >= 0 else text_before


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _parent_of(pid: int) -> int | None:
    try:
        return psutil.Process(pid).ppid()
    except psutil.NoSuchProcess:
        return None
