"""Build the HTML of the page: the document, its header and its sections. `body` is one run's whole page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from qwq_rl.report.bars import steps
from qwq_rl.report.curves import colour_of, domain_chart, family_charts, mode_charts
from qwq_rl.report.load import Run, domains
from qwq_rl.report.markup import (
    NONE,
    at,
    duration,
    entries,
    esc,
    fields,
    finite,
    folded,
    listed,
    moment,
    number,
    table,
    title,
)
from qwq_rl.report.rollouts import browser
from qwq_rl.report.tables import columns, differences_table, results_table
from qwq_rl.report.timing import time_section
from qwq_rl.report.training import stage_panels
from qwq_rl.report.verdict import score, sentences

ASSETS = Path(__file__).with_name("assets")
ROLLOUT_BYTES = 3_000_000
"""Bytes that the rollouts may take; the whole page stays below 4 MB."""


def document(name: str, body: str) -> str:
    """Return a whole HTML file.

    Its Content-Security-Policy allows no request and no script but ours, so that text written by a model cannot run.
    """
    # The policy names our script by its hash, so no other script can run.
    style, script = (ASSETS / "page.css").read_text(), (ASSETS / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return (
        '<!doctype html>\n<html lang="en" data-axis="updates"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{esc(name)}</title><style>{style}</style></head>'
        f'<body>{body}<div id="tip" role="status" aria-live="polite" hidden></div>'
        f"<script>{script}</script></body></html>\n"
    )


def navigation(names: Sequence[str], prefix: str = "") -> str:
    """Links to the sections."""
    links = "".join(f'<a href="#{prefix}{name.lower()}">{name}</a>' for name in names)
    return f'<nav class="sections" aria-label="Sections">{links}</nav>'


def section(name: str, heading: str, content: str, prefix: str = "") -> str:
    """A section with an anchor; `prefix` keeps the anchors of several runs apart."""
    anchor = f"{prefix}{name.lower()}"
    head = f'<h2 id="{anchor}-h">{esc(heading)}</h2>'
    return f'<section id="{anchor}" aria-labelledby="{anchor}-h">{head}{content}</section>'


def fact_list(run: Run) -> str:
    """The header's facts as a list."""
    pairs = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts(run).items())
    return f'<dl class="facts">{pairs}</dl>'


def facts(run: Run) -> dict[str, str]:
    """Name -> HTML of the header's facts: recipe, seed, commit, start, wall and CPU time."""
    first_stage = next((stage.provenance for stage in run.stages if stage.provenance), {})
    commit = str(at(first_stage, "git_commit") or "")[:10]
    dirty = " with local changes" if at(first_stage, "git_dirty") else ""
    first_times = [finite(line.get("time")) or 0.0 for stage in run.stages for line in stage.metrics[:1]]
    started = at(run.pipeline, "started") or (min(first_times) if first_times else None)
    return {
        "recipe": esc(at(run.summary, "recipe") or at(run.pipeline, "recipe") or at(first_stage, "recipe") or NONE),
        "seed": esc(_first_known(at(run.pipeline, "seed"), at(run.summary, "seed"), at(first_stage, "seed"))),
        "commit": f"<code>{esc(commit)}</code>{dirty}" if commit else NONE,
        "started": esc(moment(started)),
        "wall": duration(total_seconds(run, "wall")),
        "CPU": duration(total_seconds(run, "cpu")),
    }


def _first_known(*values: object) -> object:
    return next((value for value in values if value is not None), NONE)


def total_seconds(run: Run, clock: str) -> float | None:
    """The run's seconds (`clock` is wall or cpu): from summary.json, else the sum over its stages and jobs."""
    summarised = finite(at(run.summary, "seconds", clock))
    if summarised is not None:
        return summarised
    parts = [stage.seconds(clock) for stage in run.stages]
    parts += [finite(at(job, f"{clock}_seconds")) for job in entries(run.pipeline, "jobs")]
    measured = [part for part in parts if part is not None]
    return sum(measured) if measured else None


def header(run: Run, heading: str | None = None) -> str:
    """The name, the facts, the verdict in words, what is missing, and one tile for each domain."""
    verdict = " ".join(sentences(run))
    absences = missing(run)
    notes = f'<aside class="missing"><b>Not on this page.</b> {esc(" ".join(absences))}</aside>' if absences else ""
    name = heading or esc(run.name)
    return (
        f'<header class="run"><h1>{name}</h1>{fact_list(run)}<p class="verdict">{verdict}</p>{notes}'
        f'<div class="tiles">{tiles(run)}</div></header>'
    )


