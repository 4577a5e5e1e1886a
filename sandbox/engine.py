"""The thread that judges: it owns the fork servers, sends them steps of cases, and delivers results as they come.

Only this thread uses its state. Other threads put calls into its inbox and wake it. Read `Engine._serve` first.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from qwq_rl.sandbox.cases import Step
from qwq_rl.sandbox.compiled import BinaryCache
from qwq_rl.sandbox.fork_server_link import ForkServerDied, ForkServerLink
from qwq_rl.sandbox.profiles import Kind
from qwq_rl.sandbox.protocol import Result
from qwq_rl.sandbox.running_jobs import TOGETHER, RunningJob, Waiter, answer_all, next_of
from qwq_rl.sandbox.unjailed import UnjailedServer

Refuse = Callable[[BaseException], None]
_MAX_STARTED = 64
"""The most jobs that are started and not finished."""
_REMEMBERED_BYTES = 1 << 26
_FINAL = ("accepted", "wrong_answer", "memory_limit", "output_limit", "runtime_error", "compile_error", "time_limit")
"""Verdicts that would be the same in another run, so results with them are kept. A case over its time limit ran alone
before it got that verdict.
"""
_MOST_CASES = 20_000
"""A fork server is replaced after so many cases, so that a leak in it cannot grow for ever."""


@dataclass(eq=False)
class ServerPool:
    """A running fork server, and the isolation that escape attempts in its jail proved."""

    kind: Kind
    server: ForkServerLink | UnjailedServer
    isolation: str
    succeeded: Mapping[str, bool]
    cases: int = 0
    """How many cases were sent to it."""


@dataclass
class Waiting:
    """A step that waits to run alone."""

    run: RunningJob
    index: int
    step: Step


@dataclass
class Load:
    """Counts of what the engine does, for metrics."""

    waiting_jobs: int = 0
    running_cases: int = 0
    judged_jobs: int = 0
    judged_cases: int = 0
    cached_jobs: int = 0
    coalesced_jobs: int = 0
    fork_servers_died: int = 0
    fork_servers_retired: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)


class Engine:
    """Judges `RunningJob`s. Start it with `start`, give it work with `call`."""

    def __init__(self, slots: int, window: int, remember: int, open_pool: Callable[[Kind], ServerPool]) -> None:
        """`open_pool` starts a fork server of a kind.

        At most `slots` cases run at once; at most `window` (a few more) are with a fork server, so that it never waits.
        """
        self.load = Load()
        self.pools: dict[Kind, ServerPool] = {}
        self.isolations: dict[Kind, str] = {}
        """The isolation level of each kind of fork server when it was last started."""
        self._leaving: list[ServerPool] = []
        """Fork servers that get no more cases and are closed when their last case ended."""
        self._slots, self._window, self._open_pool = slots, window, open_pool
        self._inbox: deque[tuple[Callable[[], None], Refuse]] = deque()
        self._gate = threading.RLock()
        """Guards the inbox and the bell. Reentrant, since the garbage collector may call `dismiss` at any point."""
        self._ended: BaseException | None = None
        self._bell = Bell()
        self._new: deque[RunningJob] = deque()
        self._started: list[RunningJob] = []
        self._to_run_alone: deque[Waiting] = deque()
        self._running: dict[int, tuple[RunningJob, int, bool, ServerPool]] = {}
        self._by_key: dict[str, RunningJob] = {}
        self._remembered: OrderedDict[str, tuple[Result, int]] = OrderedDict()
        self._remember, self._remembered_bytes = remember, 0
        self._programs = BinaryCache()
        self._number = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name="sandbox", daemon=True)

    def start(self) -> None:
        """Start the thread. Raises `RuntimeError` if that is not possible."""
        try:
            self._thread.start()
        except RuntimeError:
            self._bell.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether it still takes calls."""
        return self._ended is None

    def call(self, action: Callable[[], None], refuse: Refuse = lambda error: None) -> None:
        """Let the thread run `action` soon. If the thread has ended, or ends first, `refuse` gets the reason."""
        with self._gate:
            if self._ended is None:
                self._inbox.append((action, refuse))
                self._bell.ring()
                return
        refuse(self._ended)

    def stop(self) -> None:
        """End the thread and its fork servers, and wait for that. All waiters get an error."""
        self.call(self._stop)
        self._thread.join()

    def dismiss(self) -> None:
        """As `stop`, but return at once."""
        self.call(self._stop)

    def abandon(self) -> None:
        """Call in a forked copy of the process: release what belongs to the original."""
        for pool in (*self.pools.values(), *self._leaving):
            pool.server.abandon()
        self._gate = threading.RLock()  # another thread may have held the old one at the time of the fork
        if self._ended is None:
            self._ended = RuntimeError("the sandbox belongs to the process that this one was forked from")
            self._bell.close()

    def state(self) -> Load:
        """A copy of the counts."""
        return replace(
            self.load,
            waiting_jobs=len(self._new),
            running_cases=len(self._running),
            verdicts=dict(self.load.verdicts),
        )

    def pool(self, kind: Kind) -> ServerPool:
        """The fork server of a kind; started if it is not running. Only for the engine's own thread."""
        # a full one finishes its cases in `_leaving`, while the new one takes the next
        if kind in self.pools and self.pools[kind].cases >= _MOST_CASES:
            self._leaving.append(self.pools.pop(kind))
            self.load.fork_servers_retired += 1
            self._end_idle()
        if kind not in self.pools:
            self.pools[kind] = self._open_pool(kind)
            self.isolations[kind] = self.pools[kind].isolation
        return self.pools[kind]

    def add(self, runs: Iterable[RunningJob]) -> None:
        """Take jobs: answer each from a kept result, join it to an equal one, or queue it."""
        for run in runs:
            self._add(run)

    def _add(self, run: RunningJob) -> None:
        remembered = self._remembered.get(run.key)
        if remembered is not None:
            self._remembered.move_to_end(run.key)
            self.load.cached_jobs += 1
            for waiter in run.waiters:
                waiter.answer(replace(remembered[0], id=waiter.name, cached=True))
        elif run.key in self._by_key:
            self.load.coalesced_jobs += 1
            self._by_key[run.key].waiters += run.waiters
        else:
            self._by_key[run.key] = run
            self._new.append(run)

    def drop(self, waiters: Iterable[Waiter]) -> None:
        """Remove waiters. Jobs that nobody waits for any more are ended."""
        leaving = {id(waiter) for waiter in waiters}
        for key, run in list(self._by_key.items()):
            staying = [waiter for waiter in run.waiters if id(waiter) not in leaving]
            if len(staying) < len(run.waiters):
                run.waiters[:] = staying
                if not staying:
                    del self._by_key[key]
                    self._end(run)

    def _end(self, run: RunningJob) -> None:
        run.following = len(run.job.tests)  # start no more of its cases
        if run in self._new:
            self._new.remove(run)
        if run in self._started:
            self._started.remove(run)
        for number, (owner, _, _, pool) in list(self._running.items()):
            if owner is run:
                with contextlib.suppress(ForkServerDied):
                    pool.server.cancel(number)
        self._to_run_alone = deque(waiting for waiting in self._to_run_alone if waiting.run is not run)

    def _serve(self) -> None:
        try:
            while True:
                # calls first: they may end the engine, cancel jobs or add some
                self._act()
                if self._stopping:
                    return
                self._fill()
                self._wait()
        except BaseException as error:
            self._leave(error)
            raise
        finally:
            self._leave(RuntimeError("the sandbox was closed"))
            for pool in (*self.pools.values(), *self._leaving):
                pool.server.close()
            self.pools.clear()
            self._leaving.clear()

    def _stop(self) -> None:
        self._stopping = True

    def _leave(self, error: BaseException) -> None:
        """Take no more calls, and deliver the error to all waiters."""
        with self._gate:
            if self._ended is not None:
                return
            self._ended = error
            self._bell.close()
        answer_all([waiter for run in self._by_key.values() for waiter in run.waiters], error)
        for _, refuse in self._inbox:
            with contextlib.suppress(Exception):
                refuse(error)
        self._by_key.clear()
        self._inbox.clear()
        self._remembered.clear()

    def _act(self) -> None:
        while self._inbox and not self._stopping:
            # removed only after it ran: if it raises, `_leave` still finds its `refuse`
            self._inbox[0][0]()
            self._inbox.popleft()

    def _wait(self) -> None:
        """Wait until there is a result or a call; receive results."""
        if self._inbox:
            return
        poll = select.poll()
        poll.register(self._bell.fileno(), select.POLLIN)
        # idle fork servers as well: if one dies, this is noticed, and it is replaced, before the next job
        by_file = {pool.server.fileno(): pool for pool in (*self.pools.values(), *self._leaving)}
        for file in by_file:
            poll.register(file, select.POLLIN)
        for file, _ in poll.poll():
            if file == self._bell.fileno():
                self._bell.hear()
            else:
                self._receive(by_file[file])

    def _fill(self) -> None:
        """Start steps while there is room."""
        while True:
            if any(alone for _, _, alone, _ in self._running.values()):
                return
            if self._to_run_alone:
                if not self._running:
                    waiting = self._to_run_alone.popleft()
                    self._send(waiting.run, waiting.index, waiting.step)
                    continue
                return  # wait until nothing else runs
            # one fork server runs only `slots` of its cases at once, but several would run all of them
            several_servers = len({id(pool) for _, _, _, pool in self._running.values()}) > 1
            if len(self._running) >= (self._slots if several_servers else self._window):
                return
            run = self._next()
            if run is None:
                return
            index, step = run.start(self._programs)
            self._take(run, index, step)

    def _next(self) -> RunningJob | None:
        """The job whose next case is started: one with nothing running, else a new one, else any."""
        run = next_of(self._started)
        if self._new and len(self._started) < _MAX_STARTED and (run is None or run.under_way):
            self._started.append(self._new.popleft())
            return self._started[-1]
        return run

    def _take(self, run: RunningJob, index: int, step: Step | None) -> None:
        """Handle a job's next step; without one, finish the job if it was the last."""
        if step is not None and step.alone:
            self._to_run_alone.append(Waiting(run, index, step))
        elif step is not None:
            self._send(run, index, step)
        elif run.finished:
            self._finish(run)

    def _send(self, run: RunningJob, index: int, step: Step) -> None:
        try:
            pool = self.pool(step.kind)
        except Exception as error:
            self._refuse(run, error)
            return
        self._number = (self._number + 1) & 0xFFFFFFFF  # a request has 32 bits for it
        self._running[self._number] = (run, index, step.alone, pool)
        pool.cases += 1
        try:
            pool.server.send(self._number, step.payloads, step.limits)
        except ForkServerDied as error:
            self._replace(pool, error)

    def _receive(self, pool: ServerPool) -> None:
        if pool not in (*self.pools.values(), *self._leaving):
            return  # it was closed since poll returned
        try:
            number, wall_s, endings = pool.server.receive()
        except ForkServerDied as error:
            self._replace(pool, error)
            return
        entry = self._running.pop(number, None)
        self._end_idle()
        if entry is None:
            return  # its job is being judged again since
        run, index, _, _ = entry
        self.load.judged_cases += index >= 0  # negative: compiling, or the first cases in one process
        if not run.waiters:  # cancelled
            run.under_way.pop(index, None)
            return
        step = run.go_on(index, (wall_s, endings))
        self.load.judged_cases += len(run.judged) * (index == TOGETHER and step is None)
        self._take(run, index, step)

    def _end_idle(self) -> None:
        """Close replaced fork servers that have no running cases."""
        if not self._leaving:
            return
        busy = {id(pool) for _, _, _, pool in self._running.values()}
        for pool in [pool for pool in self._leaving if id(pool) not in busy]:
            self._leaving.remove(pool)
            pool.server.close()

    def _replace(self, pool: ServerPool, error: ForkServerDied) -> None:
        """After a fork server died: close it, and repeat what was running in it."""
        self.load.fork_servers_died += 1
        if pool in self._leaving:
            self._leaving.remove(pool)
        else:
            self.pools.pop(pool.kind)
        pool.server.close()
        affected: dict[int, RunningJob] = {}
        for number, (run, _, _, server_pool) in list(self._running.items()):
            if server_pool is pool:
                del self._running[number]
                affected[id(run)] = run
        for run in affected.values():
            run.events = (*run.events, f"the sandbox's fork server died: {error}"[:500])
            self._to_run_alone = deque(entry for entry in self._to_run_alone if entry.run is not run)
            self._running = {number: entry for number, entry in self._running.items() if entry[0] is not run}
            run.rewind()
            if run.finished and run.waiters:
                self._finish(run)

    def _finish(self, run: RunningJob) -> None:
        if run in self._started:
            self._started.remove(run)
        self._by_key.pop(run.key, None)
        result = run.result("", self.isolations.get(run.kind, "L0"))
        self.load.judged_jobs += 1
        self.load.verdicts[result.verdict] = self.load.verdicts.get(result.verdict, 0) + 1
        if result.verdict in _FINAL and not run.deaths:
            self._keep(run.key, result)
        for waiter in run.waiters:
            waiter.answer(replace(result, id=waiter.name))

    def _keep(self, key: str, result: Result) -> None:
        # 200: a rough size of the objects themselves
        size = 200 + sum(len(case.stdout) + len(case.stderr) + 200 for case in result.cases)
        self._remembered[key] = (result, size)
        self._remembered_bytes += size
        while len(self._remembered) > self._remember or self._remembered_bytes > _REMEMBERED_BYTES:
            _, (_, freed) = self._remembered.popitem(last=False)
            self._remembered_bytes -= freed

    def _refuse(self, run: RunningJob, error: BaseException) -> None:
        """Give all waiters of a job the error that no fork server could be started for it."""
        self._by_key.pop(run.key, None)
        self._end(run)
        for waiter in run.waiters:
            waiter.answer(error)


class Bell:
    """Wakes a thread that polls a descriptor. A pipe, since not every system has eventfd."""

    def __init__(self) -> None:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)

    def fileno(self) -> int:
        """The descriptor that is readable after `ring`."""
        return self._read_end

    def ring(self) -> None:
        """Wake the thread. More rings before `hear` have no further effect."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._write_end, b"!")

    def hear(self) -> None:
        """Clear it until the next `ring`."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read_end, 4096)

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._read_end)
        os.close(self._write_end)
