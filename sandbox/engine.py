"""The thread that judges: it owns the fork servers, hands them steps of cases, and delivers results as they come.

All of its state is its own; others put calls into its inbox and wake it.
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
_STARTED = 64
"""Jobs that are begun before others are finished."""
_REMEMBERED_BYTES = 1 << 26
_LASTING = ("accepted", "wrong_answer", "memory_limit", "output_limit", "runtime_error", "compile_error", "time_limit")
"""Verdicts that would come out again, so that they need not be found out again; a time limit was judged alone."""


_MOST_CASES = 20_000
"""After so many a fork server is replaced, so that whatever it might hold on to cannot grow for ever."""


@dataclass(eq=False)
class ServerPool:
    """A running fork server, and the isolation that attempts from within proved."""

    kind: Kind
    server: ForkServerLink | UnjailedServer
    isolation: str
    succeeded: Mapping[str, bool]
    cases: int = 0
    """That were sent to it."""


@dataclass
class Waiting:
    """A step that is to run alone."""

    run: RunningJob
    index: int
    step: Step


@dataclass
class Load:
    """What is going on, for those who watch."""

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
    """Judges runs; start it with `start`, give it work with `call`."""

    def __init__(self, slots: int, window: int, remember: int, open_pool: Callable[[Kind], ServerPool]) -> None:
        """`open_pool` starts a fork server of a kind; at most `slots` cases run, `window` are with fork servers."""
        self.load = Load()
        self.pools: dict[Kind, ServerPool] = {}
        self.isolations: dict[Kind, str] = {}
        """What each kind of fork server reached when it was last started."""
        self._leaving: list[ServerPool] = []
        """Fork servers that get no more cases and are ended when they have none."""
        self._slots, self._window, self._open_pool = slots, window, open_pool
        self._inbox: deque[tuple[Callable[[], None], Refuse]] = deque()
        self._gate = threading.RLock()
        """For the inbox and what wakes: reentrant, since the collector may call `dismiss` anywhere."""
        self._ended: BaseException | None = None
        self._bell = Bell()
        self._fresh: deque[RunningJob] = deque()
        self._started: list[RunningJob] = []
        self._alone: deque[Waiting] = deque()
        self._under_way: dict[int, tuple[RunningJob, int, bool, ServerPool]] = {}
        self._by_key: dict[str, RunningJob] = {}
        self._remembered: OrderedDict[str, tuple[Result, int]] = OrderedDict()
        self._remember, self._remembered_bytes = remember, 0
        self._programs = BinaryCache()
        self._number = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name="sandbox", daemon=True)

    def start(self) -> None:
        """Begin. Raises `RuntimeError` where no thread can be started."""
        try:
            self._thread.start()
        except RuntimeError:
            self._bell.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether it takes calls."""
        return self._ended is None

    def call(self, action: Callable[[], None], refuse: Refuse = lambda error: None) -> None:
        """Have the thread do something, soon; where it ended, or ends before that is done, `refuse` is told why."""
        with self._gate:
            if self._ended is None:
                self._inbox.append((action, refuse))
                self._bell.ring()
                return
        refuse(self._ended)

    def stop(self) -> None:
        """End it and its fork servers; whoever waits is told that the sandbox closed."""
        self.call(self._stop)
        self._thread.join()

    def dismiss(self) -> None:
        """As `stop`, but without waiting for the end."""
        self.call(self._stop)

    def abandon(self) -> None:
        """In a forked copy of the process: let go of what is the original's."""
        for pool in (*self.pools.values(), *self._leaving):
            pool.server.abandon()
        self._gate = threading.RLock()
        if self._ended is None:
            self._ended = RuntimeError("the sandbox belongs to the process that this one was forked from")
            self._bell.close()

    def state(self) -> Load:
        """A copy of the counts."""
        return replace(
            self.load,
            waiting_jobs=len(self._fresh),
            running_cases=len(self._under_way),
            verdicts=dict(self.load.verdicts),
        )

    def pool(self, kind: Kind) -> ServerPool:
        """The fork server of a kind, started where it is not running; only for calls of the thread itself."""
        if kind in self.pools and self.pools[kind].cases >= _MOST_CASES:
            self._leaving.append(self.pools.pop(kind))
            self.load.fork_servers_retired += 1
            self._end_idle()
        if kind not in self.pools:
            self.pools[kind] = self._open_pool(kind)
            self.isolations[kind] = self.pools[kind].isolation
        return self.pools[kind]

    def add(self, runs: Iterable[RunningJob]) -> None:
        """Take on jobs: answer each from what is known, join it to one that is the same, or queue it."""
        for run in runs:
            self._add(run)

    def _add(self, run: RunningJob) -> None:
        known = self._remembered.get(run.key)
        if known is not None:
            self._remembered.move_to_end(run.key)
            self.load.cached_jobs += 1
            for waiter in run.waiters:
                waiter.answer(replace(known[0], id=waiter.name, cached=True))
        elif run.key in self._by_key:
            self.load.coalesced_jobs += 1
            self._by_key[run.key].waiters += run.waiters
        else:
            self._by_key[run.key] = run
            self._fresh.append(run)

    def drop(self, waiters: Iterable[Waiter]) -> None:
        """Some wait no longer; what nobody waits for is ended."""
        leaving = {id(waiter) for waiter in waiters}
        for key, run in list(self._by_key.items()):
            staying = [waiter for waiter in run.waiters if id(waiter) not in leaving]
            if len(staying) < len(run.waiters):
                run.waiters[:] = staying
                if not staying:
                    del self._by_key[key]
                    self._end(run)

    def _end(self, run: RunningJob) -> None:
        run.following = len(run.job.tests)
        if run in self._fresh:
            self._fresh.remove(run)
        if run in self._started:
            self._started.remove(run)
        for number, (owner, _, _, pool) in list(self._under_way.items()):
            if owner is run:
                with contextlib.suppress(ForkServerDied):
                    pool.server.cancel(number)
        self._alone = deque(item for item in self._alone if item.run is not run)

    def _serve(self) -> None:
        try:
            while True:
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
        """Take no more calls, and tell all who wait."""
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
            self._inbox[0][0]()
            self._inbox.popleft()

    def _wait(self) -> None:
        """Until there is a result or a call."""
        if self._inbox:
            return
        poll = select.poll()
        poll.register(self._bell.fileno(), select.POLLIN)
        # a fork server is heard when idle, too: its death is noticed, and it is replaced, before the next job
        by_file = {pool.server.fileno(): pool for pool in (*self.pools.values(), *self._leaving)}
        for file in by_file:
            poll.register(file, select.POLLIN)
        for file, _ in poll.poll():
            if file == self._bell.fileno():
                self._bell.hear()
            else:
                self._receive(by_file[file])

    def _fill(self) -> None:
        """Hand out steps while there is room."""
        while True:
            if any(alone for _, _, alone, _ in self._under_way.values()):
                return
            if self._alone:
                if not self._under_way:
                    item = self._alone.popleft()
                    self._send(item.run, item.index, item.step)
                    continue
                return
            several = len({id(pool) for _, _, _, pool in self._under_way.values()}) > 1
            if len(self._under_way) >= (self._slots if several else self._window):
                return
            run = self._next()
            if run is None:
                return
            index, step = run.start(self._programs)
            self._take(run, index, step)

    def _next(self) -> RunningJob | None:
        """The job whose next case is started: one that has nothing under way, a new one, any."""
        run = next_of(self._started)
        if self._fresh and len(self._started) < _STARTED and (run is None or run.under_way):
            self._started.append(self._fresh.popleft())
            return self._started[-1]
        return run

    def _take(self, run: RunningJob, index: int, step: Step | None) -> None:
        """A run's next step, or its being done at this place."""
        if step is not None and step.alone:
            self._alone.append(Waiting(run, index, step))
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
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._under_way[self._number] = (run, index, step.alone, pool)
        pool.cases += 1
        try:
            pool.server.send(self._number, step.payloads, step.limits)
        except ForkServerDied as error:
            self._replace(pool, error)

    def _receive(self, pool: ServerPool) -> None:
        if pool not in (*self.pools.values(), *self._leaving):
            return  # ended since it was heard
        try:
            number, wall_s, endings = pool.server.receive()
        except ForkServerDied as error:
            self._replace(pool, error)
            return
        found = self._under_way.pop(number, None)
        self._end_idle()
        if found is None:
            return  # of a job that is done again since
        run, index, _, _ = found
        self.load.judged_cases += index >= 0
        if not run.waiters:
            run.under_way.pop(index, None)
            return
        step = run.go_on(index, (wall_s, endings))
        self.load.judged_cases += len(run.judged) * (index == TOGETHER and step is None)
        self._take(run, index, step)

    def _end_idle(self) -> None:
        """End fork servers that were replaced and have nothing under way."""
        if not self._leaving:
            return
        busy = {id(pool) for _, _, _, pool in self._under_way.values()}
        for pool in [pool for pool in self._leaving if id(pool) not in busy]:
            self._leaving.remove(pool)
            pool.server.close()

    def _replace(self, pool: ServerPool, error: ForkServerDied) -> None:
        """A fork server died: close what is left of it, and do again what was under way with it."""
        self.load.fork_servers_died += 1
        if pool in self._leaving:
            self._leaving.remove(pool)
        else:
            self.pools.pop(pool.kind)
        pool.server.close()
        touched: dict[int, RunningJob] = {}
        for number, (run, _, _, at) in list(self._under_way.items()):
            if at is pool:
                del self._under_way[number]
                touched[id(run)] = run
        for run in touched.values():
            run.events = (*run.events, f"the sandbox's fork server died: {error}"[:500])
            self._alone = deque(item for item in self._alone if item.run is not run)
            self._under_way = {number: item for number, item in self._under_way.items() if item[0] is not run}
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
        if result.verdict in _LASTING and not run.deaths:
            self._keep(run.key, result)
        for waiter in run.waiters:
            waiter.answer(replace(result, id=waiter.name))

    def _keep(self, key: str, result: Result) -> None:
        size = 200 + sum(len(case.stdout) + len(case.stderr) + 200 for case in result.cases)
        self._remembered[key] = (result, size)
        self._remembered_bytes += size
        while len(self._remembered) > self._remember or self._remembered_bytes > _REMEMBERED_BYTES:
            _, (_, freed) = self._remembered.popitem(last=False)
            self._remembered_bytes -= freed

    def _refuse(self, run: RunningJob, error: BaseException) -> None:
        """This machine cannot judge a job at all."""
        self._by_key.pop(run.key, None)
        self._end(run)
        for waiter in run.waiters:
            waiter.answer(error)


class Bell:
    """What an eventfd is, on systems that have none, too."""

    def __init__(self) -> None:
        self._heard, self._rung = os.pipe()
        os.set_blocking(self._heard, False)
        os.set_blocking(self._rung, False)

    def fileno(self) -> int:
        """Readable once it rang."""
        return self._heard

    def ring(self) -> None:
        """Wake it; ringing again before it heard does nothing more."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._rung, b"!")

    def hear(self) -> None:
        """Be quiet until it rings again."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._heard, 4096)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._heard)
        os.close(self._rung)
