"""Two runs on one page: scores side by side with their paired difference, curves and panels overlaid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

from qwq_rl.evals.intervals import stratified_difference
from qwq_rl.report.bars import micro_difference, micro_score
from qwq_rl.report.curves import colour_of
from qwq_rl.report.load import Run, Stage, domains
from qwq_rl.report.markup import NONE, at, duration, entries, esc, finite, interval, number, signed, title
from qwq_rl.report.page import ROLLOUT_BYTES, body, fact_list, learning, navigation, provenance, section, total_seconds
from qwq_rl.report.rollouts import browser
from qwq_rl.report.tables import (
    Cell,
    Comparison,
    area_table,
    columns,
    comparisons,
    difference_inside,
    heading,
    reach_of,
)
from qwq_rl.report.timing import time_section
from qwq_rl.report.training import stage_panels
from qwq_rl.report.verdict import score, sentences
from qwq_rl.run_folder.files import RunFolder, read_lines


def comparison_body(first: Run, second: Run) -> str:
    """Both verdicts, the tables, the overlaid charts, the rollouts of both, clocks and provenance."""
    runs = [first, second]
    facts = "".join(
        f"<div><h2>{esc(run.name)}</h2>{fact_list(run)}<p>{' '.join(sentences(run))}</p></div>" for run in runs
    )
    times = "".join(f"<h3>{esc(run.name)}</h3>{time_section(run)}" for run in runs)
    parts = {
        "Results": ("Side by side", _tables(first, second)),
        "Learning": ("Learning curves", learning(runs, "")),
        "Training": ("Training, update by update", _training(runs)),
        "Rollouts": ("Rollouts", browser(runs, "", ROLLOUT_BYTES)),
        "Time": ("Where the time went", times),
        "Provenance": ("Provenance", provenance(runs)),
    }
    sections = "".join(section(name, words, content) for name, (words, content) in parts.items())
    return (
        f'<header class="run"><h1>{esc(first.name)} <small>against</small> {esc(second.name)}</h1>'
        f'<div class="two">{facts}</div></header>{navigation(list(parts))}<main>{sections}</main>'
    )


def _training(runs: Sequence[Run]) -> str:
    names = dict.fromkeys(stage.name for run in runs for stage in run.stages if stage.metrics)
    blocks = [f'<p class="note">Solid: {esc(runs[0].name)}. Dashed: {esc(runs[1].name)}.</p>']
    for name in names:
        both = [(run.name, stage) for run in runs if (stage := run.stage(name)) and stage.metrics]
        alone = "" if len(both) == len(runs) else f" <small>only in {esc(both[0][0])}</small>"
        blocks.append(f"<h3>{esc(title(name))}{alone}</h3>{stage_panels(both, domains(runs))}")
    return "".join(blocks)


def _tables(first: Run, second: Run) -> str:
    """One table a stage that was finally evaluated in both runs."""
    tables = []
    for stage in columns(first):
        other = second.stage(stage.name)
        if other is not None and other.finals:
            cells = [_plain_cell(run, run.stage(stage.name), [first, second]) for run in (first, second)]
            cells.append(_paired_cell(paired_differences(first, second, stage.name), [first, second]))
            paired = f"{esc(second.name)} − {esc(first.name)}<small>paired by prompt</small>"
            caption = f"After {stage.name}: pass@1 at T=1 on {first.primary}"
            tables.append(area_table([first, second], [esc(first.name), esc(second.name), paired], cells, caption))
    return "".join(tables) or '<p class="note">No stage has been finally evaluated in both runs.</p>'


def _plain_cell(run: Run, stage: Stage | None, runs: Sequence[Run]) -> Cell:
    def cell(kind: str, area: str) -> str:
        estimate = score(stage, run.primary, area, kind)
        if finite(at(estimate, "mean")) is None:
            return NONE
        mark = micro_score(estimate, colour_of(area, domains(runs)))
        middle = number(at(estimate, "mean"))
        return f'<span class="figure">{middle}</span> <span class="ci">{interval(estimate)}</span>{mark}'

    return cell


def _paired_cell(paired: Mapping[tuple[str, str], Mapping[str, Any]], runs: Sequence[Run]) -> Cell:
    reach = max([0.1, *(abs(at(found, "difference", end)) for found in paired.values() for end in ("low", "high"))])

    def cell(kind: str, area: str) -> str:
        found = paired.get((kind, area))
        prompts = f"<div><dt>prompts</dt><dd>{at(found, 'prompts')}</dd></div>" if found else ""
        return difference_inside(found, reach, colour_of(area, domains(runs)), prompts)

    return cell


def paired_differences(first: Run, second: Run, stage: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Second minus first for every domain and family, over the prompts that both evaluated on the first's primary set.

    Returns `(domains or families, area) -> {difference: {mean, low, high}, lower95, prompts}`.
    """
    before, after = (_prompt_scores(run, stage, first.primary or "") for run in (first, second))
    strata = {family: (after[family], before[family]) for family in before if family in after}
    groups = {("families", f"{domain}/{family}"): [pair] for (domain, family), pair in strata.items()}
    for domain in dict.fromkeys(domain for domain, _ in strata):
        groups["domains", domain] = [pair for family, pair in strata.items() if family[0] == domain]
    found = {key: stratified_difference(pairs) for key, pairs in groups.items()}
    return {key: asdict(difference) for key, difference in found.items() if difference is not None}


