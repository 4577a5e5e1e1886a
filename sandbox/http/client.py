"""The sandbox on other machines: the same calls as `LocalSandbox`, spread over servers (docs/sandbox_server.md)."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from qwq_rl.sandbox.http.dispatch import Dispatch, Entry, Terms, entry_of
from qwq_rl.sandbox.http.replica import Answered, ConnectionBroken, Later, Line, Replica
from qwq_rl.sandbox.interface import Deliver, SandboxInterface
from qwq_rl.sandbox.local import SandboxUnavailable
from qwq_rl.sandbox.protocol import LEVELS, Job, JobError, tests_hash
from qwq_rl.sandbox.stored_tests import KeptTests

_PARALLEL, _MOST_PARALLEL = 8, 64
_STATE_LASTS_S = 30.0


class RemoteSandbox(SandboxInterface):
    """Judges jobs with one or more servers; to be shared between threads.

    A server that dies, is full or is ending costs time, never a verdict: its jobs go to the others, each is answered
    once, and a job is given up as `sandbox_error` only when the connection broke three times under it, when no server
    answered for `patience_s`, or when `deadline_s` passed. Judging raises `JobError` for a job that a server refuses as
    malformed or too large, and `SandboxUnavailable` where no server was ever reached, the token is wrong, or the
    isolation too low. Servers get a test set with the first job that needs it.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        token: str | None = None,
        require: str = "L1",
        parallel: int | None = None,
        patience_s: float = 120.0,
        deadline_s: float = 1800.0,
    ) -> None:
        """At most `parallel` requests at once (default: 8 a URL, 64 in all), each of at most `deadline_s`.

        Servers below the isolation `require` are refused. Raises `ValueError` for what is no URL.
        """
        if require not in LEVELS:
            raise ValueError(f"require is {require!r}: give one of {', '.join(LEVELS)}")
        if not urls:
            raise ValueError("urls is empty: give at least one")
        self._replicas = [Replica(_checked_url(url)) for url in dict.fromkeys(urls)]
        self._terms = Terms(token, require, patience_s, deadline_s)
        self._parallel = parallel or min(_MOST_PARALLEL, _PARALLEL * len(self._replicas))
        self._room = threading.Semaphore(self._parallel)
        super().__init__(KeptTests())
        self._state: tuple[float, list[dict[str, Any]]] | None = None
        self._calls: weakref.WeakSet[Dispatch] = weakref.WeakSet()
        _living.add(self)

    def submit(self, jobs: Sequence[Job], deliver: Deliver) -> Dispatch:
        """Have jobs judged and return at once; `deliver` gets each job's place and result, from several threads.

        Where nothing more will come, it gets the place -1 and the reason.
        """
        entries = self._entries(jobs)
        call = Dispatch(jobs, entries, self._replicas, self._terms, deliver)
        self._calls.add(call)
        if entries:
            call.start(self._parallel, self._room)
        return call

    @property
    def isolation(self) -> str:
        """The lowest level of the servers that answer. Raises `SandboxUnavailable` where none does."""
        return min(str(state["isolation"]) for state in self._states())

    def languages(self) -> dict[str, str]:
        """The languages that all servers have that answer, with the versions of one of them."""
        states = [dict(state["languages"]) for state in self._states()]
        return {name: version for name, version in states[0].items() if all(name in state for state in states)}

    def close(self) -> None:
        """Cancel what is under way."""
        for call in list(self._calls):
            call.cancel()

    def __enter__(self) -> RemoteSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _states(self) -> list[dict[str, Any]]:
        """What the servers that are ready say of themselves."""
        if self._state is not None and time.monotonic() - self._state[0] < _STATE_LASTS_S:
            return self._state[1]
        found, silent = [], []
        for replica in self._replicas:
            try:
                line = Line(replica.url, self._terms.token)
                try:
                    found.append(line.ask("GET", "/readyz"))
                finally:
                    line.close()
            except (Later, ConnectionBroken, Answered) as error:
                silent.append(f"{replica.url}: {error}")
        if not found:
            raise SandboxUnavailable(f"no sandbox server is ready: {'; '.join(silent)}")
        self._state = (time.monotonic(), found)
        return found

    def _entries(self, jobs: Sequence[Job]) -> list[Entry]:
        """One entry for all jobs that cannot have different results."""
        bodies: dict[int, tuple[str, bytes]] = {}
        entries: dict[str, Entry] = {}

        def named(tests: Sequence[Mapping[str, Any]]) -> tuple[str, bytes]:
            if id(tests) not in bodies:
                bodies[id(tests)] = (tests_hash(tests), _json(tests))
            return bodies[id(tests)]

        for place, job in enumerate(jobs):
            resolved = self._resolved(job)
            told = (job.code, job.language, job.entry_point, job.compare, job.mode, job.limits, job.checker)
            own = place if job.run_only else named(resolved.tests)[0]
            key = hashlib.sha256(repr((told, own)).encode("utf-8", "surrogatepass")).hexdigest()
            if key not in entries:
                entries[key] = entry_of(resolved, named)
            entries[key].places.append(place)
        return list(entries.values())

    def _resolved(self, job: Job) -> Job:
        if job.tests_ref is None:
            return job
        return replace(job, tests=self._test_sets.get(job.tests_ref), tests_ref=None)

    def _forget(self) -> None:
        """In a forked copy of the process: threads and locks belong to the original."""
        self._room = threading.Semaphore(self._parallel)
        self._calls = weakref.WeakSet()
        self._test_sets.forked()
        for replica in self._replicas:
            replica.jobs = 0


def _json(tests: Sequence[Mapping[str, Any]]) -> bytes:
    try:
        return json.dumps(list(tests)).encode()
    except ValueError:
        raise JobError("tests hold an integer that JSON texts have no room for") from None


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    try:
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    if not known or parts.query or parts.username:
        raise ValueError(f"url {url!r}: give http://HOST:PORT or https://HOST:PORT, the token apart")
    return url.rstrip("/")


_living: weakref.WeakSet[RemoteSandbox] = weakref.WeakSet()


def _after_fork() -> None:
    for sandbox in list(_living):
        sandbox._forget()


os.register_at_fork(after_in_child=_after_fork)
