"""Judging jobs on this machine: a mother of our own, cases handed to her, verdicts from what comes back."""

from __future__ import annotations

import os
import resource
import sys
import threading
import weakref
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from qwq_rl.sandbox import cases, probes
from qwq_rl.sandbox.link import Mother, MotherDied
from qwq_rl.sandbox.protocol import CaseResult, CaseVerdict, Job, Limits, Result

_SKIPPED = CaseResult("skipped")
_MOST_SLOTS = 32
"""More than one mother can feed."""


class SandboxUnavailable(RuntimeError):
    """This machine cannot judge as asked; the text says what is missing and what to do."""


class LocalSandbox:
    """Judges jobs in jailed children of a warm interpreter, started when first needed; a context manager.

    Safe to share between threads, which take turns. A forked copy of this process gets a mother of its own.
    """

    def __init__(self, slots: int | None = None, *, allow_unsafe: bool = False, without: Collection[str] = ()) -> None:
        """At most `slots` cases run at once (default: the cores this process may use, at most 32).

        Isolation L0 is refused unless `allow_unsafe`. `without` leaves walls out (`namespaces`, `landlock`, `seccomp`),
        to see what a machine that lacks them would give.
        """
        self.slots = slots or min(_MOST_SLOTS, _cores())
        # a few cases wait with the mother, so that she never waits for us; each holds ten descriptors at most
        self._window = max(1, min(self.slots + 4, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 20))
        self._allow_unsafe, self._without = allow_unsafe, without
        self._mother: Mother | None = None
        self._isolation = ""
        self._lock = threading.RLock()
        _living.add(self)

    def judge(self, jobs: Sequence[Job]) -> list[Result]:
        """Run every job's tests; results in the jobs' order.

        A mother that dies is replaced and what was unfinished is judged again, once; then it is `sandbox_error`.
        Raises `SandboxUnavailable` where no mother starts or the isolation is L0.
        """
        runs = [_Run(job) for job in jobs]
        events: tuple[str, ...] = ()
        with self._lock:
            for _ in range(2):
                mother = self._started()
                try:
                    _judge(mother, [run for run in runs if not run.finished], self._window)
                    break
                except MotherDied as error:
                    self._discard()
                    events = (*events, f"the sandbox's mother died: {error}"[:500])
                except BaseException:
                    self._discard()  # replies are under way that nobody waits for any more
                    raise
            runtime = mother.greeting["runtime"]
            return [run.result(self._isolation, runtime, events) for run in runs]

    @property
    def isolation(self) -> str:
        """The level reached, proven by attempts in the jail: L0, L1 or L2. Raises `SandboxUnavailable`."""
        with self._lock:
            self._started()
            return self._isolation

    def probe(self) -> tuple[dict[str, bool], dict[str, object]]:
        """Which attempts to break out succeed, and what the mother found available."""
        with self._lock:
            mother = self._started()
            return _attempt(mother), dict(mother.greeting)

    def close(self) -> None:
        """End the mother and all that runs; a later `judge` starts another."""
        with self._lock:
            self._discard()

    def __enter__(self) -> LocalSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> Mother:
        if self._mother is not None:
            return self._mother
        if sys.platform != "linux":
            raise SandboxUnavailable(
                f"the sandbox needs Linux, this is {sys.platform}: use a Linux machine or container"
            )
        try:
            mother = Mother(self.slots, self._without)
        except (MotherDied, OSError) as error:
            raise SandboxUnavailable(f"the sandbox did not start: {error}") from error
        try:
            self._isolation = probes.level(_attempt(mother), mother.greeting)
        except MotherDied as error:
            mother.close()
            raise SandboxUnavailable(f"the sandbox died when it was tried: {error}") from error
        if self._isolation == "L0" and not self._allow_unsafe:
            mother.close()
            raise SandboxUnavailable(
                "isolation is L0: programs could reach the network or other processes. The kernel must allow seccomp "
                "filters; `qwq-rl sandbox doctor` shows what works. LocalSandbox(allow_unsafe=True) runs trusted code"
            )
        self._mother = mother
        return mother

    def _discard(self) -> None:
        if self._mother is not None:
            self._mother.close()
            self._mother = None

    def _forget(self) -> None:
        """In a forked copy of the process: the mother belongs to the original."""
        self._lock = threading.RLock()
        if self._mother is not None:
            self._mother.abandon()
            self._mother = None


