"""What a run ends with in the terminal: figures by stage and domain, what each stage changed, where things lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from qwq_rl.run_folder.files import RunFolder


def print_closing(console: Console, folder: RunFolder, summary: Mapping[str, Any]) -> None:
    """Print the summary (summary.json, of one run or of several seeds) and the paths of page, checkpoint and model."""
    table = figures(summary)
    if table.row_count:
        console.print(table)
    for line in changes(summary):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(duration(summary), highlight=False)
    for what, path in places(folder, summary):
        console.print(f"{what:<11}{path}", highlight=False, markup=False, soft_wrap=True)


def figures(summary: Mapping[str, Any]) -> Table:
    """pass@1 sampled at temperature 1: a row a set and domain, a column a stage."""
    stages = {name: stage["sets"] for name, stage in summary["stages"].items() if stage["sets"]}
    table = Table("pass@1 at T=1", *stages, title_justify="left")
    rows = dict.fromkeys((one, domain) for sets in stages.values() for one in sets for domain in sets[one]["domains"])
    for data_set, domain in rows:
        areas = [sets.get(data_set, {"domains": {}})["domains"].get(domain) for sets in stages.values()]
        table.add_row(f"{data_set} {domain}", *(_estimate(area and area["sampled"]) for area in areas))
    return table


def changes(summary: Mapping[str, Any]) -> Iterator[str]:
    """One line a stage and set: what it changed against the stage it continues from; the control's lines last."""
    for name, stage in summary["stages"].items():
        if stage.get("against"):
            yield from _differences(f"{name} - {stage['against']['stage']}", stage["against"]["sets"])
    control = summary.get("control")
    if control:
        yield from _differences(f"{control['of']} - {control['stage']} (control)", control["sets"])


def duration(summary: Mapping[str, Any]) -> str:
    """How long it took: the time in which a process of the run lived, and the processor time of all of them."""
    wall, cpu = (_minutes(summary["seconds"][kind]) for kind in ("wall", "cpu"))
    return f"took {wall} min, {cpu} min of processor time"


def places(folder: RunFolder, summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(what, path) of what a person will want to open, as far as it is there."""
    release = summary.get("release")
    found = {"page": folder.report, "model": folder.model, "figures": folder.summary}
    if release:
        found["checkpoint"] = folder.stage(release).final
    for what, path in found.items():
        if path.exists():
            yield what, str(path)


def _differences(title: str, sets: Mapping[str, Any]) -> Iterator[str]:
    for data_set, compared in sets.items():
        parts = [f"{domain} {_signed(area['difference'])}" for domain, area in compared["domains"].items()]
        yield f"{title}, {data_set}: {', '.join(parts)}"


def _estimate(value: Mapping[str, Any] | None) -> str:
    """One run's mean and half its interval, or over seeds the mean and the range."""
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