def _prompt_scores(run: Run, stage: str, data_set: str) -> dict[tuple[str, str], dict[str, list[float | None]]]:
    """(domain, family) -> prompt id -> its samples' scores."""
    path = RunFolder(run.path).evaluation(stage, data_set).with_suffix(".jsonl")
    found: dict[tuple[str, str], dict[str, list[float | None]]] = {}
    for line in read_lines(path):
        family = found.setdefault((str(line.get("domain")), str(line.get("family"))), {})
        family[str(line.get("id"))] = [finite(value) for value in entries(line, "scores")]
    return found


def seeds_body(name: str, runs: Sequence[Run]) -> str:
    """The seeds together, then a tab a seed with its own page."""
    tables = _scores(runs) + "<h3>Paired differences</h3>" + _differences(runs)
    together = section("All", "All seeds", tables + learning(runs, "all-", seeds=True))
    tabs = "".join(f'<button data-tab="{esc(run.name)}">{esc(run.name)}</button>' for run in runs)
    bar = f'<nav class="tabs" aria-label="Seeds" hidden>{tabs}</nav>'
    return f"{_header(name, runs)}<main>{together}</main>{bar}{''.join(_article(name, run, len(runs)) for run in runs)}"


def _header(name: str, runs: Sequence[Run]) -> str:
    verdicts = "".join(
        f'<div><dt><a href="#{esc(run.name)}">{esc(run.name)}</a></dt><dd>{" ".join(sentences(run))}</dd></div>'
        for run in runs
    )
    known = [seconds for run in runs if (seconds := total_seconds(run, "cpu")) is not None]
    ends = dict.fromkeys(duration(seconds) for seconds in (min(known), max(known))) if known else {}
    spent = f", {' to '.join(ends)} of CPU each" if ends else ""
    return (
        f'<header class="run"><h1>{esc(name)}</h1><p class="verdict">{len(runs)} seeds, every one reported{spent}.</p>'
        f'<dl class="verdicts">{verdicts}</dl></header>'
    )


def _article(name: str, run: Run, count: int) -> str:
    heading = f"{esc(name)} <small>{esc(run.name)}</small>"
    content = body(run, f"{run.name}-", ROLLOUT_BYTES // count, heading)
    return f'<article class="seed" id="{esc(run.name)}">{content}</article>'


def _scores(runs: Sequence[Run]) -> str:
    model = max(runs, key=lambda run: len(columns(run)))
    shown = columns(model)
    if not shown:
        return '<p class="note">No seed has a final evaluation yet.</p>'
    cells = [_score_cell(runs, stage.name) for stage in shown]
    caption = f"pass@1 at T=1 on {model.primary}: the mean over the seeds, then each seed; the mark shows their range"
    return area_table(runs, [heading(stage, model) for stage in shown], cells, caption)


def _score_cell(runs: Sequence[Run], stage: str) -> Cell:
    def cell(kind: str, area: str) -> str:
        values = [finite(at(score(run.stage(stage), run.primary, area, kind), "mean")) for run in runs]
        known = [value for value in values if value is not None]
        if not known:
            return NONE
        each = " · ".join(number(value) for value in values)
        mark = micro_score(_range(known), colour_of(area, domains(runs)))
        return f'<span class="figure">{number(mean(known))}</span> <span class="ci">{each}</span>{mark}'

    return cell


def _range(values: Sequence[float]) -> dict[str, float]:
    return {"mean": mean(values), "low": min(values), "high": max(values)}


def _differences(runs: Sequence[Run]) -> str:
    """Every comparison that any seed has made."""
    names = dict.fromkeys(one.name for run in runs for one in comparisons(run))
    if not names:
        return '<p class="note">No paired differences yet: no seed has a <code>summary.json</code>.</p>'
    cells = [_difference_cell(runs, name) for name in names]
    heads = [f"{esc(name)}<small>mean; each seed and its bound</small>" for name in names]
    primary = next((run.primary for run in runs if run.primary), "?")
    caption = f"Differences of pass@1 on {primary}, paired by prompt, with one-sided 95 % lower bounds"
    return area_table(runs, heads, cells, caption)


def _difference_cell(runs: Sequence[Run], name: str) -> Cell:
    reach = reach_of(runs)
    made: list[Comparison | None] = [next((one for one in comparisons(run) if one.name == name), None) for run in runs]

    def cell(kind: str, area: str) -> str:
        found = [one.get(run.primary, kind, area) if one else None for run, one in zip(runs, made, strict=True)]
        known = [value for pair in found if (value := finite(at(pair, "difference", "mean"))) is not None]
        if not known:
            return NONE
        each = "".join(_pair(run.name, pair) for run, pair in zip(runs, found, strict=True))
        mark = micro_difference(_range(known), reach, colour_of(area, domains(runs)))
        return f'<span class="figure">{signed(mean(known))}</span>{mark}<dl class="beside lines">{each}</dl>'

    return cell


def _pair(seed: str, paired: object) -> str:
    middle, bound = signed(at(paired, "difference", "mean")), signed(at(paired, "lower95"))
    return f"<div><dt>{esc(seed)}</dt><dd>{middle}, ≥ {bound}</dd></div>"
