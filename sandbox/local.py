"""SandboxInterface jobs on this machine: an engine of our own, started when first needed."""

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

_MOST_SLOTS = 32
"""More than one fork server can feed."""
_AHEAD = 2
"""Cases that wait with a fork server, so that it never waits for us."""
WALLS = ("cgroups", "root", "namespaces", "landlock", "seccomp", "notices", "limits")
"""What can be left out, to see what a machine that lacks it would give."""


class SandboxUnavailable(RuntimeError):
    """This machine cannot judge as asked; the text says what is missing and what to do."""


class Ticket:
    """Jobs that are being judged; `cancel` ends those that nobody else asked for."""

    def __init__(self, engine: Engine, waiters: Sequence[Waiter]) -> None:
        """Made by `LocalSandbox.submit`."""
        self._engine, self._waiters = engine, waiters

    def cancel(self) -> None:
        """Wait for no more results; some may still be delivered."""
        self._engine.call(lambda: self._engine.drop(self._waiters))


class LocalSandbox(SandboxInterface):
    """Judges jobs in jailed children of warm interpreters; a context manager, to be shared between threads.

    A forked copy of this process gets fork servers of its own. One that dies is replaced, and what was unfinished is
    judged again, twice; then it is `sandbox_error`. Judging raises `SandboxUnavailable` where none starts or the
    isolation is below what is required, and `JobError` for a test set that was not put in or a language that this
    machine lacks.
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

        Isolation below `require` (L0 to L4) is refused, and L0 unless `allow_unsafe` besides. `without` leaves out some
        of `WALLS`, to see what a machine that lacks them would give. The results of the last `remember` jobs answer the
        same job again. Test sets that were put in take `test_bytes` of memory at most, or there is one alone.
        """
        if require not in LEVELS:
            raise ValueError(f"require is {require!r}: give one of {', '.join(LEVELS)}")
        self.slots = slots or min(_MOST_SLOTS, _cores())
        self._floor = LEVELS.index("L0" if allow_unsafe and require == "L1" else require)
        self._allow_unsafe, self._without, self._remember = allow_unsafe, tuple(without), remember
        self._engine: Engine | None = None
        self._dismissal: weakref.finalize | None = None
        super().__init__(KeptTests(test_bytes))
        self._lock = threading.RLock()
        _living.add(self)

    def submit(self, jobs: Sequence[Job], deliver: Deliver) -> Ticket:
        """Have jobs judged and return at once; `deliver` gets each job's place and result, or why there is none.

        It is called by the sandbox's thread and must be short (`loop.call_soon_threadsafe`, a queue).
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
        """The level that Python programs get, proven by attempts in the jail. Raises `SandboxUnavailable`."""
        return self._ask(lambda engine: engine.pool("lean")).isolation

    @property
    def load(self) -> Load:
        """What is going on: counts since the start, and what is waiting."""
        return self._started().state()

    def languages(self) -> dict[str, str]:
        """The languages that this machine has, with their versions."""
        python = f"python {'.'.join(map(str, sys.version_info[:3]))}"
        found = {"python": python, **{name: languages.runtime(name) for name in LANGUAGES if name != "python"}}
        if sys.platform != "linux":
            return {"python": python}
        return {name: version for name, version in found.items() if version}

    def probe(self, kind: Kind = "lean") -> tuple[dict[str, bool], dict[str, object]]:
        """Which attempts to break out succeed, and what the fork server of that kind found available."""
        pool = self._ask(lambda engine: engine.pool(kind))
        return dict(pool.succeeded), dict(pool.server.greeting)

    def close(self) -> None:
        """End the fork servers and all that runs; a later `judge` starts others."""
        with self._lock:
            engine = self._engine
            self._let_go()
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
                self._let_go()  # its thread died: begin anew
            if self._engine is None:
                if sys.platform != "linux" and not self._allow_unsafe:
                    raise SandboxUnavailable(
                        f"the sandbox's walls need Linux, this is {sys.platform}: use a Linux machine or container, or "
                        "say LocalSandbox(allow_unsafe=True) (--unsafe, `require: L0` in a recipe) to run trusted "
                        "programs with no walls at all"
                    )
                # a case holds ten descriptors at most
                window = max(1, min(self.slots + _AHEAD, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 20))
                opening = _Opening(self.slots, self._floor, self._allow_unsafe, self._without)
                try:
                    engine = Engine(self.slots, window, self._remember, opening.pool)
                    engine.start()
                except (OSError, RuntimeError) as error:  # no descriptor or no thread is left
                    raise SandboxUnavailable(f"the sandbox did not start: {error}") from error
                self._engine, self._dismissal = engine, weakref.finalize(self, engine.dismiss)
            return self._engine

    def _let_go(self) -> None:
        self._engine = None
        if self._dismissal is not None:
            self._dismissal.detach()

    def _ask(self, question: Callable[[Engine], ServerPool]) -> ServerPool:
        """Have the engine's thread answer."""
        engine = self._started()
        answer: SimpleQueue[ServerPool | BaseException] = SimpleQueue()

        def act() -> None:
            try:
                answer.put(question(engine))
            except Exception as error:
                answer.put(error)

        engine.call(act, answer.put)
        found = answer.get()
        if isinstance(found, BaseException):
            raise self._reason(found) from found
        return found

    def _resolved(self, job: Job) -> Job:
        """With its tests, and a language that is here."""
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
        told = (job.code, job.language, job.entry_point, job.compare, job.mode, job.limits, job.checker)
        # what is only run may be meant to differ from time to time
        once = os.urandom(8).hex() if job.run_only else ""
        key = hashlib.sha256(repr((told, hashes[id(job.tests)], once)).encode("utf-8", "surrogatepass")).hexdigest()
        return RunningJob(job, key, [Waiter(job.id, lambda result: deliver(index, result))])

    def _forget(self) -> None:
        """In a forked copy of the process: the engine belongs to the original."""
        self._lock = threading.RLock()
        self._test_sets.forked()
        if self._engine is not None:
            self._engine.abandon()
            self._let_go()


class _Opening:
    """Starts fork servers with one sandbox's settings."""

    def __init__(self, slots: int, floor: int, allow_unsafe: bool, without: Collection[str]) -> None:
        self._slots, self._floor, self._allow_unsafe, self._without = slots, floor, allow_unsafe, without

    def pool(self, kind: Kind) -> ServerPool:
        """A fork server whose walls were tried. Raises `SandboxUnavailable`."""
        if sys.platform != "linux":
            return self._tried(kind, UnjailedServer(self._slots))
        scratch = tempfile.mkdtemp(prefix="qwq-sandbox-") if kind == "native" else ""
        try:
            server = ForkServerLink(profiles.plan(kind, self._slots, self._without, scratch))
        except (ForkServerDied, OSError) as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise SandboxUnavailable(f"the sandbox did not start: {error}") from error
        return self._tried(kind, server)

    def _tried(self, kind: Kind, server: ForkServerLink | UnjailedServer) -> ServerPool:
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
