"""Test sets kept under their hashes, so that jobs can name them: the least recently used go when they are too many."""

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
    """A job names a test set that is not here; `name` is its hash."""

    def __init__(self, name: str, kept_bytes: int) -> None:
        super().__init__(
            f"tests_ref {name[:80]!r}: no such test set was put in, or it had to go for others "
            f"(the last used {kept_bytes / 2**20:g} MiB are kept): put it in again"
        )
        self.name = name


class KeptTests:
    """At most `kept_bytes` of test sets as they lie in memory, or the newest alone; to be shared between threads."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self.kept_bytes = kept_bytes
        self._held: OrderedDict[str, tuple[tuple[Mapping[str, Any], ...], int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, tests: Tests, entry_point: str | None = None) -> str:
        """Keep a set; its hash. Raises `JobError` for a test that is none."""
        for index, test in enumerate(tests):
            check_test(test, entry_point or "f", f"tests[{index}]")
        name = tests_hash(tests)
        with self._lock:
            if name not in self._held:
                size = _size(tests)
                self._held[name] = (tuple(tests), size)
                self._bytes += size
            self._held.move_to_end(name)
            while self._bytes > self.kept_bytes and len(self._held) > 1:
                _, (_, freed) = self._held.popitem(last=False)
                self._bytes -= freed
        return name

    def get(self, name: str) -> Tests:
        """The set under this hash, which counts as used. Raises `UnknownTests`."""
        with self._lock:
            if name not in self._held:
                raise UnknownTests(name, self.kept_bytes)
            self._held.move_to_end(name)
            return self._held[name][0]

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def forked(self) -> None:
        """In a forked copy of the process: whoever held the lock is not here."""
        self._lock = threading.Lock()


def _size(tests: Tests) -> int:
    """Bytes in memory; what is shared is counted once for every place."""
    total, left = 0, list[Any](tests)
    while left:
        value = left.pop()
        total += sys.getsizeof(value)
        if isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, list | tuple):
            left += value
    return total
