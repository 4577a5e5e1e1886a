"""The state behind a server's routes: the sandbox, the check of its isolation, the running requests, the counters."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from qwq_rl.sandbox.http import prometheus
from qwq_rl.sandbox.http.admission import Admission, Bounds, Refused, Visit
from qwq_rl.sandbox.local import LocalSandbox, SandboxUnavailable
from qwq_rl.sandbox.protocol import LEVELS, Job, Result

PROVE_EVERY_S = 10.0
_PROOF_LASTS_S, _ALIVE_S = 45.0, 300.0
"""Seconds without an answer of the sandbox after which the server is not ready, and after which it needs a restart."""
HEARTBEAT_S = 10.0
"""Seconds between empty lines while no result comes: proxies keep the connection, clients see that the server lives."""
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Answer = tuple[int, "Result | BaseException"]


class Service:
    """One sandbox that many requests share. Not thread-safe: for one event loop."""

    def __init__(self, sandbox: LocalSandbox, floor: str, bounds: Bounds) -> None:
        """`floor` is the isolation that the sandbox requires."""
        self.sandbox, self.floor = sandbox, floor
        self.admission = Admission(bounds)
        self.draining = False
        self.isolation = "L0"
        self.requests = prometheus.Counter(("route", "status"))
        self.verdicts = prometheus.Counter(("verdict",))
        self.attempts = prometheus.Counter(("kind",))
        self.seconds = prometheus.Histogram()
        self.cancelled_jobs = 0
        self.languages: dict[str, str] = {}
        self._proven_at = self._started_at = time.monotonic()
        self._why_not = "the isolation is not proven yet"

    async def prove(self) -> None:
        """Check that the sandbox answers, and which isolation it reaches. A fork server that died is replaced."""
        try:
            # in a thread: it waits for the engine, and may start a fork server
            self.isolation = await asyncio.to_thread(lambda: self.sandbox.isolation)
            self._proven_at, self._why_not = time.monotonic(), ""
        except SandboxUnavailable as error:
            self._why_not = str(error)

    async def keep_proving(self) -> None:
        """Repeat `prove` every ten seconds, for ever."""
        while True:
            await asyncio.sleep(PROVE_EVERY_S)
            await self.prove()

    def why_not_ready(self) -> str:
        """Why no jobs should be sent here; an empty string if they may."""
        if self.draining:
            return "the server is ending"
        age = time.monotonic() - self._proven_at
        stale = f"the sandbox has not answered for {age:.0f} s" if age > _PROOF_LASTS_S else ""
        return self._why_not or stale

    def is_alive(self) -> bool:
        """False if the sandbox has not answered for so long that the server should be restarted."""
        return time.monotonic() - self._proven_at < _ALIVE_S

    def refuse_unless_ready(self, require: str | None = None) -> None:
        """Raise `Refused` if the server is not ready or does not reach the required isolation."""
        if self.draining:
            raise Refused(503, "the server is ending: ask another", retry_after=1)
        if self._why_not:
            raise Refused(503, self._why_not, retry_after=5)
        if require is not None and LEVELS.index(require) > LEVELS.index(self.isolation):
            raise Refused(412, f"this server reaches isolation {self.isolation}, and {require} is required")

    async def begin(self, jobs: Sequence[Job], visit: Visit, deadline_s: float) -> RequestJobs:
        """Start judging jobs. Raises `JobError` and `SandboxUnavailable` as the sandbox does."""
        batch = RequestJobs(self, visit, len(jobs), deadline_s)
        batch.ticket = await asyncio.to_thread(self.sandbox.submit, jobs, batch.deliver)
        return batch

    def count(self, answer: Result | BaseException, seconds: float) -> None:
        """Count the answer to a job."""
        self.seconds.add(seconds)
        self.verdicts.add(answer.verdict if isinstance(answer, Result) else "none")
        for event in answer.events if isinstance(answer, Result) else ():
            if event.startswith("attempt: "):
                self.attempts.add(event.removeprefix("attempt: "))

    def state(self) -> dict[str, object]:
        """The state that health checks and clients get."""
        return {
            "isolation": self.isolation,
            "floor": self.floor,
            "slots": self.sandbox.slots,
            "queued_jobs": self.admission.queued_jobs,
            "languages": self.languages,
        }

    def metrics(self) -> str:
        """All counters and gauges, in Prometheus' text format."""
        load, sample, usage = self.sandbox.load, prometheus.sample, resource.getrusage(resource.RUSAGE_SELF)
        levels = [sample("qwq_sandbox_isolation", float(level == self.isolation), {"level": level}) for level in LEVELS]
        counted = [
            ("requests_total", "Requests answered.", self.requests),
            ("jobs_total", "Jobs answered, by verdict; `none` where there is no result.", self.verdicts),
            ("attempts_total", "Jobs in which a program tried to get out, by kind of attempt.", self.attempts),
        ]
        totals = [
            ("cases_total", "Cases run.", load.judged_cases),
            ("cached_jobs_total", "Jobs answered from memory.", load.cached_jobs),
            ("coalesced_jobs_total", "Jobs that joined an equal one under way.", load.coalesced_jobs),
            ("cancelled_jobs_total", "Jobs given up: the client left or the deadline passed.", self.cancelled_jobs),
            ("fork_servers_died_total", "Sandbox processes that died and were replaced.", load.fork_servers_died),
            ("fork_servers_retired_total", "Sandbox processes replaced after many cases.", load.fork_servers_retired),
            ("cpu_seconds_total", "CPU of the server, programs not included.", usage.ru_utime + usage.ru_stime),
        ]
        gauges = [
            ("queued_jobs", "Jobs taken on and not answered.", self.admission.queued_jobs),
            ("waiting_jobs", "Of these, jobs none of whose cases was started.", load.waiting_jobs),
            ("running_cases", "Cases under way.", load.running_cases),
            ("slots", "Cases that run at once.", self.sandbox.slots),
            ("held_bytes", "Request bodies held.", self.admission.held_bytes),
            ("ready", "Whether it takes jobs.", float(not self.why_not_ready())),
            ("open_files", "File descriptors of the server.", len(os.listdir("/dev/fd"))),
            ("uptime_seconds", "Since the start.", time.monotonic() - self._started_at),
        ]
        families = [
            *(
                prometheus.family(f"qwq_sandbox_{name}", "counter", meaning, counter.samples(f"qwq_sandbox_{name}"))
                for name, meaning, counter in counted
            ),
            *(
                prometheus.family(f"qwq_sandbox_{name}", "counter", meaning, [sample(f"qwq_sandbox_{name}", value)])
                for name, meaning, value in totals
            ),
            *(
                prometheus.family(f"qwq_sandbox_{name}", "gauge", meaning, [sample(f"qwq_sandbox_{name}", value)])
                for name, meaning, value in gauges
            ),
            prometheus.family("qwq_sandbox_isolation", "gauge", "1 at the level that was proven.", levels),
            prometheus.family(
                "qwq_sandbox_job_seconds",
                "histogram",
                "From taking a job on to its answer.",
                self.seconds.samples("qwq_sandbox_job_seconds"),
            ),
        ]
        return "".join(families)


