"""What every sandbox does alike, here or on other machines: all of it stands on `submit`."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, Protocol

from qwq_rl.sandbox.protocol import CaseResult, Job, Limits, Result
from qwq_rl.sandbox.stored_tests import KeptTests

Deliver = Callable[[int, Result | BaseException], None]
"""Gets each job's place and result, or why there is none."""


class Submitted(Protocol):
    """Jobs under way."""

    def cancel(self) -> None:
        """Judge no more of them."""


class SandboxInterface(ABC):
    """Judges jobs that `submit` takes, and keeps test sets for them."""

    def __init__(self, test_sets: KeptTests) -> None:
        self._test_sets = test_sets

    @abstractmethod
    def submit(self, jobs: Sequence[Job], deliver: Deliver) -> Submitted:
        """Have jobs judged and return at once."""

    def _reason(self, error: BaseException) -> BaseException:
        """What to raise where `error` was delivered instead of a result."""
        return error

    def judge(self, jobs: Sequence[Job]) -> list[Result]:
        """Have every job's tests run; results in the jobs' order. Raises what `judge_each` raises."""
        found = dict(self.judge_each(jobs))
        return [found[index] for index in range(len(jobs))]

    def judge_each(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        """As `judge`, but each result, with its job's place, as it comes; leaving the loop cancels the rest."""
        queue: SimpleQueue[tuple[int, Result | BaseException]] = SimpleQueue()
        submitted = self.submit(jobs, lambda index, result: queue.put((index, result)))
        left = len(jobs)
        try:
            while left:
                index, result = queue.get()
                if isinstance(result, BaseException):
                    raise self._reason(result) from result
                left -= 1
                yield index, result
        finally:
            if left:
                submitted.cancel()

    def run(
        self, code: str, stdin: bytes = b"", *, language: str = "python", limits: Limits | None = None
    ) -> CaseResult:
        """Only run a program: `accepted` means that it ended well within its limits. Nothing is remembered."""
        given = {"input_b64": base64.b64encode(stdin).decode()}
        job = Job("run", code, [given], language=language, limits=limits or Limits(), run_only=True)
        return self.judge([job])[0].cases[0]

    def put_tests(self, tests: Sequence[Mapping[str, Any]], entry_point: str | None = None) -> str:
        """Keep a test set; the hash that jobs name as `tests_ref`. The least recently used go. Raises `JobError`."""
        return self._test_sets.put(tests, entry_point)

    def has_tests(self, name: str) -> bool:
        """Whether a test set is kept under this hash."""
        return name in self._test_sets
