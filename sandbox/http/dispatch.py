"""Sends the jobs of one call to several servers. Each job is answered once, even if a server fails."""

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

_MAX_DEATHS = 3
"""A job is given up after its connection broke so many times. Each time it is sent with fewer other jobs."""
_LARGEST_PIECE, _PIECE_BYTES = 64, 4 << 20
_PIECE_TESTS_BYTES = 16 << 20
"""Bytes of the test sets that one request refers to: a server must be able to keep them all, and those of others."""
_FIRST_PATIENCE_S = 30.0
"""Seconds to wait for a server if none was ever reached: the URLs are probably wrong."""


@dataclass(eq=False)
class Entry:
    """A job, and the indices of all equal jobs of the call (`places`)."""

    wire: Mapping[str, Any]
    size: int
    """Bytes of its JSON."""
    tests: Mapping[str, bytes]
    """The body of the test set that it refers to by hash; empty if it carries its tests."""
    job: Job
    places: list[int] = field(default_factory=list)
    deaths: int = 0
    why: str = ""
    """The error of a server that could not judge it."""
    answered: bool = False


@dataclass(frozen=True)
class Terms:
    """The settings for all requests of a client."""

    token: str | None
    require: str
    patience_s: float
    deadline_s: float


class Dispatch:
    """One call. Its threads take pieces of the jobs and send each piece to a server."""

    def __init__(
        self, jobs: Sequence[Job], entries: Sequence[Entry], replicas: Sequence[Replica], terms: Terms, deliver: Deliver
    ) -> None:
        """`deliver` gets the index of each job and its result, or an exception."""
        self._jobs, self._replicas, self._terms, self._deliver = jobs, replicas, terms, deliver
        self._pending = deque(entries)
        self._unanswered = len(entries)
        self._piece_jobs = 1
        self._changed = threading.Condition()
        self._over = False
        self._lines: set[Line] = set()
        self._last_line_at = time.monotonic()

    def start(self, parallel: int, room: threading.Semaphore) -> None:
        """Start at most `parallel` threads. Each sends only while it holds `room`, which all calls share."""
        # about two pieces per thread, so that a fast server can take more of them than a slow one
        self._piece_jobs = max(1, min(_LARGEST_PIECE, -(-self._unanswered // (2 * parallel))))
        for _ in range(min(parallel, -(-self._unanswered // self._piece_jobs))):
            threading.Thread(target=self._work, args=(room,), name="sandbox-client", daemon=True).start()

    def cancel(self) -> None:
        """Want no more results; the servers end what they have begun."""
        with self._changed:
            self._over = True
            lines = list(self._lines)
            self._changed.notify_all()
        for line in lines:
            line.cut()

    def _work(self, room: threading.Semaphore) -> None:
        try:
            while (piece := self._next_piece()) is not None:
                with room:
                    self._send_piece(piece)
        except Exception as error:
            self._fail(SandboxUnavailable(f"the sandbox's client failed: {error!r}"))
            raise

    def _next_piece(self) -> list[Entry] | None:
        """Take the next piece of jobs; None if nothing is left."""
        with self._changed:
            while not self._pending:
                if self._over or not self._unanswered:
                    return None
                self._changed.wait()
            if self._over:
                return None
            # jobs with equally many deaths; after each death an eighth as many, to isolate a job that breaks servers
            deaths = self._pending[0].deaths
            piece: list[Entry] = []
            size = 0
            test_sizes: dict[str, int] = {}
            while self._pending and len(piece) < max(1, self._piece_jobs >> 3 * deaths):
                if self._pending[0].deaths != deaths or (piece and size + self._pending[0].size > _PIECE_BYTES):
                    break
                test_sizes |= {name: len(body) for name, body in self._pending[0].tests.items()}
                if piece and sum(test_sizes.values()) > _PIECE_TESTS_BYTES:
                    break
                size += self._pending[0].size
                piece.append(self._pending.popleft())
            return piece

    def _send_piece(self, piece: list[Entry]) -> None:
        """Send a piece to a server; jobs without an answer go back to the queue."""
        replica = self._choose_replica(piece)
        if replica is None:
            self._put_back(piece)
            return
        try:
            self._talk(replica, piece)
            unanswered = [entry for entry in piece if not entry.answered]
            if unanswered:
                raise ConnectionBroken("the stream ended early")
            self._record(replica, len(piece))
        except Later as error:
            self._record(replica, len(piece), error)
        except ConnectionBroken as error:
            self._record(replica, len(piece), error)
            self._count_deaths(piece, error)
        except Answered as error:
            self._record(replica, len(piece))
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
            terms = {"require": self._terms.require, "deadline_s": self._terms.deadline_s}
            judge(
                line, [entry.wire for entry in piece], tests, terms, lambda message: self._handle_line(piece, message)
            )
        finally:
            with self._changed:
                self._lines.discard(line)
            line.close()

    def _choose_replica(self, piece: Sequence[Entry]) -> Replica | None:
        """Wait for the least busy server that is not resting; None if the wait is too long or the call is over."""
        with self._changed:
            while not self._over:
                now = time.monotonic()
                awake = [replica for replica in self._replicas if replica.rests_until <= now]
                if awake:
                    chosen = min(awake, key=lambda replica: replica.jobs)
                    chosen.jobs += len(piece)
                    return chosen
                if now - self._last_line_at > self._patience():
                    self._give_up(piece)
                    return None
                self._changed.wait(max(0.01, min(replica.rests_until for replica in self._replicas) - now))
        return None

    def _patience(self) -> float:
        any_reached = any(replica.reached for replica in self._replicas)
        return self._terms.patience_s if any_reached else min(_FIRST_PATIENCE_S, self._terms.patience_s)

    def _give_up(self, piece: Sequence[Entry]) -> None:
        """No server has answered for too long: end the call, or its open jobs."""
        reasons = "; ".join(f"{replica.url}: {replica.why}" for replica in self._replicas)
        if not any(replica.reached for replica in self._replicas):
            self._fail(SandboxUnavailable(f"no sandbox server answers: {reasons}"))
            return
        for entry in (*piece, *self._pending):
            self._answer(entry, _fault(entry.job, f"no sandbox server answers any more: {reasons}"))

    def _handle_line(self, piece: Sequence[Entry], message: Mapping[str, Any]) -> None:
        """Handle one line of an answer."""
        self._last_line_at = time.monotonic()
        if not message:
            return  # a heartbeat
        try:
            entry = piece[message["index"]]
            result = Result.from_dict(message["result"]) if "result" in message else None
        except (LookupError, TypeError, ValueError) as error:
            raise ConnectionBroken(f"the server said what is no result: {error!r}") from error
        was_judged = result is not None and result.verdict != "sandbox_error"
        if result is not None and was_judged and LEVELS.index(result.isolation) < LEVELS.index(self._terms.require):
            self._fail(
                SandboxUnavailable(f"a program was run at {result.isolation}, and {self._terms.require} is required")
            )
        elif result is not None:
            self._answer(entry, result)
        elif message.get("late"):
            self._answer(entry, _fault(entry.job, f"it was not judged within {self._terms.deadline_s:g} s"))
        else:  # a problem of that server: the job is sent again
            entry.why = str(message.get("error"))

    def _answer(self, entry: Entry, result: Result) -> None:
        with self._changed:
            if entry.answered or self._over:
                return
            entry.answered = True
            self._unanswered -= 1
            if not self._unanswered:
                self._changed.notify_all()
        for index in entry.places:
            self._deliver(index, replace(result, id=self._jobs[index].id))

    def _count_deaths(self, piece: Sequence[Entry], error: ConnectionBroken) -> None:
        for entry in piece:
            entry.deaths += not entry.answered
            if not entry.answered and entry.deaths >= _MAX_DEATHS:
                self._answer(entry, _fault(entry.job, f"{entry.deaths} times it got no answer: {entry.why or error}"))

    def _judge_refusal(self, replica: Replica, piece: Sequence[Entry], error: Answered) -> None:
        """Handle a refusal that will not go away: it concerns these jobs, or all of the call."""
        text = f"{replica.url}: {error}"
        if error.status == 413 and len(piece) > 1:
            for entry in piece:
                entry.deaths = min(entry.deaths + 1, _MAX_DEATHS - 1)  # sent again in smaller pieces
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

    def _record(self, replica: Replica, jobs: int, error: Later | ConnectionBroken | None = None) -> None:
        """Record how a request to a server went."""
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
        """End the call with an error."""
        with self._changed:
            if self._over:
                return
        self.cancel()
        self._deliver(-1, error)


def entry_of(job: Job, tests: Callable[[Sequence[Mapping[str, Any]]], tuple[str, bytes]]) -> Entry:
    """A job as an entry; `tests` returns a test set's hash and body. Raises `JobError` for what JSON cannot hold."""
    wire = job.to_dict()
    named: dict[str, bytes] = {}
    if not job.run_only:
        name, body = tests(job.tests)
        if len(body) > _MIN_NAMED_BYTES:
            del wire["tests"]
            wire["tests_ref"], named = name, {name: body}
    try:
        return Entry(wire, len(json.dumps(wire)), named, job)
    except ValueError:
        raise JobError("the job holds an integer that JSON texts have no room for") from None


_MIN_NAMED_BYTES = 1024
"""A test set of more bytes is sent to a server only once; jobs refer to it by its hash."""


def _fault(job: Job, reason: str) -> Result:
    """The result of a job that no server judged: `sandbox_error`, never a score."""
    cases = tuple(CaseResult("sandbox_error", stderr=reason[:500] + "\n") for _ in job.tests)
    return Result(job.id, "sandbox_error", 0, len(cases), "L0", cases, events=(reason[:500],))
