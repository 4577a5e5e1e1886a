"""The client: the same calls as `LocalSandbox`, answered by one or more servers (docs/sandbox_server.md)."""

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

_PARALLEL, _MAX_PARALLEL = 8, 64
_STATE_LASTS_S = 30.0
"""Seconds for which the answers of the servers to `/readyz` are reused."""


class RemoteSandbox(SandboxInterface):
    """Judges jobs with one or more servers. Threads may share it.

    A server that dies, is full or is shutting down costs time, but no verdict: its jobs go to other servers, and each
    job is answered once. A job is given up as `sandbox_error` only if its connection broke three times, no server
    answered for `patience_s`, or `deadline_s` passed. Judging raises `JobError` for a job that a server refuses as
    malformed or too large. It raises `SandboxUnavailable` if no server was ever reached, the token is wrong, or the
    isolation is too low. A server gets a test set with the first job that needs it.
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
        """At most `parallel` requests run at once (default: 8 per URL, at most 64), each for at most `deadline_s`.

        Servers with less isolation than `require` are refused. Raises `ValueError` for a wrong URL.
        """
        if require not in LEVELS:
            raise ValueError(f"require is {require!r}: give one of {', '.join(LEVELS)}")
        if not urls:
            raise ValueError("urls is empty: give at least one")
        self._replicas = [Replica(_checked_url(url)) for url in dict.fromkeys(urls)]
        self._terms = Terms(token, require, patience_s, deadline_s)
        self._parallel = parallel or min(_MAX_PARALLEL, _PARALLEL * len(self._replicas))
        self._room = threading.Semaphore(self._parallel)
        super().__init__(KeptTests())
        self._state: tuple[float, list[dict[str, Any]]] | None = None
        self._calls: weakref.WeakSet[Dispatch] = weakref.WeakSet()
        _living.add(self)

    def submit(self, jobs: Sequence[Job], deliver: Deliver) -> Dispatch:
        """Start judging jobs and return at once; several threads call `deliver` with a job's index and its result.

        If no more results will come, it gets the index -1 and the exception that says why.
        """
        entries = self._entries(jobs)
        call = Dispatch(jobs, entries, self._replicas, self._terms, deliver)
        self._calls.add(call)
        if entries:
            call.start(self._parallel, self._room)
        return call

    @property
    def isolation(self) -> str:
        """The lowest isolation level of the servers that answer. Raises `SandboxUnavailable` if none does."""
        return min(str(state["isolation"]) for state in self._states())

    def languages(self) -> dict[str, str]:
        """The languages that all answering servers have, with the versions of one of them."""
        states = [dict(state["languages"]) for state in self._states()]
        return {name: version for name, version in states[0].items() if all(name in state for state in states)}

    def close(self) -> None:
        """Cancel all jobs that are not finished."""
        for call in list(self._calls):
            call.cancel()

    def __enter__(self) -> RemoteSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _states(self) -> list[dict[str, Any]]:
        """The states that ready servers report about themselves."""
        if self._state is not None and time.monotonic() - self._state[0] < _STATE_LASTS_S:
            return self._state[1]
        states, failures = [], []
        for replica in self._replicas:
            try:
                connection = Line(replica.url, self._terms.token)
                try:
                    states.append(connection.ask("GET", "/readyz"))
                finally:
                    connection.close()
            except (Later, ConnectionBroken, Answered) as error:
                failures.append(f"{replica.url}: {error}")
        if not states:
            raise SandboxUnavailable(f"no sandbox server is ready: {'; '.join(failures)}")
        self._state = (time.monotonic(), states)
        return states

    def _entries(self, jobs: Sequence[Job]) -> list[Entry]:
        """The jobs as entries; jobs that cannot have different results share one."""
        # by identity: jobs of one call often share a test set, which is then hashed and encoded only once
        bodies: dict[int, tuple[str, bytes]] = {}
        entries: dict[str, Entry] = {}

        def named(tests: Sequence[Mapping[str, Any]]) -> tuple[str, bytes]:
            if id(tests) not in bodies:
                bodies[id(tests)] = (tests_hash(tests), _json(tests))
            return bodies[id(tests)]

        for index, job in enumerate(jobs):
            resolved = self._resolved(job)
            content = (job.code, job.language, job.entry_point, job.compare, job.mode, job.limits, job.checker)
            # a program that is only run may give another result each time, so such jobs are never shared
            tests_key = index if job.run_only else named(resolved.tests)[0]
            key = hashlib.sha256(repr((content, tests_key)).encode("utf-8", "surrogatepass")).hexdigest()
            if key not in entries:
                entries[key] = entry_of(resolved, named)
            entries[key].places.append(index)
        return list(entries.values())

    def _resolved(self, job: Job) -> Job:
        if job.tests_ref is None:
            return job
        return replace(job, tests=self._test_sets.get(job.tests_ref), tests_ref=None)

    def _forget(self) -> None:
        """Called in a forked copy of the process, where threads and locks belong to the original."""
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
        is_valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        is_valid = False
    if not is_valid or parts.query or parts.username:
        raise ValueError(f"url {url!r}: give http://HOST:PORT or https://HOST:PORT, the token apart")
    return url.rstrip("/")


_living: weakref.WeakSet[RemoteSandbox] = weakref.WeakSet()


def _after_fork() -> None:
    for sandbox in list(_living):
        sandbox._forget()


os.register_at_fork(after_in_child=_after_fork)
