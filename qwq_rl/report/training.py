"""The training panels: what the updates of a stage wrote into metrics.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwq_rl.report.charts import Frame, Point, Series, Vertical, fitted, line_chart, plain_axis
from qwq_rl.report.curves import colour_of
from qwq_rl.report.load import Stage
from qwq_rl.report.markup import at, esc, finite, folded, listed, short, table, whole

Reading = Callable[[Mapping[str, Any]], object]
"""Takes one figure out of a metrics line; the result need not be a number."""
FRAME = Frame(262, 150, left=36, right=12, top=10, bottom=22)
POINTS = 160
"""The most updates that a panel draws; longer stages are thinned evenly."""
SHARE = Vertical(0.0, 1.0, (0.0, 0.5, 1.0))


def keyed(*keys: str) -> Reading:
    """Return a reading of the value under nested keys."""
    return lambda line: at(line, *keys)


def group_share(name: str) -> Reading:
    """Return a reading of the share of all groups that are `name`."""

    def read(line: Mapping[str, Any]) -> object:
        total, part = finite(at(line, "groups", "total")), finite(at(line, "groups", name))
        return part / total if total and part is not None else None

    return read


def readings(metrics: Sequence[Mapping[str, Any]], read: Reading) -> list[tuple[int, float]]:
    """Return (update, value) of every line whose value is a finite number."""
    pairs = [(whole(line.get("update")), finite(read(line))) for line in metrics]
    return [(update, value) for update, value in pairs if value is not None]


def smooth(values: Sequence[float]) -> list[float]:
    """Return a centred moving average over about a fifteenth of the values."""
    half_width = max(1, len(values) // 30)
    smoothed = []
    for index in range(len(values)):
        # Equally far to both sides: at the ends the window gets narrower, so that the line does not shift.
        side = min(half_width, index, len(values) - 1 - index)
        window = values[index - side : index + side + 1]
        smoothed.append(sum(window) / len(window))
    return smoothed


def thinned(count: int, most: int) -> list[int]:
    """Return at most `most` of `count` indices, evenly spread, with the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(index * (count - 1) / (most - 1)) for index in range(most)})


def pair(name: str, colour: int, found: Sequence[tuple[int, float]], last: float, dashed: bool = False) -> list[Series]:
    """Return two series: the raw values `found`, drawn faint and shown in the tooltip, and their smoothed line."""
    if not found:
        return []
    chosen, averages = thinned(len(found), POINTS), smooth([value for _, value in found])
    raw = tuple(Point(found[index][0] / last, found[index][1], f"update {found[index][0]}") for index in chosen)
    smoothed = tuple(Point(found[index][0] / last, averages[index], f"update {found[index][0]}") for index in chosen)
    raw_series = Series(name, colour, raw, "raw")
    return [raw_series, Series(name, colour, smoothed, "smooth dashed" if dashed else "smooth")]


@dataclass(frozen=True)
class Panel:
    """One small chart. `lines` are `(name, colour, reading)`; without `vertical` the axis fits the values."""

    title: str
    unit: str
    lines: tuple[tuple[str, int, Reading], ...]
    vertical: Vertical | None = None


