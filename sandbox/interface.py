"""The interface of every sandbox, on this machine or on others. All calls are built on `submit`."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, Protocol

from qwq_rl.sandbox.protocol import CaseResult, Job, Limits, Result
from qwq_rl.sandbox.stored_tests import KeptTests

Deliver = Callable[[int, Result | BaseException], None]
"""Is called with a job's index and its result, or the exception that explains why there is none."""


class Submitted(Protocol):
    """Jobs that were submitted and are not finished."""

    def cancel(self) -> None:
        """Stop judging them."""


class SandboxInterface(ABC):
    """Judges jobs and keeps test sets for them. Subclasses implement `submit`."""

    def __init__(self, test_sets: KeptTests) -> None:
        self._test_sets = test_sets

    @abstractmethod
    def submit(self, jobs: Sequence[Job], deliver: Deliver) -> Submitted:
        """Start judging jobs and return at once."""

    def _reason(self, error: BaseException) -> BaseException:
        """The exception to raise when `error` was delivered instead of a result."""
        return error

    def judge(self, jobs: Sequence[Job]) -> list[Result]:
        """Run every job's tests and return the results in the jobs' order. Raises what `judge_each` raises."""
        results = dict(self.judge_each(jobs))
        return [results[index] for index in range(len(jobs))]

    def judge_each(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        """Yield each job's index and result as they come. Leaving the loop early cancels the rest."""
        queue: SimpleQueue[tuple[int, Result | BaseException]] = SimpleQueue()
        submitted = self.submit(jobs, lambda index, result: queue.put((index, result)))
        remaining = len(jobs)
        try:
            while remaining:
                index, result = queue.get()
                if isinstance(result, BaseException):
                    raise self._reason(result) from result
                remaining -= 1
                yield index, result
        finally:
            if remaining:
                submitted.cancel()

    def run(
        self, code: str, stdin: bytes = b"", *, language: str = "python", limits: Limits | None = None
    ) -> CaseResult:
        """Run a program without judging it. `accepted` means that it ended well, within limits. Nothing is cached."""
        # base64, since a test is JSON and standard input may be any bytes
        test = {"input_b64": base64.b64encode(stdin).decode()}
        job = Job("run", code, [test], language=language, limits=limits or Limits(), run_only=True)
        return self.judge([job])[0].cases[0]

    def put_tests(self, tests: Sequence[Mapping[str, Any]], entry_point: str | None = None) -> str:
        """Keep a test set and return its hash, for `Job.tests_ref`. Raises `JobError`.

        When there are too many, the least recently used sets are dropped.
        """
        return self._test_sets.put(tests, entry_point)

    def has_tests(self, name: str) -> bool:
        """Whether a test set is kept under this hash."""
        return name in self._test_sets
