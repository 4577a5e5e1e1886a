"""What stands behind a server's routes: the sandbox, its proof, what is under way, and what is counted."""

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
HEARTBEAT_S = 10.0
"""An empty line so often while no result comes: proxies keep the connection, clients know that the server lives."""
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Answer = tuple[int, "Result | BaseException"]


class Service:
    """One sandbox that many requests share; for one event loop."""

    def __init__(self, sandbox: LocalSandbox, floor: str, bounds: Bounds) -> None:
        """`floor` is the isolation that the sandbox was made to require."""
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
        self._proven = self._begun = time.monotonic()
        self._why_not = "the isolation is not proven yet"

    async def prove(self) -> None:
        """Have the sandbox show that it lives and what it reaches. A fork server that died is replaced."""
        try:
            self.isolation = await asyncio.to_thread(lambda: self.sandbox.isolation)
            self._proven, self._why_not = time.monotonic(), ""
        except SandboxUnavailable as error:
            self._why_not = str(error)

    async def keep_proving(self) -> None:
        """Prove again and again."""
        while True:
            await asyncio.sleep(PROVE_EVERY_S)
            await self.prove()

    def why_not_ready(self) -> str:
        """Why no jobs should be sent here; empty where they should."""
        if self.draining:
            return "the server is ending"
        age = time.monotonic() - self._proven
        stale = f"the sandbox has not answered for {age:.0f} s" if age > _PROOF_LASTS_S else ""
        return self._why_not or stale

    def is_alive(self) -> bool:
        """Whether a restart would not help."""
        return time.monotonic() - self._proven < _ALIVE_S

    def refuse_unless_ready(self, require: str | None = None) -> None:
        """Raise `Refused` for a request that asks too much or comes too late."""
        if self.draining:
            raise Refused(503, "the server is ending: ask another", retry_after=1)
        if self._why_not:
            raise Refused(503, self._why_not, retry_after=5)
        if require is not None and LEVELS.index(require) > LEVELS.index(self.isolation):
            raise Refused(412, f"this server reaches isolation {self.isolation}, and {require} is required")

    async def begin(self, jobs: Sequence[Job], visit: Visit, deadline_s: float) -> RequestJobs:
        """Have jobs judged. Raises `JobError` and `SandboxUnavailable` as the sandbox does."""
        batch = RequestJobs(self, visit, len(jobs), deadline_s)
        batch.ticket = await asyncio.to_thread(self.sandbox.submit, jobs, batch.deliver)
        return batch

    def count(self, answer: Result | BaseException, seconds: float) -> None:
        """Take note of what came of a job."""
        self.seconds.add(seconds)
        self.verdicts.add(answer.verdict if isinstance(answer, Result) else "none")
        for event in answer.events if isinstance(answer, Result) else ():
            if event.startswith("attempt: "):
                self.attempts.add(event.removeprefix("attempt: "))

    def state(self) -> dict[str, object]:
        """What health checks and clients are told."""
        return {
            "isolation": self.isolation,
            "floor": self.floor,
            "slots": self.sandbox.slots,
            "queued_jobs": self.admission.queued_jobs,
            "languages": self.languages,
        }

    def metrics(self) -> str:
        """All figures, in Prometheus' text format."""
        load, one, used = self.sandbox.load, prometheus.sample, resource.getrusage(resource.RUSAGE_SELF)
        levels = [one("qwq_sandbox_isolation", float(level == self.isolation), {"level": level}) for level in LEVELS]
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
            ("cpu_seconds_total", "CPU of the server, programs not included.", used.ru_utime + used.ru_stime),
        ]
        gauges = [
            ("queued_jobs", "Jobs taken on and not answered.", self.admission.queued_jobs),
            ("waiting_jobs", "Of these, jobs none of whose cases was started.", load.waiting_jobs),
            ("running_cases", "Cases under way.", load.running_cases),
            ("slots", "Cases that run at once.", self.sandbox.slots),
            ("held_bytes", "Request bodies held.", self.admission.held_bytes),
            ("ready", "Whether it takes jobs.", float(not self.why_not_ready())),
            ("open_files", "File descriptors of the server.", len(os.listdir("/dev/fd"))),
            ("uptime_seconds", "Since the start.", time.monotonic() - self._begun),
        ]
        families = [
            *(
                prometheus.family(f"qwq_sandbox_{n}", "counter", h, c.samples(f"qwq_sandbox_{n}"))
                for n, h, c in counted
            ),
            *(
                prometheus.family(f"qwq_sandbox_{n}", "counter", h, [one(f"qwq_sandbox_{n}", value)])
                for n, h, value in totals
            ),
            *(
                prometheus.family(f"qwq_sandbox_{n}", "gauge", h, [one(f"qwq_sandbox_{n}", value)])
                for n, h, value in gauges
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
    """Jobs of one request and their answers as they come."""

    def __init__(self, service: Service, visit: Visit, jobs: int, deadline_s: float) -> None:
        """Made by `Service.begin`."""
        self.ticket: Any = None
        self._service, self._visit = service, visit
        self._left = set(range(jobs))
        self._begun = time.monotonic()
        self._deadline = self._begun + deadline_s
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Answer | None] = asyncio.Queue()

    def deliver(self, index: int, answer: Result | BaseException) -> None:
        """Called by the sandbox's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, (index, answer))

    async def answers(self, receive: Receive) -> AsyncGenerator[list[Answer], None]:
        """Answers as they come, several at a time; an empty list as a heartbeat.

        Ends early where the client leaves. What is left at the deadline gets `TimeoutError`. What is not answered at
        the end, however that comes about, is cancelled.
        """
        watcher = asyncio.create_task(self._notice_leaving(receive))
        try:
            while self._left:
                found = await self._some()
                if found is None:
                    return
                for index, answer in found:
                    self._left.discard(index)
                    self._visit.answer_job()
                    self._service.count(answer, time.monotonic() - self._begun)
                yield found
        finally:
            watcher.cancel()
            self._cancel()
            self._visit.close()

    async def _some(self) -> list[Answer] | None:
        """What has arrived, waiting a while for it; None where the client has left."""
        patience = min(HEARTBEAT_S, self._deadline - time.monotonic())
        try:
            found = [await asyncio.wait_for(self._arrived.get(), max(0.0, patience))]
        except TimeoutError:
            if time.monotonic() < self._deadline:
                return []
            self._cancel()
            return [(index, TimeoutError("the deadline passed")) for index in sorted(self._left)]
        while not self._arrived.empty():
            found.append(self._arrived.get_nowait())
        if None in found:
            return None
        return [answer for answer in found if answer is not None and answer[0] in self._left]

    def _cancel(self) -> None:
        if self._left and self.ticket is not None:
            self._service.cancelled_jobs += len(self._left)
            self.ticket.cancel()
            self.ticket = None

    async def _notice_leaving(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._arrived.put_nowait(None)
