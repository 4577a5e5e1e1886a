"""Test sets kept under their hashes, so that jobs can refer to them. When they take too much memory, the least recently
used ones are dropped.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from qwq_rl.sandbox.protocol import JobError, check_test, tests_hash

KEPT_BYTES = 256 << 20
Tests = Sequence[Mapping[str, Any]]


class UnknownTests(JobError):
    """A job refers to a test set that is not kept here; `name` is its hash."""

    def __init__(self, name: str, kept_bytes: int) -> None:
        super().__init__(
            f"tests_ref {name[:80]!r}: no such test set was put in, or it had to go for others "
            f"(the last used {kept_bytes / 2**20:g} MiB are kept): put it in again"
        )
        self.name = name


class KeptTests:
    """Keeps test sets of at most `kept_bytes` in memory, or only the newest if it is larger. Threads may share it."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self.kept_bytes = kept_bytes
        self._test_sets: OrderedDict[str, tuple[tuple[Mapping[str, Any], ...], int]] = OrderedDict()
        self._total_bytes = 0
        self._lock = threading.Lock()

    def put(self, tests: Tests, entry_point: str | None = None) -> str:
        """Keep a test set and return its hash. Raises `JobError` for a malformed test."""
        for index, test in enumerate(tests):
            # any name will do if none is given: the job that refers to these tests names its function
            check_test(test, entry_point or "f", f"tests[{index}]")
        name = tests_hash(tests)
        with self._lock:
            if name not in self._test_sets:
                size = _size(tests)
                self._test_sets[name] = (tuple(tests), size)
                self._total_bytes += size
            self._test_sets.move_to_end(name)
            while self._total_bytes > self.kept_bytes and len(self._test_sets) > 1:
                _, (_, freed) = self._test_sets.popitem(last=False)
                self._total_bytes -= freed
        return name

    def get(self, name: str) -> Tests:
        """The test set with this hash; this counts as a use. Raises `UnknownTests`."""
        with self._lock:
            if name not in self._test_sets:
                raise UnknownTests(name, self.kept_bytes)
            self._test_sets.move_to_end(name)
            return self._test_sets[name][0]

    def __contains__(self, name: str) -> bool:
        return name in self._test_sets

    def forked(self) -> None:
        """Call in a forked copy of the process: the thread that held the lock does not exist there."""
        self._lock = threading.Lock()


def _size(tests: Tests) -> int:
    """The size of tests in memory, in bytes. An object that occurs several times is counted each time."""
    total, pending = 0, list[Any](tests)
    while pending:
        value = pending.pop()
        total += sys.getsizeof(value)
        if isinstance(value, Mapping):
            pending += value.values()
        elif isinstance(value, list | tuple):
            pending += value
    return total
