"""What a server takes on at a time, and how it says that it is full."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass

from qwq_rl.sandbox.protocol import Job, JobError

_RECENT = 256
_SOONEST_S, _LATEST_S = 1, 60


@dataclass(frozen=True)
class Bounds:
    """The most that one server takes."""

    body_mb: int = 64
    """Of one request."""
    held_mb: int = 256
    """Of all requests together that are being answered."""
    batch_jobs: int = 2048
    """Jobs of one request."""
    queue_jobs: int = 8192
    """Jobs of all requests together that are taken on and not answered."""
    job_tests: int = 4096
    text_kb: int = 4096
    """Of Python that the server itself reads: an assert, a checker. Its syntax tree takes a hundred times as much."""
    cpu_s: float = 120.0
    """CPU seconds that a job's limits may ask for a case; the next two likewise."""
    wall_s: float = 600.0
    memory_mb: int = 4096
    deadline_s: float = 3600.0
    """How long a request may take; one that names no deadline gets this one."""


class Refused(Exception):
    """A request is not served; the text says why and what would be right."""

    def __init__(self, status: int, text: str, *, retry_after: int | None = None, **more: object) -> None:
        """`more` goes into the answer beside `error`."""
        super().__init__(text)
        self.status, self.retry_after, self.body = status, retry_after, {"error": text, **more}


class Admission:
    """Counts what is held and refuses what is too much; for one event loop."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.held_bytes = 0
        self.queued_jobs = 0
        self._answered: deque[float] = deque(maxlen=_RECENT)

    def visit(self) -> Visit:
        """A request that begins."""
        return Visit(self)

    def retry_after(self) -> int:
        """Seconds after which half of what waits is probably answered."""
        if len(self._answered) < 2:
            return _SOONEST_S
        rate = len(self._answered) / max(1e-3, time.monotonic() - self._answered[0])
        return min(_LATEST_S, max(_SOONEST_S, math.ceil(self.queued_jobs / 2 / rate)))

    def full(self, what: str) -> Refused:
        """The refusal of a request that another time is welcome."""
        return Refused(429, f"{what}: try again later or elsewhere", retry_after=self.retry_after())

    def answered(self) -> None:
        """One job has its result."""
        self._answered.append(time.monotonic())


class Visit:
    """What one request holds; `close` gives all of it back, once."""

    def __init__(self, admission: Admission) -> None:
        """Made by `Admission.visit`."""
        self._admission = admission
        self._bytes = 0
        self._jobs = 0

    def take_bytes(self, count: int) -> None:
        """Hold more of the body. Raises `Refused`."""
        bounds = self._admission.bounds
        if self._bytes + count > bounds.body_mb << 20:
            raise Refused(413, f"the body is longer than {bounds.body_mb} MiB: send fewer jobs, or tests by their hash")
        if self._admission.held_bytes + count > bounds.held_mb << 20:
            raise self._admission.full(f"requests of {bounds.held_mb} MiB are being answered")
        self._bytes += count
        self._admission.held_bytes += count

    def take_jobs(self, count: int) -> None:
        """Take on jobs. Raises `Refused`."""
        most = self._admission.bounds.queue_jobs
        if self._admission.queued_jobs and self._admission.queued_jobs + count > most:
            raise self._admission.full(f"{self._admission.queued_jobs} jobs are waiting, {most} may")
        self._jobs += count
        self._admission.queued_jobs += count

    def answer_job(self) -> None:
        """One of the jobs is done."""
        self._jobs -= 1
        self._admission.queued_jobs -= 1
        self._admission.answered()

    def close(self) -> None:
        """The request is over."""
        self._admission.held_bytes -= self._bytes
        self._admission.queued_jobs -= self._jobs
        self._bytes = self._jobs = 0


def check_texts(tests: object, checker: object, bounds: Bounds) -> None:
    """Raise `JobError` where the server would have to read too much Python; for what is not checked yet."""
    texts = [test.get("assert") for test in tests if isinstance(test, dict)] if isinstance(tests, list) else []
    longest = max((len(text) for text in (*texts, checker) if isinstance(text, str)), default=0)
    if longest > bounds.text_kb << 10:
        raise JobError(f"an assert or a checker has {longest >> 10} KiB: this server takes at most {bounds.text_kb}")


def check_job(job: Job, bounds: Bounds) -> None:
    """Raise `JobError` where a job asks for more than this server gives."""
    for name in ("cpu_s", "wall_s", "memory_mb"):
        asked, most = getattr(job.limits, name), getattr(bounds, name)
        if asked > most:
            raise JobError(f"limits.{name} is {asked}: this server gives at most {most}")
    if len(job.tests) > bounds.job_tests:
        raise JobError(f"there are {len(job.tests)} tests: this server takes at most {bounds.job_tests}")
