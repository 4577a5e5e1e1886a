"""One job on its way: which of its cases are started, judged, or need not be."""

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
"""Stands in the place of a case's index for what all cases wait for: compiling."""
TOGETHER = -2
"""Stands there for the first cases, tried in one process."""
_SKIPPED = CaseResult("skipped")
MOST_DEATHS = 3
"""So often a fork server may die under a job before it is given up."""


@dataclass(eq=False)
class Waiter:
    """Somebody who asked for a job, under a name of their own."""

    name: str
    deliver: Callable[[Result | BaseException], None]
    answered: bool = False

    def answer(self, result: Result | BaseException) -> None:
        """Deliver, once."""
        if not self.answered:
            self.answered = True
            self.deliver(result)


def answer_all(waiters: Iterable[Waiter], error: BaseException) -> None:
    """Tell all why there is no result, whatever one of them does with it."""
    for waiter in waiters:
        with contextlib.suppress(Exception):
            waiter.answer(error)


@dataclass(eq=False)
class RunningJob:
    """A job, asked for by one or more."""

    job: Job
    key: str
    """The same for jobs that cannot have different results."""
    waiters: list[Waiter]
    program: bytes | None = None
    """What the cases run; None until it is made."""
    judged: dict[int, JudgedCase] = field(default_factory=dict)
    under_way: dict[int, cases.Steps | cases.Compilation | cases.Together] = field(default_factory=dict)
    tried_together: bool = False
    following: int = 0
    """The next case to start."""
    events: tuple[str, ...] = ()
    deaths: int = 0

    @property
    def kind(self) -> profiles.Kind:
        """The fork server whose children run its cases."""
        return profiles.kind_of(self.job.code) if self.job.language == "python" else "native"

    @property
    def runtime(self) -> str:
        """What its cases run on, for people."""
        if self.job.language == "python":
            return f"python {sys.version_info.major}.{sys.version_info.minor}"
        return languages.runtime(self.job.language) or self.job.language

    @property
    def end(self) -> int:
        """The cases from here on are not to be judged."""
        if self.job.mode == "all":
            return len(self.job.tests)
        failed = (index for index, one in self.judged.items() if one.case.verdict != "accepted")
        return min(failed, default=len(self.job.tests))

    @property
    def waiting(self) -> bool:
        """Whether something of it is to be started."""
        if self.program is None:
            return not self.under_way and not self.judged
        return self.following < self.end and TOGETHER not in self.under_way

    @property
    def finished(self) -> bool:
        """Whether its result stands."""
        return not self.under_way and not self.waiting

    def start(self, programs: BinaryCache) -> tuple[int, Step | None]:
        """Begin what is next: its place and its first step."""
        if self.program is None:
            return self._advance(PREPARATION, cases.compilation(self.job, programs), None)
        if not self.tried_together:
            self.tried_together = True
            if calls := cases.calls_of(self.job):
                return self._advance(TOGETHER, cases.judging_together(self.job, calls), None)
        index, self.following = self.following, self.following + 1
        return self._advance(index, cases.judging(self.job, index, self.program), None)

    def go_on(self, index: int, outcome: Outcome) -> Step | None:
        """Take what came of a step: the next one, or None where this place is done."""
        return self._advance(index, self.under_way[index], outcome)[1]

    def rewind(self) -> None:
        """A fork server died: what was under way is to be done again, or given up."""
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
        """The verdict: every case's, or skipped."""
        total = len(self.job.tests)
        kept = range(total if self.job.mode == "all" else self.end + 1)
        shown = tuple(self.judged[index].case if index in kept and index in self.judged else _SKIPPED
                      for index in range(total))  # fmt: skip
        attempts = {kind: None for index in sorted(self.judged) for kind in self.judged[index].attempts}
        events = (*(f"attempt: {kind}" for kind in attempts), *self.events)
        passed = sum(case.verdict == "accepted" for case in shown)
        return Result(name, _overall(shown), passed, total, isolation, shown, self.runtime, events=events)

    def _advance(
        self, index: int, steps: cases.Steps | cases.Compilation | cases.Together, outcome: Outcome | None
    ) -> tuple[int, Step | None]:
        try:
            step = next(steps) if outcome is None else steps.send(outcome)
        except StopIteration as stop:
            self.under_way.pop(index, None)
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


def _overall(shown: Sequence[CaseResult]) -> CaseVerdict:
    failures: list[CaseVerdict] = [case.verdict for case in shown if case.verdict not in ("accepted", "skipped")]
    by_itself: list[CaseVerdict] = [verdict for verdict in failures if verdict != "sandbox_error"]
    return (by_itself or failures or ["accepted"])[0]


def next_of(runs: Iterable[RunningJob]) -> RunningJob | None:
    """Of started jobs the one whose next case is to be started: an idle one, else the one with least under way."""
    waiting = [run for run in runs if run.waiting]
    return min(waiting, key=lambda run: len(run.under_way), default=None)
