"""Limits on what a server takes at a time, and its refusals when it is full."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass

from qwq_rl.sandbox.protocol import Job, JobError

_RECENT_JOBS = 256
_MIN_RETRY_S, _MAX_RETRY_S = 1, 60


@dataclass(frozen=True)
class Bounds:
    """The limits of one server."""

    body_mb: int = 64
    """Body of one request, in MiB."""
    held_mb: int = 256
    """Bodies of all requests in progress together, in MiB."""
    batch_jobs: int = 2048
    """Jobs in one request."""
    queue_jobs: int = 8192
    """Jobs of all requests together that are accepted and not answered."""
    job_tests: int = 4096
    text_kb: int = 4096
    """KiB of an assert or a checker: the server itself parses them, and a syntax tree needs a hundred times as much."""
    cpu_s: float = 120.0
    """The largest `cpu_s` that a job's limits may have; likewise `wall_s` and `memory_mb` below."""
    wall_s: float = 600.0
    memory_mb: int = 4096
    deadline_s: float = 3600.0
    """Seconds that a request may take; also the default for requests without a deadline."""


class Refused(Exception):
    """A request is refused; the text says why and what would be right."""

    def __init__(self, status: int, text: str, *, retry_after: int | None = None, **more: object) -> None:
        """`more` is added to the answer's JSON, next to `error`."""
        super().__init__(text)
        self.status, self.retry_after, self.body = status, retry_after, {"error": text, **more}


class Admission:
    """Counts what the server holds and refuses what is too much. Not thread-safe: for one event loop."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.held_bytes = 0
        self.queued_jobs = 0
        self._answered: deque[float] = deque(maxlen=_RECENT_JOBS)

    def visit(self) -> Visit:
        """Begin a request."""
        return Visit(self)

    def retry_after(self) -> int:
        """Seconds after which half of the waiting jobs are probably answered, from 1 to 60."""
        if len(self._answered) < 2:
            return _MIN_RETRY_S
        rate = len(self._answered) / max(1e-3, time.monotonic() - self._answered[0])
        return min(_MAX_RETRY_S, max(_MIN_RETRY_S, math.ceil(self.queued_jobs / 2 / rate)))

    def full(self, what: str) -> Refused:
        """The refusal of a request that may be sent again later."""
        return Refused(429, f"{what}: try again later or elsewhere", retry_after=self.retry_after())

    def answered(self) -> None:
        """Record that one job has its result."""
        self._answered.append(time.monotonic())


class Visit:
    """What one request holds. `close` releases all of it; a second `close` has no effect."""

    def __init__(self, admission: Admission) -> None:
        """Made by `Admission.visit`."""
        self._admission = admission
        self._bytes = 0
        self._jobs = 0

    def take_bytes(self, count: int) -> None:
        """Count more bytes of the body. Raises `Refused`."""
        bounds = self._admission.bounds
        if self._bytes + count > bounds.body_mb << 20:
            raise Refused(413, f"the body is longer than {bounds.body_mb} MiB: send fewer jobs, or tests by their hash")
        if self._admission.held_bytes + count > bounds.held_mb << 20:
            raise self._admission.full(f"requests of {bounds.held_mb} MiB are being answered")
        self._bytes += count
        self._admission.held_bytes += count

    def take_jobs(self, count: int) -> None:
        """Count accepted jobs. Raises `Refused`."""
        limit = self._admission.bounds.queue_jobs
        # an idle server takes even a request with more jobs than the limit
        if self._admission.queued_jobs and self._admission.queued_jobs + count > limit:
            raise self._admission.full(f"{self._admission.queued_jobs} jobs are waiting, {limit} may")
        self._jobs += count
        self._admission.queued_jobs += count

    def answer_job(self) -> None:
        """Record that one of the jobs is done."""
        self._jobs -= 1
        self._admission.queued_jobs -= 1
        self._admission.answered()

    def close(self) -> None:
        """Release what the request still holds."""
        self._admission.held_bytes -= self._bytes
        self._admission.queued_jobs -= self._jobs
        self._bytes = self._jobs = 0


def check_texts(tests: object, checker: object, bounds: Bounds) -> None:
    """Raise `JobError` if the server would have to parse too much Python. The arguments may be unchecked input."""
    texts = [test.get("assert") for test in tests if isinstance(test, dict)] if isinstance(tests, list) else []
    longest = max((len(text) for text in (*texts, checker) if isinstance(text, str)), default=0)
    if longest > bounds.text_kb << 10:
        raise JobError(f"an assert or a checker has {longest >> 10} KiB: this server takes at most {bounds.text_kb}")


def check_job(job: Job, bounds: Bounds) -> None:
    """Raise `JobError` if a job asks for more than this server gives."""
    for name in ("cpu_s", "wall_s", "memory_mb"):
        requested, limit = getattr(job.limits, name), getattr(bounds, name)
        if requested > limit:
            raise JobError(f"limits.{name} is {requested}: this server gives at most {limit}")
    if len(job.tests) > bounds.job_tests:
        raise JobError(f"there are {len(job.tests)} tests: this server takes at most {bounds.job_tests}")