class RequestJobs:
    """The jobs of one request, and their answers as they come."""

    def __init__(self, service: Service, visit: Visit, jobs: int, deadline_s: float) -> None:
        """Made by `Service.begin`."""
        self.ticket: Any = None
        self._service, self._visit = service, visit
        self._unanswered = set(range(jobs))
        self._started_at = time.monotonic()
        self._deadline = self._started_at + deadline_s
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Answer | None] = asyncio.Queue()

    def deliver(self, index: int, answer: Result | BaseException) -> None:
        """Take an answer; called by the sandbox's thread."""
        with contextlib.suppress(RuntimeError):  # the event loop is closed, so nobody waits for answers
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, (index, answer))

    async def answers(self, receive: Receive) -> AsyncGenerator[list[Answer], None]:
        """Yield answers as they come, several at a time; an empty list is a heartbeat.

        It ends early if the client closes the connection. At the deadline the remaining jobs get `TimeoutError`. When
        it ends, for whatever reason, jobs without an answer are cancelled.
        """
        watcher = asyncio.create_task(self._watch_disconnect(receive))
        try:
            while self._unanswered:
                arrived = await self._next_answers()
                if arrived is None:
                    return
                for index, answer in arrived:
                    self._unanswered.discard(index)
                    self._visit.answer_job()
                    self._service.count(answer, time.monotonic() - self._started_at)
                yield arrived
        finally:
            watcher.cancel()
            self._cancel()
            self._visit.close()

    async def _next_answers(self) -> list[Answer] | None:
        """Wait a while for answers; all that have arrived, or None if the client closed the connection."""
        patience = min(HEARTBEAT_S, self._deadline - time.monotonic())
        try:
            arrived = [await asyncio.wait_for(self._arrived.get(), max(0.0, patience))]
        except TimeoutError:
            if time.monotonic() < self._deadline:
                return []
            self._cancel()
            return [(index, TimeoutError("the deadline passed")) for index in sorted(self._unanswered)]
        while not self._arrived.empty():
            arrived.append(self._arrived.get_nowait())
        if None in arrived:
            return None
        # answers to jobs that were given up at the deadline no longer count
        return [answer for answer in arrived if answer is not None and answer[0] in self._unanswered]

    def _cancel(self) -> None:
        if self._unanswered and self.ticket is not None:
            self._service.cancelled_jobs += len(self._unanswered)
            self.ticket.cancel()
            self.ticket = None

    async def _watch_disconnect(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._arrived.put_nowait(None)  # wakes `answers`, which then ends
