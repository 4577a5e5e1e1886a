"""What many verdicts come to: scores, statuses, how long they took."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from dataclasses import dataclass, field

from qwq_rl.verifiers import Verdict


@dataclass
class Tally:
    """Counts verdicts as they come; 8 bytes each are kept, for the percentiles."""

    rows: int = 0
    scored: int = 0
    total: float = 0.0
    """Sum of the scores."""
    full: int = 0
    """Verdicts with score 1."""
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: array[float] = field(default_factory=lambda: array("d"))
    started: float = field(default_factory=time.monotonic)

    def add(self, verdict: Verdict) -> None:
        """Count one verdict."""
        self.rows += 1
        self.statuses[verdict.status] += 1
        self.seconds.append(verdict.seconds)
        if verdict.score is not None:
            self.scored += 1
            self.total += verdict.score
            self.full += verdict.score == 1

    @property
    def faults(self) -> int:
        """How many could not be judged."""
        return self.rows - self.scored

    @property
    def fault_share(self) -> float:
        """Their share, 0 of nothing."""
        return self.faults / self.rows if self.rows else 0.0

    def text(self, name: str) -> str:
        """The summary, a few lines."""
        took = time.monotonic() - self.started
        mean = f"{self.total / self.scored:.4f}" if self.scored else "-"
        statuses = ", ".join(
            f"{status} {count} ({count / self.rows:.1%})" for status, count in self.statuses.most_common()
        )
        return "\n".join(
            (
                f"{name}: {self.rows} rows in {took:.1f} s ({self.rows / took if took else 0:.0f} rows/s)",
                f"  score   mean {mean}, {self.full} of {self.scored} have 1",
                f"  status  {statuses or '-'}",
                f"  seconds p50 {percentile(self.seconds, 50):.6f}, p99 {percentile(self.seconds, 99):.6f}, "
                f"most {max(self.seconds, default=0.0):.6f}",
                f"  faults  {self.faults} ({self.fault_share:.1%})",
            )
        )


def percentile(values: array[float], share: int) -> float:
    """The smallest value that `share` percent of the values do not exceed; 0 where there is none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]
