"""Stops asking a verifier for a while if most of its verdicts are faults, for example because its server is down."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

LOG = logging.getLogger("qwq_rl.verifiers")


class Breaker:
    """Opens if more than `limit` of the last `window` verdicts were faults, and at least `least` of them.

    While it is open, the verifier is not asked. After `rest_s` seconds one trial item is let through, and its verdict
    decides: the breaker closes, or stays open for another `rest_s`. Safe to use from any thread.
    """

    def __init__(
        self,
        name: str,
        *,
        window: int = 50,
        least: int = 20,
        limit: float = 0.5,
        rest_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._least, self._limit, self._rest_s, self._clock = name, least, limit, rest_s, clock
        self._lock = threading.Lock()
        self._failures: deque[bool] = deque(maxlen=window)
        self._open_since: float | None = None
        self._trying = False
        self.reason = ""
        """Why it is open."""

    @property
    def is_open(self) -> bool:
        """Whether it is open, even if a trial is due."""
        return self._open_since is not None

    def allows(self) -> bool:
        """Whether the verifier may be asked now.

        If the breaker is open, this is a trial: the outcome that is recorded next decides.
        """
        if self._open_since is None:  # the usual case needs no lock
            return True
        with self._lock:
            if self._open_since is None:
                return True
            if self._clock() - self._open_since < self._rest_s:
                return False
            # The rest starts again, so that other threads do not start a second trial.
            self._trying, self._open_since = True, self._clock()
            return True

    def record(self, failed: bool | None, why: str = "") -> bool:
        """Record an outcome; None says nothing about the verifier. Returns whether this opened the breaker."""
        with self._lock:
            if self._open_since is not None:
                # Without a trial this is the late outcome of an item that was asked before the breaker opened.
                if self._trying:
                    self._end_trial(failed)
                return False
            if failed is not None:
                self._failures.append(failed)
            faults = sum(self._failures) if failed else 0
            if faults < self._least or faults <= self._limit * len(self._failures):
                return False
            self._open(f"{faults} of its last {len(self._failures)} verdicts were faults, the last: {why}")
            return True

    def trip(self, why: str) -> bool:
        """Open at once. Returns whether it was closed before."""
        with self._lock:
            if self._open_since is not None:
                self._end_trial(True)
                return False
            self._open(why)
            return True

    def _end_trial(self, failed: bool | None) -> None:
        self._trying = False
        if failed is False:
            self._open_since = None
            self._failures.clear()
            LOG.warning("verifier %s: judges again", self._name)
        else:
            self._open_since = self._clock()

    def _open(self, why: str) -> None:
        self._open_since, self._trying, self.reason = self._clock(), False, why
        LOG.warning("verifier %s: not asked for %g s: %s", self._name, self._rest_s, why)
