"""Counters and histograms in the text format that Prometheus reads (version 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


@dataclass
class Counter:
    """A counter with one count for each combination of label values."""

    labels: tuple[str, ...]
    counts: dict[tuple[str, ...], float] = field(default_factory=dict)

    def add(self, *values: str, by: float = 1) -> None:
        """Add `by`; `values` has one value per label."""
        assert len(values) == len(self.labels)
        self.counts[values] = self.counts.get(values, 0) + by

    def samples(self, name: str) -> list[str]:
        """The lines for all its values."""
        return [
            sample(name, count, dict(zip(self.labels, values, strict=True)))
            for values, count in sorted(self.counts.items())
        ]


class Histogram:
    """A histogram of durations."""

    def __init__(self, bounds: Sequence[float] = _SECONDS) -> None:
        """`bounds`: the upper bounds of the buckets, in seconds."""
        self._bounds, self._counts, self._sum = tuple(bounds), [0] * (len(bounds) + 1), 0.0

    def add(self, seconds: float) -> None:
        """Add one duration."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def samples(self, name: str) -> list[str]:
        """The lines for all its values."""
        lines, total = [], 0
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count  # buckets are cumulative in this format
            lines.append(sample(f"{name}_bucket", total, {"le": bound}))
        return [*lines, sample(f"{name}_sum", self._sum), sample(f"{name}_count", total)]


def family(name: str, kind: Literal["counter", "gauge", "histogram"], meaning: str, samples: Iterable[str]) -> str:
    """All samples of one name, with their type and meaning."""
    return "\n".join([f"# HELP {name} {meaning}", f"# TYPE {name} {kind}", *samples]) + "\n"


def sample(name: str, value: float, labels: Mapping[str, str] | None = None) -> str:
    """One line: a name, its labels and a value."""
    label_text = ",".join(f'{label}="{_escaped(text)}"' for label, text in (labels or {}).items())
    return f"{name}{{{label_text}}} {value!r}" if label_text else f"{name} {value!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