def tiles(run: Run) -> str:
    """One small chart for each domain: pass@1 after every stage that leads to the released model."""
    order, shown = domains([run]), [stage for stage in columns(run) if stage in run.line]
    figures = []
    for area in order:
        estimates = [(title(stage.name), score(stage, run.primary, area)) for stage in shown]
        if any(finite(at(estimate, "mean")) is not None for _, estimate in estimates):
            values = ", ".join(f"{label} {number(at(estimate, 'mean'))}" for label, estimate in estimates)
            chart = steps(estimates, colour_of(area, order), f"pass@1 of {area}: {values}")
            name = f'<b class="c{colour_of(area, order)}">{esc(area)}</b>'
            figures.append(f'<figure class="tile"><figcaption>{name}</figcaption>{chart}</figure>')
    return "".join(figures)


def missing(run: Run) -> list[str]:
    """What the run folder does not hold yet, in one sentence each."""
    notes = []
    waiting = [stage.name for stage in run.stages if stage.status == "waiting"]
    for status, state in (("running", "is still running"), ("failed", "failed")):
        notes += [
            f"{unfinished.name} {state} (update {unfinished.updates})."
            for unfinished in run.stages
            if unfinished.status == status
        ]
    if waiting:
        notes.append(f"{listed(waiting)} {'has' if len(waiting) == 1 else 'have'} not begun.")
    if not run.pipeline:
        notes.append("No pipeline.json: the jobs over time and the gates are unknown.")
    if not run.summary:
        notes.append("No summary.json: there are no paired differences and no agreement.")
    if run.control is None:
        notes.append("No control: nothing says whether more supervised training would have done the same.")
    if run.primary is None:
        notes.append("No final evaluation: curves are of the set evaluated during training.")
    elif run.harder is None:
        notes.append("No harder split was evaluated.")
    return notes


def body(run: Run, prefix: str = "", budget: int = ROLLOUT_BYTES, heading: str | None = None) -> str:
    """Everything about one run.

    `prefix` keeps the anchors apart on a page of several runs; `budget` is the most bytes that the rollouts may take.
    """
    parts = {
        "Results": ("Before and after", results_table(run) + "<h3>Paired differences</h3>" + differences_table(run)),
        "Learning": ("Learning curves", learning([run], prefix)),
        "Training": ("Training, update by update", training(run)),
        "Rollouts": ("Rollouts", browser([run], prefix, budget)),
        "Time": ("Where the time went", time_section(run)),
        "Judge": ("The reward model against the rule", agreement(run)),
        "Provenance": ("Provenance", provenance([run])),
    }
    sections = "".join(section(name, title_text, content, prefix) for name, (title_text, content) in parts.items())
    return f"{header(run, heading)}{navigation(list(parts), prefix)}<main>{sections}</main>"


def learning(runs: Sequence[Run], prefix: str, seeds: bool = False) -> str:
    """The chart of all domains, one small chart for each family, and one of worked and terse answers for each domain.

    A switch chooses the horizontal axis: updates or CPU seconds.
    """
    if not any(stage.evaluations or stage.finals for run in runs for stage in run.line):
        return '<p class="note">No evaluation has been written yet.</p>'
    choices = "".join(
        f'<label><input type="radio" name="{prefix}axis" value="{value}"{checked}> {label}</label>'
        for value, label, checked in (("updates", "updates", " checked"), ("cpu", "CPU seconds", ""))
    )
    toggle = f'<fieldset class="toggle" data-toggle="axis"><legend>Horizontal axis</legend>{choices}</fieldset>'
    overlaid = f"Solid: {runs[0].name}. Dashed: {listed([run.name for run in runs[1:]])}." if len(runs) > 1 else ""
    # Seeds are drawn as thin lines with their mean, not overlaid as solid and dashed.
    overlaid = "Thin: each seed. Bold: their mean." if seeds else overlaid
    finals = '<span class="mark diamond">final set, 95 % interval</span>' if runs[0].primary else ""
    marks = f'<span class="mark line">held-out set, T=1</span>{finals}'
    control = (
        '<span class="mark dashed">control: more supervised training, placed by its CPU time</span>'
        if len(runs) == 1 and runs[0].control
        else ""
    )
    shaded = "" if seeds else "Shaded: 95 % intervals, clustered by prompt."
    legend = f'<p class="marks">{esc(overlaid) if overlaid else marks + control}</p>'
    modes = mode_charts(runs[0]) if len(runs) == 1 else ""
    worked = (
        '<h3>Worked or terse</h3><p class="note">A terse answer skips its reasoning. The dashed line is the share of '
        f"worked answers; solid lines are how often each kind is right.</p>{modes}"
        if modes
        else ""
    )
    return (
        f"{toggle}{legend}{domain_chart(runs, seeds)}"
        '<p class="note">Over updates every stage is equally wide and has a scale of its own; over CPU seconds '
        f"all is to scale. {shaded}</p><h3>By family</h3>{family_charts(runs, seeds)}{worked}"
    )


