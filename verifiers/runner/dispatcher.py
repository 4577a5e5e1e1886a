"""Where one verifier's questions come together: its workers, its cache, its breaker, and what became of each item."""

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
"""Items that a worker gets in one message, to be judged one after the other."""
LOG = logging.getLogger("qwq_rl.verifiers")
BACK_OFF_S = 0.2
"""Before the first retry of a fault; twice as long before each further one."""
MOST_LEFT = 8
"""Threads of one verifier that may hang before it is not asked any more."""

COUNTS = ("judged", "faults", "timeouts", "crashes", "cached", "retries", "restarts", "opened")
"""What is counted: verdicts asked for and, of them, those that were faults, timeouts and crashes, or came from the
cache; then retries of faults, workers that were given up, and how often the breaker opened."""


@dataclass(frozen=True)
class JudgedItems:
    """One verdict an item, in order, and what happened on the way (`COUNTS`)."""

    verdicts: list[Verdict]
    counts: Mapping[str, int]


@dataclass
class _Request:
    """One call: what is asked, and what has been found so far."""

    verifier: Verifier
    items: Sequence[Item]
    role: Role
    found: dict[int, Verdict] = field(default_factory=dict)
    suspects: dict[int, Verdict] = field(default_factory=dict)
    """Places over which a worker hung or died while nothing was known that the verifier can judge."""
    counts: Counter[str] = field(default_factory=Counter)
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when the caller does not wait any more."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, name: str, more: int = 1) -> None:
        """Add to `counts`, from any thread."""
        if more:
            with self.lock:
                self.counts[name] += more