_living: weakref.WeakSet[LocalSandbox] = weakref.WeakSet()


def _after_fork() -> None:
    for sandbox in list(_living):
        sandbox._forget()


os.register_at_fork(after_in_child=_after_fork)


@dataclass
class _Run:
    """One job on its way."""

    job: Job
    cases: dict[int, CaseResult] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)
    following: int = 0
    """The next case to start."""

    @property
    def first_failure(self) -> int:
        """The first failed case's index; the number of tests where none failed."""
        failed = (index for index, case in self.cases.items() if case.verdict != "accepted")
        return min(failed, default=len(self.job.tests))

    @property
    def waiting(self) -> bool:
        """Whether another case is to be started."""
        end = len(self.job.tests) if self.job.mode == "all" else self.first_failure
        return self.following < end

    @property
    def finished(self) -> bool:
        return not self.running and not self.waiting

    def rewind(self) -> None:
        """Forget the cases that were running when their mother died."""
        self.following = min(self.running, default=self.following)
        self.running.clear()
        for index in [index for index in self.cases if index >= self.following]:
            del self.cases[index]

    def result(self, isolation: str, runtime: str, events: tuple[str, ...]) -> Result:
        """The verdict on the whole job."""
        if not self.finished:
            self.rewind()
            error = CaseResult("sandbox_error", stderr=events[-1] if events else "")
            self.cases[self.following] = error
        total = len(self.job.tests)
        last = total if self.job.mode == "all" else self.first_failure
        shown = tuple(self.cases.get(index, _SKIPPED) if index <= last else _SKIPPED for index in range(total))
        passed = sum(case.verdict == "accepted" for case in shown)
        return Result(self.job.id, _overall(shown), passed, total, isolation, shown, runtime, events=events)


def _overall(shown: Sequence[CaseResult]) -> CaseVerdict:
    failures: list[CaseVerdict] = [case.verdict for case in shown if case.verdict not in ("accepted", "skipped")]
    by_itself: list[CaseVerdict] = [verdict for verdict in failures if verdict != "sandbox_error"]
    return (by_itself or failures or ["accepted"])[0]


def _judge(mother: Mother, runs: Sequence[_Run], window: int) -> None:
    """Run every waiting case of `runs`, `window` under way at once. Raises `MotherDied`."""
    for run in runs:
        run.rewind()
    fresh = deque(run for run in runs if run.waiting)
    started: list[_Run] = []
    under_way: dict[int, tuple[_Run, int]] = {}
    number = 0
    while True:
        while len(under_way) < window:
            chosen = _next(fresh, started)
            if chosen is None:
                break
            index, chosen.following = chosen.following, chosen.following + 1
            chosen.running.add(index)
            number += 1
            under_way[number] = (chosen, index)
            mother.send(number, cases.payloads(chosen.job, index), chosen.job.limits)
        if not under_way:
            return
        ended, wall_s, endings = mother.receive()
        run, index = under_way.pop(ended)
        run.running.remove(index)
        run.cases[index] = cases.judge(run.job, index, wall_s, endings)


def _next(fresh: deque[_Run], started: list[_Run]) -> _Run | None:
    """The job whose next case is started; jobs with nothing to start leave `started`."""
    started[:] = [run for run in started if run.waiting]
    idle = next((run for run in started if not run.running), None)
    if idle is not None:
        return idle
    if fresh:
        started.append(fresh.popleft())
        return started[-1]
    return min(started, key=lambda run: len(run.running), default=None)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _attempt(mother: Mother) -> dict[str, bool]:
    """Run the program of attempts in the jail."""
    test = {"input": os.path.realpath(sys.executable) + "\n", "output": ""}
    run = _Run(Job("probe", probes.ATTEMPTS, [test], limits=Limits(cpu_s=10, wall_s=60, memory_mb=64)))
    _judge(mother, [run], 1)
    return probes.read(run.cases[0].stdout)
