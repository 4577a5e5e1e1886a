"""What the terminal shows during a run (one row for each stage, from the files of the trainers) and at its end."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qwq_rl.run_folder.files import RunFolder, StageFolder

PLAIN_SECONDS = 10.0
"""Seconds between the lines of running stages where the output is not a terminal."""
_RATE_UPDATES = 20
"""The rate of a stage is that of its last updates, this many."""


@dataclass(frozen=True)
class StageView:
    """One row: the state of a stage. `rate` is in updates per second, `remaining` and `seconds` in seconds."""

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
            parts = [
                f"{self.name}: {self.update}/{self.steps}",
                self.numbers,
                _rate(self.rate),
                _time_left(self.remaining),
            ]
        return "  ".join(part for part in parts if part)


@dataclass
class Tail:
    """The last complete lines of a JSONL file that another process writes, and sometimes shortens or replaces."""

    path: Path
    lines: list[dict[str, Any]] = field(default_factory=list)
    _offset: int = 0
    _inode: int = 0

    def read(self) -> list[dict[str, Any]]:
        """Read the new lines of the file and return the last lines."""
        try:
            with self.path.open("rb") as file:
                file_status = os.fstat(file.fileno())
                # A file with another inode or a smaller size is a new one: read it from its beginning.
                if file_status.st_ino != self._inode or file_status.st_size < self._offset:
                    self.lines, self._offset, self._inode = [], 0, file_status.st_ino
                file.seek(self._offset)
                new_bytes = file.read()
        except FileNotFoundError:
            return []
        # The other process may have written only a part of the last line yet.
        complete = new_bytes[: new_bytes.rfind(b"\n") + 1]
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
        """Return the present state of the stage; `seconds` is how long its process has run."""
        metrics, evaluations = self._metrics.read(), self._evaluations.read()
        if not metrics:
            return StageView(self.folder.name, "running", 0, self.steps, "starting", seconds=seconds)
        last, rate = metrics[-1], updates_per_second(metrics)
        remaining = (self.steps - last["update"]) / rate if rate else None
        words = numbers(last, evaluations[-1] if evaluations else None)
        return StageView(self.folder.name, "running", last["update"], self.steps, words, rate, remaining, seconds)


def updates_per_second(metrics: Sequence[Mapping[str, Any]]) -> float | None:
    """Updates per second from the first to the last of these lines; None if no update or no time lies between them."""
    updates = metrics[-1]["update"] - metrics[0]["update"]
    seconds = metrics[-1]["time"] - metrics[0]["time"]
    return updates / seconds if updates > 0 and seconds > 0 else None


def numbers(last: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    """The numbers of a row: reward or loss, held-out pass@1 by domain or else the accuracy, mean length in tokens."""
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
    """The output: on a terminal rows that are redrawn, else every PLAIN_SECONDS one line for each running stage."""

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
        """Print a line that stays above the rows."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, views: Iterable[StageView], jobs: Sequence[tuple[str, float]]) -> None:
        """Show the rows: the stages, and other processes as (name, seconds)."""
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
    # Text, not markup: `say` prints without markup, and that redraws the rows without it too.
    marks = {
        "done": Text("✓", "green"),
        "running": Text("▶", "cyan"),
        "failed": Text("✗", "red"),
        "waiting": Text("·", "dim"),
    }
    for view in views:
        if view.status == "running":
            bar = ProgressBar(total=max(view.steps, 1), completed=view.update, width=24)
            columns = [f"{view.update}/{view.steps}", view.numbers, _rate(view.rate), _time_left(view.remaining)]
            table.add_row(marks["running"], view.name, bar, *columns)
        else:
            state = f"{view.seconds:.0f} s" if view.status == "done" and view.seconds else view.status
            style = "dim" if view.status == "waiting" else ""
            table.add_row(marks[view.status], Text(view.name, style), Text(state, "dim"))
    for name, seconds in jobs:
        table.add_row(marks["running"], name, Text(f"{seconds:.0f} s", "dim"))
    return table


def _rate(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.1f}/s"


def _time_left(seconds: float | None) -> str:
    return "" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"


def print_closing(console: Console, folder: RunFolder, summary: Mapping[str, Any]) -> None:
    """Print the summary (summary.json of a run or of several seeds) and the paths of page, model and checkpoint."""
    table = figures(summary)
    if table.row_count:
        console.print(table)
    for line in changes(summary):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(duration(summary), highlight=False)
    for what, path in places(folder, summary):
        console.print(f"{what:<11}{path}", highlight=False, markup=False, soft_wrap=True)


def figures(summary: Mapping[str, Any]) -> Table:
    """The table of pass@1, sampled at temperature 1: one row for each set and domain, one column for each stage."""
    stages = {name: stage["sets"] for name, stage in summary["stages"].items() if stage["sets"]}
    table = Table("pass@1 at T=1", *stages, title_justify="left")
    rows = dict.fromkeys(
        (set_name, domain) for sets in stages.values() for set_name in sets for domain in sets[set_name]["domains"]
    )
    for data_set, domain in rows:
        areas = [sets.get(data_set, {"domains": {}})["domains"].get(domain) for sets in stages.values()]
        table.add_row(f"{data_set} {domain}", *(_estimate(area and area["sampled"]) for area in areas))
    return table


def changes(summary: Mapping[str, Any]) -> Iterator[str]:
    """One line for each stage and set: the difference from the stage it continues from. The control comes last."""
    for name, stage in summary["stages"].items():
        if stage.get("against"):
            yield from _differences(f"{name} - {stage['against']['stage']}", stage["against"]["sets"])
    control = summary.get("control")
    if control:
        yield from _differences(f"{control['of']} - {control['stage']} (control)", control["sets"])


def duration(summary: Mapping[str, Any]) -> str:
    """How long it took: the time in which at least one process ran, and the processor time of all of them."""
    wall, cpu = (_minutes(summary["seconds"][kind]) for kind in ("wall", "cpu"))
    return f"took {wall} min, {cpu} min of processor time"


def places(folder: RunFolder, summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(what, path) of the results that a person may want to open, if they exist."""
    release = summary.get("release")
    paths = {"page": folder.report, "model": folder.model, "figures": folder.summary}
    if release:
        paths["checkpoint"] = folder.stage(release).final
    for what, path in paths.items():
        if path.exists():
            yield what, str(path)


def _differences(title: str, sets: Mapping[str, Any]) -> Iterator[str]:
    for data_set, compared in sets.items():
        parts = [f"{domain} {_signed(area['difference'])}" for domain, area in compared["domains"].items()]
        yield f"{title}, {data_set}: {', '.join(parts)}"


def _estimate(value: Mapping[str, Any] | None) -> str:
    """Of one run the mean and half of its interval; of several seeds the mean and the range."""
    if value is None or value["mean"] is None:
        return "-"
    if "values" in value:
        return f"{value['mean']:.2f} ({value['least']:.2f}-{value['most']:.2f})"
    return f"{value['mean']:.2f} ±{(value['high'] - value['low']) / 2:.2f}"


def _minutes(value: float | Mapping[str, Any]) -> str:
    return f"{value / 60:.1f}" if isinstance(value, int | float) else f"{value['mean'] / 60:.1f} (mean of the seeds)"


def _signed(value: Mapping[str, Any]) -> str:
    low, high = (value["least"], value["most"]) if "values" in value else (value["low"], value["high"])
    return f"{value['mean']:+.2f} [{low:+.2f}, {high:+.2f}]"