class Dispatcher:
    """Judges with one verifier as its `running` says; safe to use from any thread."""

    def __init__(self, name: str, running: Running, pool: Pool | None, left: set[threading.Thread]) -> None:
        """`pool`: the workers, None for `inline`; `left`: threads left behind, as its workers fill it."""
        self._running, self._pool, self._left = running, pool, left
        self._name = name
        self._breaker = Breaker(name)
        self._cache = VerdictCache() if running.cached else None
        self._known: tuple[Item, Role, float] | None = None
        self._last_good = 0.0

    def judge(
        self, verifier: Verifier, items: Sequence[Item], role: Role, stop: threading.Event | None = None
    ) -> JudgedItems:
        """Judge `items`. Raises what `calls.answer` lets through; after `stop` is set the result is worthless."""
        request = _Request(verifier, items, role, stop=stop or threading.Event())
        todo, keys = self._not_cached(request)
        ask = self._inline if self._pool is None else self._apart
        ask(request, todo)
        for attempt in range(self._running.retries):
            faulty = [place for place in todo if request.found[place].status == "fault"]
            if not faulty or self._breaker.is_open:
                break
            time.sleep(BACK_OFF_S * 2**attempt)
            request.count("retries", len(faulty))
            ask(request, faulty)
        if self._cache is not None:
            self._share(request, keys, self._cache)
        return JudgedItems([request.found[place] for place in range(len(items))], self._counted(request))

    def interrupt(self) -> None:
        """Let nobody wait for a worker any more."""
        if self._pool is not None:
            self._pool.interrupt()

    def _not_cached(self, request: _Request) -> tuple[list[int], dict[int, Key]]:
        """The places that must be judged, one of those that are alike, and the keys of all that have one."""
        if self._cache is None:
            return list(range(len(request.items))), {}
        todo, keys, asked = [], {}, set()
        for place, item in enumerate(request.items):
            key = key_of(item, request.role)
            if key is not None:
                keys[place] = key
                verdict = self._cache.get(key)
                if verdict is not None:
                    request.found[place] = verdict
                    request.count("cached")
                    continue
                if key in asked:
                    continue
                asked.add(key)
            todo.append(place)
        return todo, keys

    def _share(self, request: _Request, keys: Mapping[int, Key], cache: VerdictCache) -> None:
        """Keep the new verdicts, and give them to the items that were alike."""
        first: dict[Key, Verdict] = {}
        for place, key in keys.items():
            verdict = request.found.get(place)
            if verdict is None:
                request.found[place] = first[key]
                request.count("cached")
            elif key not in first:
                first[key] = verdict
                cache.put(key, verdict)

    def _counted(self, request: _Request) -> dict[str, int]:
        counts = request.counts
        counts["judged"] = len(request.items)
        for status, name in (("fault", "faults"), ("timeout", "timeouts"), ("crash", "crashes")):
            counts[name] = sum(verdict.status == status for verdict in request.found.values())
        return {name: counts[name] for name in COUNTS if counts[name]}

    def _inline(self, request: _Request, todo: Sequence[int]) -> None:
        how, passing = how_to_ask(request.verifier), (UserError, KeyboardInterrupt)

        def ask(how: How, places: Sequence[int]) -> str:
            items = [request.items[place] for place in places]

            def emit(at: int, verdict: Verdict, late: bool) -> None:
                self._settle(request, places[at], verdict)

            return answer(request.verifier, how, items, request.role, self._running.deadline_s, emit, run_here, passing)

        todo = self._trial(request, todo, lambda place: ask("one", [place]))
        if how != "one" and todo:
            failed = ask(how, todo)
            self._log_batch(failed)
            todo = todo if failed else ()
        while todo:
            ask("one", todo[:MOST_TOGETHER])
            todo = self._trial(request, todo[MOST_TOGETHER:], lambda place: ask("one", [place]))

    def _apart(self, request: _Request, todo: Sequence[int]) -> None:
        how = how_to_ask(request.verifier)
        todo = self._trial(request, todo, lambda place: self._several(request, [place]))
        if how != "one" and len(todo) > 1:
            todo = self._whole(request, todo, how)
        self._spread(request, todo)
        suspects = dict(request.suspects)
        request.suspects.clear()
        for place, verdict in suspects.items():
            if self._known is None:
                unknown = f"{verdict.reason}; nothing else has been judged, so whose doing it was is unknown"
                self._settle(request, place, fault(unknown))
            else:
                self._suspected(request, place, verdict)

    def _trial(self, request: _Request, todo: Sequence[int], alone: Callable[[int], object]) -> Sequence[int]:
        """While the breaker is open one item may decide over the rest; returns those that are still to be asked."""
        if self._breaker.is_open and todo and self._breaker.allows():
            alone(todo[0])
            todo = todo[1:]
        if self._breaker.is_open:
            refused = fault(f"the verifier is not asked at present: {self._breaker.reason}")
            request.found |= dict.fromkeys(todo, refused)
            return ()
        return todo

    def _whole(self, request: _Request, todo: Sequence[int], how: How) -> list[int]:
        """Ask one worker everything; returns the places that got no verdict by that."""

        def emit(at: int, verdict: Verdict, late: bool) -> None:
            if late:
                request.suspects[todo[at]] = verdict
            else:
                self._settle(request, todo[at], verdict)

        assert self._pool is not None
        items = [request.items[place] for place in todo]
        try:
            with self._pool.worker() as worker:
                self._log_batch(worker.ask(request.verifier, how, items, request.role, emit))
        except WorkerBroken as error:
            self._broken(request)
            self._log_batch(str(error))
        except NoWorker as error:
            self._unavailable(request, error)
        return [place for place in todo if place not in request.found and place not in request.suspects]

    def _spread(self, request: _Request, todo: Sequence[int]) -> None:
        """Ask one by one, as many at a time as there may be workers."""
        assert self._pool is not None
        size = max(1, min(MOST_TOGETHER, len(todo) // (4 * self._pool.size)))
        waiting = iter([todo[start : start + size] for start in range(0, len(todo), size)])
        lock = threading.Lock()

        def serve() -> None:
            while not request.stop.is_set():
                with lock:
                    places = next(waiting, None)
                if places is None:
                    return
                while places := self._trial(request, places, lambda place: self._several(request, [place])):
                    places = self._several(request, places)

        many = min(self._pool.size, -(-len(todo) // size))
        if many <= 1:
            return serve()
        with ThreadPoolExecutor(many, thread_name_prefix="verdicts") as threads:
            try:
                for done in [threads.submit(serve) for _ in range(many)]:
                    done.result()
            except BaseException:  # Ctrl-C, or what the user must mend
                request.stop.set()
                self.interrupt()
                raise
        return None

    def _several(self, request: _Request, places: Sequence[int]) -> Sequence[int]:
        """Ask a worker some items, one after the other; returns those that it did not come to."""
        assert self._pool is not None
        left = dict.fromkeys(places)
        late: dict[int, Verdict] = {}

        def emit(at: int, verdict: Verdict, is_late: bool) -> None:
            del left[places[at]]
            if is_late:
                late[places[at]] = verdict
            else:
                self._settle(request, places[at], verdict)

        try:
            with self._pool.worker() as worker:
                items = [request.items[place] for place in places]
                unread = worker.ask(request.verifier, "one", items, request.role, emit)
                request.count("restarts", not worker.usable)
            for place in list(left) if unread else ():
                self._several(request, [place])
                del left[place]
        except WorkerBroken as error:
            self._broken(request)
            if request.stop.is_set():
                return ()
            culprit = next(iter(left))
            del left[culprit]
            late[culprit] = Verdict(None, error.status, str(error))
        except NoWorker as error:
            request.found |= dict.fromkeys(left, self._unavailable(request, error))
            left = {}
        for place, verdict in late.items():
            self._suspected(request, place, verdict)
        return list(left)

    def _suspected(self, request: _Request, place: int, verdict: Verdict) -> None:
        """Find out whose doing it was, at once or, where nothing is known to be judged, after all others."""
        if self._breaker.is_open:
            self._settle(request, place, fault(f"{verdict.reason}; {self._breaker.reason}"))
        elif self._known is None:
            request.suspects[place] = verdict
            self._record(request, True, verdict.reason)
        else:
            self._settle(request, place, self._resolved(request, place, verdict))

    def _alone(self, request: _Request, item: Item, role: Role, fresh: bool = False) -> tuple[Verdict, bool]:
        """Ask a worker one item; the flag says that it hung or died over it."""
        assert self._pool is not None
        replies: list[tuple[Verdict, bool]] = []
        try:
            with self._pool.worker(fresh) as worker:
                worker.ask(
                    request.verifier, "one", [item], role, lambda at, verdict, late: replies.append((verdict, late))
                )
        except WorkerBroken as error:
            self._broken(request)
            return Verdict(None, error.status, str(error)), True
        except NoWorker as error:
            return self._unavailable(request, error), False
        return replies[0]

    def _resolved(self, request: _Request, place: int, verdict: Verdict) -> Verdict:
        """Whose doing it was: judged again alone, it must come back while what is known to be judged still is."""
        started = time.monotonic()
        again, suspect = self._alone(request, request.items[place], request.role, fresh=True)
        if not suspect:
            return again
        assert self._known is not None
        if self._last_good < started:
            item, role, _ = self._known
            known, stuck = self._alone(request, item, role, fresh=True)
            if stuck or known.score is None:
                return fault(f"{verdict.reason}; nor does the verifier judge what it judged before: {known.reason}")
        lowest = RANGES[request.role][0]
        return Verdict(lowest, again.status, f"{again.reason}, twice, while other responses are judged")

    def _settle(self, request: _Request, place: int, verdict: Verdict) -> None:
        request.found[place] = verdict
        broke = verdict.status in ("timeout", "crash")  # no sign of a sound verifier, nor of an unsound one
        self._record(request, None if broke else verdict.status == "fault", verdict.reason)
        if verdict.score is not None and not broke:
            self._last_good = time.monotonic()
            if self._known is None or verdict.score > self._known[2]:
                self._known = (request.items[place], request.role, verdict.score)

    def _record(self, request: _Request, failed: bool | None, why: str) -> None:
        request.count("opened", self._breaker.record(failed, why))

    def _broken(self, request: _Request) -> None:
        request.count("restarts")
        hanging = left_alive(self._left)
        if hanging >= MOST_LEFT:
            request.count("opened", self._breaker.trip(f"{hanging} of its threads hang"))

    def _unavailable(self, request: _Request, error: NoWorker) -> Verdict:
        request.count("opened", self._breaker.trip(str(error)))
        return fault(f"the verifier cannot be asked: {error}")

    def _log_batch(self, failed: str) -> None:
        if failed:
            LOG.warning("verifier %s: a batch failed (%s): it is judged one by one", self._name, failed)


def run_here(coroutine: object) -> object:
    """Run a coroutine to its end, be it that a loop runs in this thread already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()  # type: ignore[arg-type]
