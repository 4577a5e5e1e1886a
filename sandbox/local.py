"""Judges jobs on this machine, with an engine that is started when it is first needed."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

from qwq_rl.sandbox import languages, probes, profiles
from qwq_rl.sandbox.engine import Engine, Load, ServerPool
from qwq_rl.sandbox.fork_server_link import ForkServerDied, ForkServerLink
from qwq_rl.sandbox.interface import Deliver, SandboxInterface
from qwq_rl.sandbox.profiles import Kind
from qwq_rl.sandbox.protocol import (
    LANGUAGES,
    LEVELS,
    Job,
    JobError,
    tests_hash,
)
from qwq_rl.sandbox.running_jobs import RunningJob, Waiter, answer_all
from qwq_rl.sandbox.stored_tests import KEPT_BYTES, KeptTests
from qwq_rl.sandbox.unjailed import UnjailedServer

_MAX_SLOTS = 32
"""More slots than this are too many for one fork server."""
_AHEAD = 2
"""Cases that wait in a fork server, so that it never has to wait for this process."""
WALLS = ("cgroups", "root", "namespaces", "landlock", "seccomp", "notices", "limits")
"""Walls that can be left out, to see what a machine without them would give."""


class SandboxUnavailable(RuntimeError):
    """This machine cannot judge as required; the text says what is missing and what to do."""


class Ticket:
    """Submitted jobs. `cancel` ends those that nobody else waits for."""

    def __init__(self, engine: Engine, waiters: Sequence[Waiter]) -> None:
        """Made by `LocalSandbox.submit`."""
        self._engine, self._waiters = engine, waiters

    def cancel(self) -> None:
        """Want no more results; some may still be delivered."""
        self._engine.call(lambda: self._engine.drop(self._waiters))


class LocalSandbox(SandboxInterface):
    """Judges jobs in jailed children of warm interpreters. A context manager; threads may share it.

    A forked copy of this process gets its own fork servers. A fork server that dies is replaced, and its unfinished
    cases are judged again, at most twice; then the verdict is `sandbox_error`. Judging raises `SandboxUnavailable` if
    no fork server starts or the isolation is too low. It raises `JobError` for an unknown test set or a language that
    this machine lacks.
    """

    def __init__(
        self,
        slots: int | None = None,
        *,
        require: str = "L1",
        allow_unsafe: bool = False,
        without: Collection[str] = (),
        remember: int = 4096,
        test_bytes: int = KEPT_BYTES,
    ) -> None:
        """At most `slots` cases run at once (default: the cores this process may use, at most 32).

        Isolation below `require` (L0 to L4) is refused; L0 also needs `allow_unsafe`. `without` leaves out some of
        `WALLS`, to see what a machine without them would give. The results of the last `remember` jobs are kept and
        answer equal jobs. Kept test sets take at most `test_bytes` of memory, or there is only one.
        """
        if require not in LEVELS:
            raise ValueError(f"require is {require!r}: give one of {', '.join(LEVELS)}")
        self.slots = slots or min(_MAX_SLOTS, _cores())
        self._floor = LEVELS.index("L0" if allow_unsafe and require == "L1" else require)
        self._allow_unsafe, self._without, self._remember = allow_unsafe, tuple(without), remember
        self._engine: Engine | None = None
        self._dismissal: weakref.finalize | None = None
        super().__init__(KeptTests(test_bytes))
        self._lock = threading.RLock()
        _living.add(self)

    def submit(self, jobs: Sequence[Job], deliver: Deliver) -> Ticket:
        """Start judging jobs and return at once; `deliver` gets each job's index and its result or an exception.

        The sandbox's thread calls `deliver`, so it must return quickly (`loop.call_soon_threadsafe`, a queue).
        """
        hashes: dict[int, str] = {}
        runs = [self._run(self._resolved(job), index, deliver, hashes) for index, job in enumerate(jobs)]
        waiters = [run.waiters[0] for run in runs]
        engine = self._started()
        engine.call(lambda: engine.add(runs), lambda error: answer_all(waiters, error))
        return Ticket(engine, waiters)

    def _reason(self, error: BaseException) -> BaseException:
        return error if isinstance(error, SandboxUnavailable) else SandboxUnavailable(f"the sandbox failed: {error!r}")

    @property
    def isolation(self) -> str:
        """The isolation level of Python programs, proven by attempts in the jail. Raises `SandboxUnavailable`."""
        return self._ask(lambda engine: engine.pool("lean")).isolation

    @property
    def load(self) -> Load:
        """Counts since the start, and how much is waiting and running."""
        return self._started().state()

    def languages(self) -> dict[str, str]:
        """The languages that this machine has, and their versions."""
        python = f"python {'.'.join(map(str, sys.version_info[:3]))}"
        versions = {"python": python, **{name: languages.runtime(name) for name in LANGUAGES if name != "python"}}
        if sys.platform != "linux":
            return {"python": python}
        return {name: version for name, version in versions.items() if version}

    def probe(self, kind: Kind = "lean") -> tuple[dict[str, bool], dict[str, object]]:
        """Which escape attempts succeed, and which walls the fork server of that kind found available."""
        pool = self._ask(lambda engine: engine.pool(kind))
        return dict(pool.succeeded), dict(pool.server.greeting)

    def close(self) -> None:
        """End the fork servers and all that runs. A later `judge` starts new ones."""
        with self._lock:
            engine = self._engine
            self._detach_engine()
        if engine is not None:
            engine.stop()

    def __enter__(self) -> LocalSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _link(self) -> ForkServerLink | None:
        pool = None if self._engine is None else self._engine.pools.get("lean")
        return pool.server if pool is not None and isinstance(pool.server, ForkServerLink) else None

    def _started(self) -> Engine:
        with self._lock:
            if self._engine is not None and not self._engine.alive:
                self._detach_engine()  # its thread died: start another one
            if self._engine is None:
                if sys.platform != "linux" and not self._allow_unsafe:
                    raise SandboxUnavailable(
                        f"the sandbox's walls need Linux, this is {sys.platform}: use a Linux machine or container, or "
                        "say LocalSandbox(allow_unsafe=True) (--unsafe, `require: L0` in a recipe) to run trusted "
                        "programs with no walls at all"
                    )
                # a case holds at most ten descriptors; this leaves half of them to others
                window = max(1, min(self.slots + _AHEAD, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 20))
                opener = _PoolOpener(self.slots, self._floor, self._allow_unsafe, self._without)
                try:
                    engine = Engine(self.slots, window, self._remember, opener.pool)
                    engine.start()
                except (OSError, RuntimeError) as error:  # no descriptor or no thread is left
                    raise SandboxUnavailable(f"the sandbox did not start: {error}") from error
                # the engine must not keep the sandbox alive, so that it ends when the sandbox is collected
                self._engine, self._dismissal = engine, weakref.finalize(self, engine.dismiss)
            return self._engine

    def _detach_engine(self) -> None:
        self._engine = None
        if self._dismissal is not None:
            self._dismissal.detach()

    def _ask(self, question: Callable[[Engine], ServerPool]) -> ServerPool:
        """Let the engine's thread answer a question; raises its error."""
        engine = self._started()
        answer: SimpleQueue[ServerPool | BaseException] = SimpleQueue()

        def act() -> None:
            try:
                answer.put(question(engine))
            except Exception as error:
                answer.put(error)

        engine.call(act, answer.put)
        result = answer.get()
        if isinstance(result, BaseException):
            raise self._reason(result) from result
        return result

    def _resolved(self, job: Job) -> Job:
        """The job with its test set in place of the hash. Raises `JobError` if this machine lacks its language."""
        if job.language != "python" and job.language not in self.languages():
            if sys.platform != "linux":
                raise JobError(f"language is {job.language!r}: on {sys.platform} there is only python")
            tool = languages.LANGUAGES[job.language].tool
            raise JobError(f"language is {job.language!r}, but this machine has no {tool}: install it, or leave it out")
        if job.tests_ref is None:
            return job
        return replace(job, tests=self._test_sets.get(job.tests_ref), tests_ref=None)

    def _run(self, job: Job, index: int, deliver: Callable[[int, Any], None], hashes: dict[int, str]) -> RunningJob:
        if id(job.tests) not in hashes:
            hashes[id(job.tests)] = tests_hash(job.tests)
        content = (job.code, job.language, job.entry_point, job.compare, job.mode, job.limits, job.checker)
        # a program that is only run may give another result each time, so no two such jobs are equal
        salt = os.urandom(8).hex() if job.run_only else ""
        key = hashlib.sha256(repr((content, hashes[id(job.tests)], salt)).encode("utf-8", "surrogatepass")).hexdigest()
        return RunningJob(job, key, [Waiter(job.id, lambda result: deliver(index, result))])

    def _forget(self) -> None:
        """Called in a forked copy of the process, where the engine belongs to the original."""
        self._lock = threading.RLock()
        self._test_sets.forked()
        if self._engine is not None:
            self._engine.abandon()
            self._detach_engine()


