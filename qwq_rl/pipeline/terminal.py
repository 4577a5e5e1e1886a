"""What a person sees while a run goes on: one row a stage, read from the files that the trainers write."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qwq_rl.run_folder.files import StageFolder

PLAIN_SECONDS = 10.0
_RATE_UPDATES = 20


@dataclass(frozen=True)
class StageView:
    """One row: where a stage stands. `accuracy` is by domain; `rate` in updates a second; `remaining` in seconds."""

    name: str
    status: str
    update: int = 0
    steps: int = 0
    numbers: str = ""
    rate: float | None = None
    remaining: float | None = None
    seconds: float | None = None

    def line(self) -> str:
        """The row as plain text."""
        parts = [f"{self.name}: {self.status}"]
        if self.status == "running":
            parts = [f"{self.name}: {self.update}/{self.steps}", self.numbers, _rate(self.rate), _left(self.remaining)]
        return "  ".join(part for part in parts if part)


@dataclass
class Tail:
    """The last complete lines of a JSONL file that another process writes, and at times cuts back or replaces."""

    path: Path
    lines: list[dict[str, Any]] = field(default_factory=list)
    _offset: int = 0
    _inode: int = 0

    def read(self) -> list[dict[str, Any]]:
        """Take up what is new, and return the last lines."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self.lines, self._offset, self._inode = [], 0, status.st_ino
                file.seek(self._offset)
                fresh = file.read()
        except FileNotFoundError:
            return []
        complete = fresh[: fresh.rfind(b"\n") + 1]
        self._offset += len(complete)
        self.lines += [json.loads(line) for line in complete.splitlines() if line.strip()]
        del self.lines[:-_RATE_UPDATES]
        return self.lines


class StageWatch:
    """Reads the files of one running stage."""

    def __init__(self, folder: StageFolder, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self._metrics, self._evaluations = Tail(folder.metrics), Tail(folder.evaluations)

    def view(self, seconds: float) -> StageView:
        """The stage as it stands; `seconds` is how long its process has run."""
        metrics, evaluations = self._metrics.read(), self._evaluations.read()
        if not metrics:
            return StageView(self.folder.name, "running", 0, self.steps, "starting", seconds=seconds)
        last, rate = metrics[-1], updates_per_second(metrics)
        remaining = (self.steps - last["update"]) / rate if rate else None
        words = numbers(last, evaluations[-1] if evaluations else None)
        return StageView(self.folder.name, "running", last["update"], self.steps, words, rate, remaining, seconds)


def updates_per_second(metrics: Sequence[Mapping[str, Any]]) -> float | None:
    """The rate over the given lines, None where they span no time."""
    updates = metrics[-1]["update"] - metrics[0]["update"]
    seconds = metrics[-1]["time"] - metrics[0]["time"]
    return updates / seconds if updates > 0 and seconds > 0 else None


def numbers(last: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    """The live numbers that matter: reward or loss, held-out pass@1 by domain where it was measured, tokens."""
    parts = [f"reward {last['reward']:.2f}" if last.get("reward") is not None else f"loss {last['loss']:.3f}"]
    if evaluation is not None:
        scores = {name: area["sampled"] for name, area in evaluation["domains"].items()}
        parts += [
            f"{name} {score['mean']:.2f}" for name, score in scores.items() if score and score["mean"] is not None
        ]
    elif last.get("accuracy") is not None:
        parts.append(f"accuracy {last['accuracy']:.2f}")
    if "tokens" in last:
        parts.append(f"{last['tokens']['mean']:.0f} tokens")
    return "  ".join(parts)


class Board:
    """The terminal: rows that move where it is one, otherwise a plain line of every running stage now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._next_plain = time.monotonic() + PLAIN_SECONDS

    def __enter__(self) -> Board:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, views: Iterable[StageView], jobs: Sequence[tuple[str, float]]) -> None:
        """Show the rows: stages, and other processes as (name, seconds)."""
        if self._live:
            self._live.update(_table(views, jobs), refresh=True)
        elif time.monotonic() >= self._next_plain:
            self._next_plain = time.monotonic() + PLAIN_SECONDS
            for view in views:
                if view.status == "running":
                    self.say(view.line())
            for name, seconds in jobs:
                self.say(f"{name}: {seconds:.0f} s")


def _table(views: Iterable[StageView], jobs: Sequence[tuple[str, float]]) -> Table:
    table = Table.grid(padding=(0, 2))
    # Text, not markup: a line printed above the rows without markup would redraw these without it too.
    marks = {
        "done": Text("✓", "green"),
        "running": Text("▶", "cyan"),
        "failed": Text("✗", "red"),
        "waiting": Text("·", "dim"),
    }
    for view in views:
        if view.status == "running":
            bar = ProgressBar(total=max(view.steps, 1), completed=view.update, width=24)
            after = [f"{view.update}/{view.steps}", view.numbers, _rate(view.rate), _left(view.remaining)]
            table.add_row(marks["running"], view.name, bar, *after)
        else:
            took = f"{view.seconds:.0f} s" if view.status == "done" and view.seconds else view.status
            style = "dim" if view.status == "waiting" else ""
            table.add_row(marks[view.status], Text(view.name, style), Text(took, "dim"))
    for name, seconds in jobs:
        table.add_row(marks["running"], name, Text(f"{seconds:.0f} s", "dim"))
    return table


def _rate(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.1f}/s"


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"
