"""The state of one job while it is judged: which cases are started, judged, or not needed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from qwq_rl.sandbox import cases, languages, profiles
from qwq_rl.sandbox.cases import JudgedCase, Outcome, Step
from qwq_rl.sandbox.compiled import BinaryCache
from qwq_rl.sandbox.protocol import CaseResult, CaseVerdict, Job, Result

PREPARATION = -1
"""Used instead of a case's index for the step that all cases wait for: compiling."""
TOGETHER = -2
"""Used instead of a case's index for the first cases, tried in one process."""
_SKIPPED = CaseResult("skipped")
MOST_DEATHS = 3
"""A job is given up after a fork server died so many times while it ran."""


@dataclass(eq=False)
class Waiter:
    """One caller that asked for a job. `name` is the job's id for that caller."""

    name: str
    deliver: Callable[[Result | BaseException], None]
    answered: bool = False

    def answer(self, result: Result | BaseException) -> None:
        """Deliver the result, but only once."""
        if not self.answered:
            self.answered = True
            self.deliver(result)


def answer_all(waiters: Iterable[Waiter], error: BaseException) -> None:
    """Deliver an error to all waiters, even if the callback of one of them raises."""
    for waiter in waiters:
        with contextlib.suppress(Exception):
            waiter.answer(error)


@dataclass(eq=False)
class RunningJob:
    """A job that one or more callers wait for."""

    job: Job
    key: str
    """Jobs with the same key cannot have different results."""
    waiters: list[Waiter]
    program: bytes | None = None
    """The program that the cases run; None until it is compiled."""
    judged: dict[int, JudgedCase] = field(default_factory=dict)
    under_way: dict[int, cases.Steps | cases.Compilation | cases.Together] = field(default_factory=dict)
    tried_together: bool = False
    following: int = 0
    """The index of the next case to start."""
    events: tuple[str, ...] = ()
    deaths: int = 0

    @property
    def kind(self) -> profiles.Kind:
        """The kind of fork server whose children run its cases."""
        return profiles.kind_of(self.job.code) if self.job.language == "python" else "native"

    @property
    def runtime(self) -> str:
        """The interpreter or compiler and its version, for people."""
        if self.job.language == "python":
            return f"python {sys.version_info.major}.{sys.version_info.minor}"
        return languages.runtime(self.job.language) or self.job.language

    @property
    def end(self) -> int:
        """The index of the first case that need not be judged."""
        if self.job.mode == "all":
            return len(self.job.tests)
        failed = (index for index, judged in self.judged.items() if judged.case.verdict != "accepted")
        return min(failed, default=len(self.job.tests))

    @property
    def waiting(self) -> bool:
        """Whether it has a step to start."""
        if self.program is None:
            return not self.under_way and not self.judged
        return self.following < self.end and TOGETHER not in self.under_way

    @property
    def finished(self) -> bool:
        """Whether its result is final."""
        return not self.under_way and not self.waiting

    def start(self, programs: BinaryCache) -> tuple[int, Step | None]:
        """Begin what comes next; its index, and its first step or None if it needs none."""
        if self.program is None:
            return self._advance(PREPARATION, cases.compilation(self.job, programs), None)
        if not self.tried_together:
            self.tried_together = True
            if calls := cases.calls_of(self.job):
                return self._advance(TOGETHER, cases.judging_together(self.job, calls), None)
        index, self.following = self.following, self.following + 1
        return self._advance(index, cases.judging(self.job, index, self.program), None)

    def go_on(self, index: int, outcome: Outcome) -> Step | None:
        """Take the outcome of a step; the next step, or None if this index is done."""
        return self._advance(index, self.under_way[index], outcome)[1]

    def rewind(self) -> None:
        """After a fork server died: prepare to repeat what was running, or give the job up."""
        if not self.under_way:
            return
        self.under_way.clear()
        self.deaths += 1
        if self.deaths < MOST_DEATHS:
            self.following = min((index for index in range(len(self.job.tests)) if index not in self.judged), default=0)
            return
        fault = JudgedCase(CaseResult("sandbox_error", stderr="the sandbox's processes died under it\n"))
        if self.program is None:
            self.judged.setdefault(0, fault)
            return
        for index in range(self.end):
            self.judged.setdefault(index, fault)
        self.following = len(self.job.tests)

    def result(self, name: str, isolation: str) -> Result:
        """The result of the job, under the id `name`; cases that do not count are `skipped`."""
        total = len(self.job.tests)
        counted = range(total if self.job.mode == "all" else self.end + 1)
        results = tuple(self.judged[index].case if index in counted and index in self.judged else _SKIPPED
                      for index in range(total))  # fmt: skip
        # a dict, since it keeps the order and drops duplicates
        attempts = {kind: None for index in sorted(self.judged) for kind in self.judged[index].attempts}
        events = (*(f"attempt: {kind}" for kind in attempts), *self.events)
        passed = sum(case.verdict == "accepted" for case in results)
        return Result(name, _overall(results), passed, total, isolation, results, self.runtime, events=events)

    def _advance(
        self, index: int, steps: cases.Steps | cases.Compilation | cases.Together, outcome: Outcome | None
    ) -> tuple[int, Step | None]:
        try:
            step = next(steps) if outcome is None else steps.send(outcome)
        except StopIteration as stop:
            self.under_way.pop(index, None)
            # bytes: a compiled program; a list: the first cases in one process; else one case or a failed compilation
            if isinstance(stop.value, bytes):
                self.program = stop.value
            elif isinstance(stop.value, list):
                self.judged |= enumerate(stop.value)
                self.following = len(stop.value)
            else:
                self.judged[max(index, 0)] = stop.value
            return index, None
        self.under_way[index] = steps
        return index, step


def _overall(results: Sequence[CaseResult]) -> CaseVerdict:
    # a fault of the sandbox decides only if no case failed for another reason
    failures: list[CaseVerdict] = [case.verdict for case in results if case.verdict not in ("accepted", "skipped")]
    own_failures: list[CaseVerdict] = [verdict for verdict in failures if verdict != "sandbox_error"]
    return (own_failures or failures or ["accepted"])[0]


def next_of(runs: Iterable[RunningJob]) -> RunningJob | None:
    """The started job whose next case should start: the one with the fewest cases running."""
    waiting = [run for run in runs if run.waiting]
    return min(waiting, key=lambda run: len(run.under_way), default=None)