class _PoolOpener:
    """Starts fork servers with the settings of one sandbox."""

    def __init__(self, slots: int, floor: int, allow_unsafe: bool, without: Collection[str]) -> None:
        self._slots, self._floor, self._allow_unsafe, self._without = slots, floor, allow_unsafe, without

    def pool(self, kind: Kind) -> ServerPool:
        """Start a fork server and test its walls. Raises `SandboxUnavailable`."""
        if sys.platform != "linux":
            return self._probed(kind, UnjailedServer(self._slots))
        scratch = tempfile.mkdtemp(prefix="qwq-sandbox-") if kind == "native" else ""
        try:
            server = ForkServerLink(profiles.plan(kind, self._slots, self._without, scratch))
        except (ForkServerDied, OSError) as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise SandboxUnavailable(f"the sandbox did not start: {error}") from error
        return self._probed(kind, server)

    def _probed(self, kind: Kind, server: ForkServerLink | UnjailedServer) -> ServerPool:
        try:
            succeeded = probes.attempt(server)
        except ForkServerDied as error:
            server.close()
            raise SandboxUnavailable(f"the sandbox died when it was tried: {error}") from error
        reached = probes.level(succeeded, server.greeting, native=kind == "native")
        lacking = probes.what_is_lacking(reached, LEVELS[self._floor], self._allow_unsafe)
        if lacking:
            server.close()
            raise SandboxUnavailable(lacking)
        return ServerPool(kind, server, reached, succeeded)


_living: weakref.WeakSet[LocalSandbox] = weakref.WeakSet()


def _after_fork() -> None:
    for sandbox in list(_living):
        sandbox._forget()


os.register_at_fork(after_in_child=_after_fork)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