def panels_of(kind: str, order: Sequence[str]) -> list[Panel]:
    """Return the panels for a kind of stage. Those that no update has values for are left out later."""
    norm = Panel("Gradient norm", "before clipping", (("gradient norm", 8, keyed("gradient_norm")),))
    entropy = Panel("Entropy", "nats a token", (("entropy", 8, keyed("entropy")),))
    loss = Panel("Loss", "", (("loss", 8, keyed("loss")),))
    if kind != "rl":
        accuracy = Panel("Accuracy", "share right", (("accuracy", 2, keyed("accuracy")),), SHARE)
        margin = Panel("Margin", "chosen over rejected", (("margin", 8, keyed("margin")),))
        rate = Panel("Learning rate", "", (("learning rate", 8, keyed("learning_rate")),))
        return [loss, accuracy, entropy, margin, norm, rate]
    groups = (("useful", 2, group_share("useful")), ("all right", 0, group_share("all_full")))
    return [
        Panel("Reward", "mean", _by_domain("reward", order), SHARE),
        Panel("Response length", "tokens", _by_domain("tokens", order)),
        Panel("Groups", "share of all", (*groups, ("all wrong", 1, group_share("all_zero"))), SHARE),
        Panel("Truncated", "share", _by_domain("truncated", order)),
        entropy,
        Panel("KL", "to the reference", (("KL", 8, keyed("kl")),)),
        Panel("Sampler gap", "nats a token", (("gap", 8, keyed("gap", "mean")),)),
        Panel("Critic", "explained variance", (("explained variance", 8, keyed("critic", "explained_variance")),)),
        Panel("Value loss", "of the critic", (("value loss", 8, keyed("critic", "value_loss")),)),
        Panel("Clipped", "share of ratios", (("clipped", 8, keyed("clipped")),)),
        norm,
        loss,
        Panel("Faults", "rollouts not judged", (("faults", 1, keyed("faults")),)),
    ]


def _by_domain(metric: str, order: Sequence[str]) -> tuple[tuple[str, int, Reading], ...]:
    return tuple((area, colour_of(area, order), keyed("domains", area, metric)) for area in order)


def stage_panels(stages: Sequence[tuple[str, Stage]], order: Sequence[str]) -> str:
    """The panels of one stage, from one run or overlaid from several as `(run name, stage)`. The first is solid."""
    figures, constants = [], []
    for panel in panels_of(stages[0][1].kind, order):
        values = [
            value for _, _, read in panel.lines for _, stage in stages for _, value in readings(stage.metrics, read)
        ]
        # A flat line says no more than a number does, so it gets a sentence below the panels.
        if values and max(values) == min(values):
            constants.append(f"{panel.title} {short(values[0])}")
        elif values:
            figures.append(_figure(panel, stages, values))
    constant = f'<p class="note">The same at every update: {esc(listed(constants))}.</p>' if constants else ""
    return (
        f'<div class="multiples">{"".join(figures)}</div>{constant}'
        f"{''.join(_stage_table(*run_stage) for run_stage in stages)}"
    )


def _figure(panel: Panel, stages: Sequence[tuple[str, Stage]], values: Sequence[float]) -> str:
    last_update = float(max(stage.updates for _, stage in stages) or 1)
    series: list[Series] = []
    legend_entries = ""
    for name, colour, read in panel.lines:
        for index, (run, stage) in enumerate(stages):
            points = readings(stage.metrics, read)
            series += pair(
                name if len(stages) == 1 else f"{name}, {run}", colour, points, last_update, dashed=index > 0
            )
            if points and not index and len(panel.lines) > 1:
                legend_entries += f'<span class="key c{colour}">{esc(name)}</span>'
    description = f"{panel.title} by update, {stages[0][1].name}"
    chart = line_chart(series, plain_axis(last_update, ""), panel.vertical or fitted(values), FRAME, description)
    legend = f'<span class="keys">{legend_entries}</span>' if legend_entries else ""
    head = f"<b>{esc(panel.title)}</b> <span>{esc(panel.unit)}</span>{legend}"
    return f'<figure class="small"><figcaption>{head}</figcaption>{chart}</figure>'


def _stage_table(run: str, stage: Stage) -> str:
    """A table of at most 25 updates of a stage, evenly spread."""
    top_level = ("loss", "accuracy", "reward", "truncated", "entropy", "margin", "kl", "gradient_norm", "faults")
    fields: dict[str, Reading] = {name.replace("_", " "): keyed(name) for name in top_level}
    fields |= {"tokens": keyed("tokens", "mean"), "useful groups": group_share("useful")}
    used = {name: read for name, read in fields.items() if readings(stage.metrics, read)}
    rows = []
    for index in thinned(len(stage.metrics), 25):
        line = stage.metrics[index]
        rows.append([esc(line.get("update")), *(short(read(line)) for read in used.values())])
    caption = f"{run}, {stage.name}: {len(rows)} of {len(stage.metrics)} updates"
    return folded(f"{caption}, as a table", table(["update", *used], rows, caption)) if rows else ""
