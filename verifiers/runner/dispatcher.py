"""Judges items with one verifier: through its cache and breaker, in its workers, and again if a worker breaks.

Start at `Dispatcher.judge`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from qwq_rl.errors import UserError
from qwq_rl.verifiers.contract import Running, Verdict, Verifier
from qwq_rl.verifiers.runner.calls import RANGES, How, Item, Role, answer, how_to_ask
from qwq_rl.verifiers.runner.circuit_breaker import Breaker
from qwq_rl.verifiers.runner.verdict_cache import Key, VerdictCache, key_of
from qwq_rl.verifiers.runner.workers import NoWorker, Pool, WorkerBroken, left_alive
from qwq_rl.verifiers.verdicts import fault

MOST_TOGETHER = 16
"""The most items that a worker gets in one message. It judges them one after the other."""
LOG = logging.getLogger("qwq_rl.verifiers")
BACK_OFF_S = 0.2
"""Seconds before the first retry of a fault; twice as long before each further one."""
MOST_LEFT = 8
"""How many threads of one verifier may hang before it is not asked any more."""

COUNTS = ("judged", "faults", "timeouts", "crashes", "cached", "retries", "restarts", "opened")
"""What is counted: the verdicts that were asked for and, of these, faults, timeouts, crashes and verdicts from the
cache; then retries of faults, workers that were given up, and how often the breaker opened."""


@dataclass(frozen=True)
class JudgedItems:
    """One verdict per item, in order, and the counts of `COUNTS` that are not 0."""

    verdicts: list[Verdict]
    counts: Mapping[str, int]


@dataclass
class _Request:
    """One call of `Dispatcher.judge`: what is asked, and what is known so far."""

    verifier: Verifier
    items: Sequence[Item]
    role: Role
    found: dict[int, Verdict] = field(default_factory=dict)
    """Index of an item -> its verdict."""
    suspects: dict[int, Verdict] = field(default_factory=dict)
    """Index -> timeout or crash of an item whose worker broke while there was no control item yet."""
    counts: Counter[str] = field(default_factory=Counter)
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when the caller does not wait any more."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, name: str, more: int = 1) -> None:
        """Add to `counts`; safe from any thread."""
        if more:
            with self.lock:
                self.counts[name] += more


class Dispatcher:
    """Judges with one verifier as its `running` declares. Safe to use from any thread."""

    def __init__(self, name: str, running: Running, pool: Pool | None, left: set[threading.Thread]) -> None:
        """`pool`: the workers, None for `inline`. `left`: the set to which the pool's workers add abandoned threads."""
        self._running, self._pool, self._abandoned = running, pool, left
        self._name = name
        self._breaker = Breaker(name)
        self._cache = VerdictCache() if running.cached else None
        self._control: tuple[Item, Role, float] | None = None
        """An item with a verdict, its role and its score. It shows whether the verifier can still judge."""
        self._last_judged = 0.0
        """When the verifier last gave a score (`time.monotonic`)."""

    def judge(
        self, verifier: Verifier, items: Sequence[Item], role: Role, stop: threading.Event | None = None
    ) -> JudgedItems:
        """Judge `items`. Raises what `calls.answer` lets through.

        If `stop` was set meanwhile, the result is incomplete and must not be used.
        """
        request = _Request(verifier, items, role, stop=stop or threading.Event())
        pending, keys = self._find_uncached(request)
        ask = self._judge_inline if self._pool is None else self._judge_in_workers
        ask(request, pending)
        for attempt in range(self._running.retries):
            faulty = [index for index in pending if request.found[index].status == "fault"]
            if not faulty or self._breaker.is_open:
                break
            time.sleep(BACK_OFF_S * 2**attempt)
            request.count("retries", len(faulty))
            ask(request, faulty)
        if self._cache is not None:
            self._store_new_verdicts(request, keys, self._cache)
        return JudgedItems([request.found[index] for index in range(len(items))], self._totals(request))

    def interrupt(self) -> None:
        """Make every `Worker.ask` that is waiting raise WorkerBroken now."""
        if self._pool is not None:
            self._pool.interrupt()

    def _find_uncached(self, request: _Request) -> tuple[list[int], dict[int, Key]]:
        """The indices that must be judged, one per group of equal items; and the keys of all items that have one."""
        if self._cache is None:
            return list(range(len(request.items))), {}
        pending, keys, pending_keys = [], {}, set()
        for index, item in enumerate(request.items):
            key = key_of(item, request.role)
            if key is not None:
                keys[index] = key
                verdict = self._cache.get(key)
                if verdict is not None:
                    request.found[index] = verdict
                    request.count("cached")
                    continue
                if key in pending_keys:
                    continue
                pending_keys.add(key)
            pending.append(index)
        return pending, keys

    def _store_new_verdicts(self, request: _Request, keys: Mapping[int, Key], cache: VerdictCache) -> None:
        """Put the new verdicts into the cache and copy them to the equal items that were not judged."""
        verdict_of: dict[Key, Verdict] = {}
        for index, key in keys.items():
            verdict = request.found.get(index)
            if verdict is None:
                request.found[index] = verdict_of[key]
                request.count("cached")
            elif key not in verdict_of:
                verdict_of[key] = verdict
                cache.put(key, verdict)

    def _totals(self, request: _Request) -> dict[str, int]:
        """The counts for the caller, those of 0 left out."""
        counts = request.counts
        counts["judged"] = len(request.items)
        for status, name in (("fault", "faults"), ("timeout", "timeouts"), ("crash", "crashes")):
            counts[name] = sum(verdict.status == status for verdict in request.found.values())
        return {name: counts[name] for name in COUNTS if counts[name]}

    def _judge_inline(self, request: _Request, pending: Sequence[int]) -> None:
        how, passing = how_to_ask(request.verifier), (UserError, KeyboardInterrupt)

        def ask(how: How, indices: Sequence[int]) -> str:
            items = [request.items[index] for index in indices]

            def emit(position: int, verdict: Verdict, late: bool) -> None:
                self._set_verdict(request, indices[position], verdict)

            return answer(request.verifier, how, items, request.role, self._running.deadline_s, emit, run_here, passing)

        pending = self._check_breaker(request, pending, lambda index: ask("one", [index]))
        if how != "one" and pending:
            failed = ask(how, pending)
            self._log_batch(failed)
            pending = pending if failed else ()
        while pending:
            # In chunks, because the breaker may open in between.
            ask("one", pending[:MOST_TOGETHER])
            pending = self._check_breaker(request, pending[MOST_TOGETHER:], lambda index: ask("one", [index]))

    def _judge_in_workers(self, request: _Request, pending: Sequence[int]) -> None:
        how = how_to_ask(request.verifier)
        pending = self._check_breaker(request, pending, lambda index: self._ask_chunk(request, [index]))
        if how != "one" and len(pending) > 1:
            pending = self._ask_all_at_once(request, pending, how)
        self._ask_in_parallel(request, pending)
        suspects = dict(request.suspects)
        request.suspects.clear()
        # Now that all others are done there may be a control item. Without one, nothing shows that the verifier can
        # judge at all, so the response must not be punished.
        for index, verdict in suspects.items():
            if self._control is None:
                reason = f"{verdict.reason}; nothing else has been judged, so whose doing it was is unknown"
                self._set_verdict(request, index, fault(reason))
            else:
                self._handle_suspect(request, index, verdict)

    def _check_breaker(
        self, request: _Request, pending: Sequence[int], ask_one: Callable[[int], object]
    ) -> Sequence[int]:
        """Return the indices that may be asked.

        While the breaker is open, one item may be asked as a trial. If the breaker stays open, the others get a fault.
        """
        if self._breaker.is_open and pending and self._breaker.allows():
            ask_one(pending[0])
            pending = pending[1:]
        if self._breaker.is_open:
            refused = fault(f"the verifier is not asked at present: {self._breaker.reason}")
            request.found |= dict.fromkeys(pending, refused)
            return ()
        return pending

    def _ask_all_at_once(self, request: _Request, pending: Sequence[int], how: How) -> list[int]:
        """Ask one worker all items in one request; returns the indices that got no verdict."""

        def emit(position: int, verdict: Verdict, late: bool) -> None:
            if late:
                request.suspects[pending[position]] = verdict
            else:
                self._set_verdict(request, pending[position], verdict)

        assert self._pool is not None
        items = [request.items[index] for index in pending]
        try:
            with self._pool.worker() as worker:
                self._log_batch(worker.ask(request.verifier, how, items, request.role, emit))
        except WorkerBroken as error:
            self._note_broken_worker(request)
            self._log_batch(str(error))
        except NoWorker as error:
            self._unavailable(request, error)
        return [index for index in pending if index not in request.found and index not in request.suspects]

    def _ask_in_parallel(self, request: _Request, pending: Sequence[int]) -> None:
        """Ask item by item, in as many threads as there may be workers."""
        assert self._pool is not None
        # At least four chunks per worker, so that a worker with slow items does not keep the others waiting.
        size = max(1, min(MOST_TOGETHER, len(pending) // (4 * self._pool.size)))
        chunks = iter([pending[start : start + size] for start in range(0, len(pending), size)])
        lock = threading.Lock()

        def work() -> None:
            while not request.stop.is_set():
                with lock:
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                while chunk := self._check_breaker(request, chunk, lambda index: self._ask_chunk(request, [index])):
                    chunk = self._ask_chunk(request, chunk)

        threads_needed = min(self._pool.size, -(-len(pending) // size))
        if threads_needed <= 1:
            return work()
        with ThreadPoolExecutor(threads_needed, thread_name_prefix="verdicts") as threads:
            try:
                for future in [threads.submit(work) for _ in range(threads_needed)]:
                    future.result()
            except BaseException:  # Ctrl-C, or a UserError
                request.stop.set()
                self.interrupt()
                raise
        return None

    def _ask_chunk(self, request: _Request, indices: Sequence[int]) -> Sequence[int]:
        """Ask a worker some items, one after the other; returns the indices that it did not reach."""
        assert self._pool is not None
        remaining = dict.fromkeys(indices)
        late: dict[int, Verdict] = {}

        def emit(position: int, verdict: Verdict, is_late: bool) -> None:
            del remaining[indices[position]]
            if is_late:
                late[indices[position]] = verdict
            else:
                self._set_verdict(request, indices[position], verdict)

        try:
            with self._pool.worker() as worker:
                items = [request.items[index] for index in indices]
                failed = worker.ask(request.verifier, "one", items, request.role, emit)
                request.count("restarts", not worker.usable)
            # The worker could not read the message. Alone, only the row that is to blame gets a fault.
            for index in list(remaining) if failed else ():
                self._ask_chunk(request, [index])
                del remaining[index]
        except WorkerBroken as error:
            self._note_broken_worker(request)
            if request.stop.is_set():
                return ()
            # The worker judges in order, so the first item without a verdict is the one that broke it.
            culprit = next(iter(remaining))
            del remaining[culprit]
            late[culprit] = Verdict(None, error.status, str(error))
        except NoWorker as error:
            request.found |= dict.fromkeys(remaining, self._unavailable(request, error))
            remaining = {}
        for index, verdict in late.items():
            self._handle_suspect(request, index, verdict)
        return list(remaining)

    def _handle_suspect(self, request: _Request, index: int, verdict: Verdict) -> None:
        """Find out whether the response broke the worker: now, or after all others if there is no control item."""
        if self._breaker.is_open:
            self._set_verdict(request, index, fault(f"{verdict.reason}; {self._breaker.reason}"))
        elif self._control is None:
            request.suspects[index] = verdict
            # Counts as a fault, so that a verifier that hangs on every item opens the breaker.
            self._record(request, True, verdict.reason)
        else:
            self._set_verdict(request, index, self._judge_again(request, index, verdict))

    def _ask_alone(self, request: _Request, item: Item, role: Role, fresh: bool = False) -> tuple[Verdict, bool]:
        """Ask a worker one item. The flag says whether it hung or died over it."""
        assert self._pool is not None
        replies: list[tuple[Verdict, bool]] = []
        try:
            with self._pool.worker(fresh) as worker:
                worker.ask(
                    request.verifier, "one", [item], role, lambda index, verdict, late: replies.append((verdict, late))
                )
        except WorkerBroken as error:
            self._note_broken_worker(request)
            return Verdict(None, error.status, str(error)), True
        except NoWorker as error:
            return self._unavailable(request, error), False
        return replies[0]

    def _judge_again(self, request: _Request, index: int, verdict: Verdict) -> Verdict:
        """Judge a suspect again, alone.

        If the worker breaks again while the verifier still judges another item, the response is to blame and gets the
        lowest score of the role. If the control item fails too, it is a fault of the verifier.
        """
        started = time.monotonic()
        # A new worker: what earlier responses left behind in the old one must not decide.
        second, broke_again = self._ask_alone(request, request.items[index], request.role, fresh=True)
        if not broke_again:
            return second
        assert self._control is not None
        # Where another thread got a score meanwhile, the verifier works and no control is needed.
        if self._last_judged < started:
            item, role, _ = self._control
            control, control_broke = self._ask_alone(request, item, role, fresh=True)
            if control_broke or control.score is None:
                return fault(f"{verdict.reason}; nor does the verifier judge what it judged before: {control.reason}")
        lowest = RANGES[request.role][0]
        return Verdict(lowest, second.status, f"{second.reason}, twice, while other responses are judged")

    def _set_verdict(self, request: _Request, index: int, verdict: Verdict) -> None:
        """Store a verdict, tell the breaker, and keep the item with the highest score so far as control item."""
        request.found[index] = verdict
        broke = verdict.status in ("timeout", "crash")  # says neither that the verifier works nor that it does not
        self._record(request, None if broke else verdict.status == "fault", verdict.reason)
        if verdict.score is not None and not broke:
            self._last_judged = time.monotonic()
            if self._control is None or verdict.score > self._control[2]:
                self._control = (request.items[index], request.role, verdict.score)

    def _record(self, request: _Request, failed: bool | None, why: str) -> None:
        request.count("opened", self._breaker.record(failed, why))

    def _note_broken_worker(self, request: _Request) -> None:
        """Count a broken worker; too many hanging threads open the breaker."""
        request.count("restarts")
        hanging = left_alive(self._abandoned)
        if hanging >= MOST_LEFT:
            request.count("opened", self._breaker.trip(f"{hanging} of its threads hang"))

    def _unavailable(self, request: _Request, error: NoWorker) -> Verdict:
        """Open the breaker because no worker can be started; returns the fault for the items."""
        request.count("opened", self._breaker.trip(str(error)))
        return fault(f"the verifier cannot be asked: {error}")

    def _log_batch(self, failed: str) -> None:
        if failed:
            LOG.warning("verifier %s: a batch failed (%s): it is judged one by one", self._name, failed)


def run_here(coroutine: object) -> object:
    """Run a coroutine until it ends, even if an event loop already runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)  # type: ignore[arg-type]
    # asyncio.run refuses to start in a thread whose loop is running, so it needs a thread of its own.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()  # type: ignore[arg-type]
