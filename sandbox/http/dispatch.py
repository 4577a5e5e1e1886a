"""Jobs of one call on their way over several servers: each is answered once, whatever becomes of a server."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qwq_rl.sandbox.http.replica import Answered, ConnectionBroken, Later, Line, Replica, judge
from qwq_rl.sandbox.interface import Deliver
from qwq_rl.sandbox.local import SandboxUnavailable
from qwq_rl.sandbox.protocol import LEVELS, CaseResult, Job, JobError, Result

_MOST_DEATHS = 3
"""So often the connection may break under a job before it is given up; each time it has fewer companions."""
_LARGEST_PIECE, _PIECE_BYTES = 64, 4 << 20
_PIECE_TESTS_BYTES = 16 << 20
"""Of the test sets that one request names: a server must be able to keep them all, and those of others."""
_FIRST_PATIENCE_S = 30.0


@dataclass(eq=False)
class Entry:
    """A job, for all places of the call that ask for it."""

    wire: Mapping[str, Any]
    size: int
    """Bytes on the way."""
    tests: Mapping[str, bytes]
    """The test set that it names, if it does."""
    job: Job
    places: list[int] = field(default_factory=list)
    deaths: int = 0
    why: str = ""
    """What a server said that could not judge it."""
    answered: bool = False


@dataclass(frozen=True)
class Terms:
    """What holds for all requests of a client."""

    token: str | None
    require: str
    patience_s: float
    deadline_s: float


class Dispatch:
    """One call: threads that take pieces of it to the servers."""

    def __init__(
        self, jobs: Sequence[Job], entries: Sequence[Entry], replicas: Sequence[Replica], terms: Terms, deliver: Deliver
    ) -> None:
        """`deliver` gets the place of each of `jobs` and its result, or why there is none."""
        self._jobs, self._replicas, self._terms, self._deliver = jobs, replicas, terms, deliver
        self._pending = deque(entries)
        self._left = len(entries)
        self._size = 1
        self._changed = threading.Condition()
        self._over = False
        self._lines: set[Line] = set()
        self._progress = time.monotonic()

    def start(self, parallel: int, room: threading.Semaphore) -> None:
        """Begin; at most `parallel` threads, each of which talks only while it has `room`."""
        self._size = max(1, min(_LARGEST_PIECE, -(-self._left // (2 * parallel))))
        for _ in range(min(parallel, -(-self._left // self._size))):
            threading.Thread(target=self._work, args=(room,), name="sandbox-client", daemon=True).start()

    def cancel(self) -> None:
        """Wait for no more results; the servers end what they have begun."""
        with self._changed:
            self._over = True
            lines = list(self._lines)
            self._changed.notify_all()
        for line in lines:
            line.cut()

    def _work(self, room: threading.Semaphore) -> None:
        try:
            while (piece := self._next()) is not None:
                with room:
                    self._try(piece)
        except Exception as error:
            self._fail(SandboxUnavailable(f"the sandbox's client failed: {error!r}"))
            raise

    def _next(self) -> list[Entry] | None:
        """The next piece; None where nothing is left."""
        with self._changed:
            while not self._pending:
                if self._over or not self._left:
                    return None
                self._changed.wait()
            if self._over:
                return None
            deaths = self._pending[0].deaths
            piece: list[Entry] = []
            size = 0
            tests: dict[str, int] = {}
            while self._pending and len(piece) < max(1, self._size >> 3 * deaths):
                if self._pending[0].deaths != deaths or (piece and size + self._pending[0].size > _PIECE_BYTES):
                    break
                tests |= {name: len(body) for name, body in self._pending[0].tests.items()}
                if piece and sum(tests.values()) > _PIECE_TESTS_BYTES:
                    break
                size += self._pending[0].size
                piece.append(self._pending.popleft())
            return piece

    def _try(self, piece: list[Entry]) -> None:
        """Take a piece to a server; what is not answered goes back."""
        replica = self._chosen(piece)
        if replica is None:
            self._put_back(piece)
            return
        try:
            self._talk(replica, piece)
            left = [entry for entry in piece if not entry.answered]
            if left:
                raise ConnectionBroken("the stream ended early")
            self._note(replica, len(piece))
        except Later as error:
            self._note(replica, len(piece), error)
        except ConnectionBroken as error:
            self._note(replica, len(piece), error)
            self._count_deaths(piece, error)
        except Answered as error:
            self._note(replica, len(piece))
            self._judge_refusal(replica, piece, error)
        finally:
            self._put_back(piece)

    def _talk(self, replica: Replica, piece: Sequence[Entry]) -> None:
        line = Line(replica.url, self._terms.token)
        try:
            with self._changed:
                if self._over:
                    return
                self._lines.add(line)
            tests = {name: body for entry in piece for name, body in entry.tests.items()}
            asked = {"require": self._terms.require, "deadline_s": self._terms.deadline_s}
            judge(line, [entry.wire for entry in piece], tests, asked, lambda told: self._take(piece, told))
        finally:
            with self._changed:
                self._lines.discard(line)
            line.close()

    def _chosen(self, piece: Sequence[Entry]) -> Replica | None:
        """The least busy server that is not resting; waits for one. None where patience or the call is over."""
        with self._changed:
            while not self._over:
                now = time.monotonic()
                awake = [replica for replica in self._replicas if replica.rests_until <= now]
                if awake:
                    chosen = min(awake, key=lambda replica: replica.jobs)
                    chosen.jobs += len(piece)
                    return chosen
                if now - self._progress > self._patience():
                    self._give_up(piece)
                    return None
                self._changed.wait(max(0.01, min(replica.rests_until for replica in self._replicas) - now))
        return None

    def _patience(self) -> float:
        known = any(replica.reached for replica in self._replicas)
        return self._terms.patience_s if known else min(_FIRST_PATIENCE_S, self._terms.patience_s)

    def _give_up(self, piece: Sequence[Entry]) -> None:
        """No server takes anything on, and has not for long."""
        said = "; ".join(f"{replica.url}: {replica.why}" for replica in self._replicas)
        if not any(replica.reached for replica in self._replicas):
            self._fail(SandboxUnavailable(f"no sandbox server answers: {said}"))
            return
        for entry in (*piece, *self._pending):
            self._answer(entry, _fault(entry.job, f"no sandbox server answers any more: {said}"))

    def _take(self, piece: Sequence[Entry], told: Mapping[str, Any]) -> None:
        """One line of an answer."""
        self._progress = time.monotonic()
        if not told:
            return
        try:
            entry = piece[told["index"]]
            result = Result.from_dict(told["result"]) if "result" in told else None
        except (LookupError, TypeError, ValueError) as error:
            raise ConnectionBroken(f"the server said what is no result: {error!r}") from error
        ran = result is not None and result.verdict != "sandbox_error"
        if result is not None and ran and LEVELS.index(result.isolation) < LEVELS.index(self._terms.require):
            self._fail(
                SandboxUnavailable(f"a program was run at {result.isolation}, and {self._terms.require} is required")
            )
        elif result is not None:
            self._answer(entry, result)
        elif told.get("late"):
            self._answer(entry, _fault(entry.job, f"it was not judged within {self._terms.deadline_s:g} s"))
        else:  # that server's own trouble: the job is asked again
            entry.why = str(told.get("error"))

    def _answer(self, entry: Entry, result: Result) -> None:
        with self._changed:
            if entry.answered or self._over:
                return
            entry.answered = True
            self._left -= 1
            if not self._left:
                self._changed.notify_all()
        for place in entry.places:
            self._deliver(place, replace(result, id=self._jobs[place].id))

    def _count_deaths(self, piece: Sequence[Entry], error: ConnectionBroken) -> None:
        for entry in piece:
            entry.deaths += not entry.answered
            if not entry.answered and entry.deaths >= _MOST_DEATHS:
                self._answer(entry, _fault(entry.job, f"{entry.deaths} times it got no answer: {entry.why or error}"))

    def _judge_refusal(self, replica: Replica, piece: Sequence[Entry], error: Answered) -> None:
        """A refusal that would come again: of these jobs, or of all."""
        text = f"{replica.url}: {error}"
        if error.status == 413 and len(piece) > 1:
            for entry in piece:
                entry.deaths = min(entry.deaths + 1, _MOST_DEATHS - 1)  # in smaller pieces
        elif error.status in (400, 409, 413, 422):
            self._fail(JobError(text))
        elif error.status >= 500:
            for entry in piece:
                if not entry.answered:
                    self._answer(entry, _fault(entry.job, text))
        else:
            self._fail(SandboxUnavailable(text))

    def _put_back(self, piece: Sequence[Entry]) -> None:
        with self._changed:
            self._pending.extend(entry for entry in piece if not entry.answered)
            self._changed.notify_all()

    def _note(self, replica: Replica, jobs: int, error: Later | ConnectionBroken | None = None) -> None:
        """How talking to a server went."""
        with self._changed:
            replica.jobs -= jobs
            if error is None:
                replica.worked()
            elif not self._over:
                later = error if isinstance(error, Later) else Later(str(error), reached=True)
                replica.reached |= later.reached
                replica.failed(str(error), later.wait_s)
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        """Nothing more will come."""
        with self._changed:
            if self._over:
                return
        self.cancel()
        self._deliver(-1, error)


def entry_of(job: Job, tests: Callable[[Sequence[Mapping[str, Any]]], tuple[str, bytes]]) -> Entry:
    """A job on its way; `tests` gives a test set's hash and its body. Raises `JobError` for what JSON cannot hold."""
    wire = job.to_dict()
    named: dict[str, bytes] = {}
    if not job.run_only:
        name, body = tests(job.tests)
        if len(body) > _WORTH_NAMING:
            del wire["tests"]
            wire["tests_ref"], named = name, {name: body}
    try:
        return Entry(wire, len(json.dumps(wire)), named, job)
    except ValueError:
        raise JobError("the job holds an integer that JSON texts have no room for") from None


_WORTH_NAMING = 1024
"""Bytes from which on a test set is sent once, by its hash."""


def _fault(job: Job, why: str) -> Result:
    """The result of a job that no server judged: never a score."""
    cases = tuple(CaseResult("sandbox_error", stderr=why[:500] + "\n") for _ in job.tests)
    return Result(job.id, "sandbox_error", 0, len(cases), "L0", cases, events=(why[:500],))
