"""A cache of verdicts, for verifiers that declare that a verdict depends only on the answer and the reference."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import replace

from qwq_rl.verifiers.contract import Verdict
from qwq_rl.verifiers.runner.calls import Item, Role

MOST = 8192
"""Verdicts that a cache keeps."""
LONGEST = 4096
"""The most characters of an answer or a reference. Longer ones rarely occur twice and would fill the memory."""

Key = tuple[Role, str, str, str]
"""Role, answer, finish and reference (as JSON)."""


def key_of(item: Item, role: Role) -> Key | None:
    """What the verdict depends on; None if the reference is not JSON or if a text is too long to keep."""
    problem, response = item
    if len(response.answer) > LONGEST:
        return None
    try:
        reference = json.dumps(problem.get("reference"), sort_keys=True, ensure_ascii=False)
    except (TypeError, ValueError):
        return None
    return (role, response.answer, response.finish, reference) if len(reference) <= LONGEST else None


class VerdictCache:
    """The `most` verdicts that were asked for last. Verdicts without a score are never kept. Safe to use from any
    thread."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, Verdict] = OrderedDict()

    def get(self, key: Key) -> Verdict | None:
        """The verdict for `key`, or None. Its `seconds` are 0."""
        with self._lock:
            verdict = self._kept.get(key)
            if verdict is not None:
                self._kept.move_to_end(key)
            return verdict

    def put(self, key: Key, verdict: Verdict) -> None:
        """Keep a verdict of the verifier. A timeout or crash is not kept: the machine may have been the cause."""
        if verdict.score is None or verdict.status in ("timeout", "crash"):
            return
        with self._lock:
            self._kept[key] = replace(verdict, seconds=0.0)
            self._kept.move_to_end(key)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)  # the verdict that was not asked for the longest
