"""The CPU and wall seconds that a stage spent on training, over all its restarts."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


def process_cpu_seconds() -> float:
    """CPU seconds of this process and of its child processes that have ended."""
    usages = (resource.getrusage(target) for target in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@dataclass
class Clock:
    """Counts seconds from its creation on, added to those of earlier processes of the same stage (`base_...`)."""

    base_cpu: float = 0.0
    base_wall: float = 0.0
    _cpu: float = field(default_factory=process_cpu_seconds)
    _wall: float = field(default_factory=time.monotonic)
    _stopped: tuple[float, float] | None = None

    def cpu_seconds(self) -> float:
        """CPU seconds of training so far."""
        return self.base_cpu + (self._stopped[0] if self._stopped else process_cpu_seconds()) - self._cpu

    def wall_seconds(self) -> float:
        """Wall seconds of training so far."""
        return self.base_wall + (self._stopped[1] if self._stopped else time.monotonic()) - self._wall

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop both counts inside the block: setup and evaluation are not training."""
        cpu, wall = self._stopped = process_cpu_seconds(), time.monotonic()
        try:
            yield
        finally:
            self._stopped = None
            # Moving the start forward by the length of the pause takes the pause out of both counts.
            self._cpu += process_cpu_seconds() - cpu
            self._wall += time.monotonic() - wall