def training(run: Run) -> str:
    """One block of panels for each stage."""
    order = domains([run])
    blocks = [
        f"<h3>{esc(title(stage.name))} <code>{esc(stage.name)}</code></h3>{_gates(run, stage.name)}"
        f"{stage_panels([(run.name, stage)], order)}"
        for stage in run.stages
        if stage.metrics
    ]
    note = '<p class="note">Thin: every update as it was. Bold: a centred moving average.</p>'
    return note + "".join(blocks) if blocks else '<p class="note">No update has been written yet.</p>'


def _gates(run: Run, stage: str) -> str:
    """What the gates after a stage measured; unfolded if one did not pass."""
    gates = entries(run.pipeline, "stages", stage, "gates")
    rows = []
    for gate in gates:
        verdict = ("correct", "passed") if at(gate, "passed") else ("wrong", "not passed")
        measure = f"{esc(at(gate, 'measure'))} <small>{esc(at(gate, 'scope'))}</small>"
        verdict_cell = f'<span class="v-{verdict[0]}">{verdict[1]}</span> <small>{esc(at(gate, "note") or "")}</small>'
        rows.append([measure, number(at(gate, "value")), number(at(gate, "above")), verdict_cell])
    failed = sum(not at(gate, "passed") for gate in gates)
    summary = f"Gates after this stage: {len(gates) - failed} of {len(gates)} passed"
    content = table(["measure", "value", "must exceed", ""], rows, summary)
    return folded(summary, content, opened=failed > 0) if gates else ""


def agreement(run: Run) -> str:
    """How often the reward model orders two replies in the same way as the family's own rule."""
    measured = fields(run.summary, "agreement")
    share = finite(at(measured, "reward_model_pairs"))
    if share is None:
        return (
            '<p class="note">Not measured: the run has no reward model, or its final evaluation is still to come.</p>'
        )
    percent, prompts = f"{100 * share:.0f} %", esc(at(measured, "prompts") or "?")
    auc_value = finite(at(measured, "reward_model_auc"))
    auc = f" Over all replies at once the area under the curve is {number(auc_value)}." if auc_value is not None else ""
    pairs = esc(at(measured, "pairs") or "")
    gauge = f'<i style="width:{100 * share:.1f}%"></i><b></b>'
    return (
        f'<div class="agreement"><p class="figure">{percent}</p><div>'
        f'<div class="gauge" role="img" aria-label="{percent} of pairs; chance is 50 %">{gauge}</div>'
        f"<p>of {pairs} pairs of replies are ordered by the learned reward model as by the open family's own rule, "
        f"over {prompts} held-out prompts; a coin would reach 50 %.{auc} The open family is graded by that rule alone "
        "everywhere on this page, never by the model that was trained on.</p></div></div>"
    )


def provenance(runs: Sequence[Run]) -> str:
    """The provenance.json of every stage (command, commit, versions, contract) and its recipe as it ran."""
    blocks = []
    for run in runs:
        for stage in run.stages:
            if stage.provenance or stage.recipe:
                name = stage.name if len(runs) == 1 else f"{run.name}: {stage.name}"
                summary = f"{name}: {stage.kind or 'not begun'}, {stage.updates} updates"
                blocks.append(
                    folded(
                        summary, _flat_table(stage.provenance, name) + f"<pre><code>{esc(stage.recipe)}</code></pre>"
                    )
                )
    return "".join(blocks) or '<p class="note">No stage has written its provenance yet.</p>'


def _flat_table(record: object, caption: str) -> str:
    rows = [[esc(name), f"<code>{esc(value)}</code>"] for name, value in _flatten(record)]
    return table(["", ""], rows, f"Provenance of {caption}") if rows else ""


def _flatten(record: object, prefix: str = "") -> list[tuple[str, str]]:
    """Turn nested records into pairs `(a.b.c, value)`. Lists are joined by spaces."""
    if isinstance(record, dict):
        return [
            pair for key, value in record.items() for pair in _flatten(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, " ".join(map(str, record)) if isinstance(record, list) else str(record))]
