"""Several runs on one page: two runs compared (`comparison_body`), or all seeds of a run (`seeds_body`)."""

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
    """The page of two compared runs: verdicts, tables, overlaid charts, rollouts, clocks and provenance."""
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
        overlaid = [(run.name, stage) for run in runs if (stage := run.stage(name)) and stage.metrics]
        only_in = "" if len(overlaid) == len(runs) else f" <small>only in {esc(overlaid[0][0])}</small>"
        blocks.append(f"<h3>{esc(title(name))}{only_in}</h3>{stage_panels(overlaid, domains(runs))}")
    return "".join(blocks)


def _tables(first: Run, second: Run) -> str:
    """One table for each stage that has a final evaluation in both runs."""
    tables = []
    for stage in columns(first):
        second_stage = second.stage(stage.name)
        if second_stage is not None and second_stage.finals:
            cells = [_plain_cell(run, run.stage(stage.name), [first, second]) for run in (first, second)]
            cells.append(_paired_cell(paired_differences(first, second, stage.name), [first, second]))
            difference_head = f"{esc(second.name)} − {esc(first.name)}<small>paired by prompt</small>"
            caption = f"After {stage.name}: pass@1 at T=1 on {first.primary}"
            tables.append(
                area_table([first, second], [esc(first.name), esc(second.name), difference_head], cells, caption)
            )
    return "".join(tables) or '<p class="note">No stage has been finally evaluated in both runs.</p>'


def _plain_cell(run: Run, stage: Stage | None, runs: Sequence[Run]) -> Cell:
    def cell(kind: str, area: str) -> str:
        estimate = score(stage, run.primary, area, kind)
        if finite(at(estimate, "mean")) is None:
            return NONE
        mark = micro_score(estimate, colour_of(area, domains(runs)))
        score_text = number(at(estimate, "mean"))
        return f'<span class="figure">{score_text}</span> <span class="ci">{interval(estimate)}</span>{mark}'

    return cell


def _paired_cell(differences: Mapping[tuple[str, str], Mapping[str, Any]], runs: Sequence[Run]) -> Cell:
    # One scale for the whole column, so that its marks can be compared.
    reach = max(
        [0.1, *(abs(at(paired, "difference", end)) for paired in differences.values() for end in ("low", "high"))]
    )

    def cell(kind: str, area: str) -> str:
        paired = differences.get((kind, area))
        prompts = f"<div><dt>prompts</dt><dd>{at(paired, 'prompts')}</dd></div>" if paired else ""
        return difference_inside(paired, reach, colour_of(area, domains(runs)), prompts)

    return cell


def paired_differences(first: Run, second: Run, stage: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Second minus first, for every domain and family, over the prompts of the first run's primary set that both have.

    Returns `(domains or families, area) -> {difference: {mean, low, high}, lower95, prompts}`.
    """
    first_scores, second_scores = (_prompt_scores(run, stage, first.primary or "") for run in (first, second))
    strata = {
        family: (second_scores[family], first_scores[family]) for family in first_scores if family in second_scores
    }
    strata_of_area = {("families", f"{domain}/{family}"): [stratum] for (domain, family), stratum in strata.items()}
    # A domain's difference is the mean over its families, so each family is one stratum of it.
    for domain in dict.fromkeys(domain for domain, _ in strata):
        strata_of_area["domains", domain] = [stratum for family, stratum in strata.items() if family[0] == domain]
    differences = {key: stratified_difference(pairs) for key, pairs in strata_of_area.items()}
    return {key: asdict(difference) for key, difference in differences.items() if difference is not None}


def _prompt_scores(run: Run, stage: str, data_set: str) -> dict[tuple[str, str], dict[str, list[float | None]]]:
    """(domain, family) -> prompt id -> the scores of its samples; None is a fault."""
    path = RunFolder(run.path).evaluation(stage, data_set).with_suffix(".jsonl")
    scores_by_family: dict[tuple[str, str], dict[str, list[float | None]]] = {}
    for line in read_lines(path):
        prompts = scores_by_family.setdefault((str(line.get("domain")), str(line.get("family"))), {})
        prompts[str(line.get("id"))] = [finite(value) for value in entries(line, "scores")]
    return scores_by_family


def seeds_body(name: str, runs: Sequence[Run]) -> str:
    """The page of several seeds: all of them together, then one tab with the whole page of each seed."""
    tables = _score_table(runs) + "<h3>Paired differences</h3>" + _difference_table(runs)
    together = section("All", "All seeds", tables + learning(runs, "all-", seeds=True))
    tabs = "".join(f'<button data-tab="{esc(run.name)}">{esc(run.name)}</button>' for run in runs)
    bar = f'<nav class="tabs" aria-label="Seeds" hidden>{tabs}</nav>'
    return f"{_header(name, runs)}<main>{together}</main>{bar}{''.join(_article(name, run, len(runs)) for run in runs)}"


def _header(name: str, runs: Sequence[Run]) -> str:
    verdicts = "".join(
        f'<div><dt><a href="#{esc(run.name)}">{esc(run.name)}</a></dt><dd>{" ".join(sentences(run))}</dd></div>'
        for run in runs
    )
    cpu_seconds = [seconds for run in runs if (seconds := total_seconds(run, "cpu")) is not None]
    extremes = (
        dict.fromkeys(duration(seconds) for seconds in (min(cpu_seconds), max(cpu_seconds))) if cpu_seconds else {}
    )
    spent = f", {' to '.join(extremes)} of CPU each" if extremes else ""
    return (
        f'<header class="run"><h1>{esc(name)}</h1><p class="verdict">{len(runs)} seeds, every one reported{spent}.</p>'
        f'<dl class="verdicts">{verdicts}</dl></header>'
    )


def _article(name: str, run: Run, count: int) -> str:
    heading = f"{esc(name)} <small>{esc(run.name)}</small>"
    content = body(run, f"{run.name}-", ROLLOUT_BYTES // count, heading)
    return f'<article class="seed" id="{esc(run.name)}">{content}</article>'


def _score_table(runs: Sequence[Run]) -> str:
    # A seed that stopped at a gate has fewer stages; the columns are those of the seed that came furthest.
    fullest = max(runs, key=lambda run: len(columns(run)))
    shown = columns(fullest)
    if not shown:
        return '<p class="note">No seed has a final evaluation yet.</p>'
    cells = [_score_cell(runs, stage.name) for stage in shown]
    caption = f"pass@1 at T=1 on {fullest.primary}: the mean over the seeds, then each seed; the mark shows their range"
    return area_table(runs, [heading(stage, fullest) for stage in shown], cells, caption)


def _score_cell(runs: Sequence[Run], stage: str) -> Cell:
    def cell(kind: str, area: str) -> str:
        values = [finite(at(score(run.stage(stage), run.primary, area, kind), "mean")) for run in runs]
        means = [value for value in values if value is not None]
        if not means:
            return NONE
        by_seed = " · ".join(number(value) for value in values)
        mark = micro_score(_mean_and_range(means), colour_of(area, domains(runs)))
        return f'<span class="figure">{number(mean(means))}</span> <span class="ci">{by_seed}</span>{mark}'

    return cell


def _mean_and_range(values: Sequence[float]) -> dict[str, float]:
    return {"mean": mean(values), "low": min(values), "high": max(values)}


def _difference_table(runs: Sequence[Run]) -> str:
    """One column for each comparison that at least one seed has."""
    names = dict.fromkeys(comparison.name for run in runs for comparison in comparisons(run))
    if not names:
        return '<p class="note">No paired differences yet: no seed has a <code>summary.json</code>.</p>'
    cells = [_difference_cell(runs, name) for name in names]
    heads = [f"{esc(name)}<small>mean; each seed and its bound</small>" for name in names]
    primary = next((run.primary for run in runs if run.primary), "?")
    caption = f"Differences of pass@1 on {primary}, paired by prompt, with one-sided 95 % lower bounds"
    return area_table(runs, heads, cells, caption)


def _difference_cell(runs: Sequence[Run], name: str) -> Cell:
    reach = reach_of(runs)
    by_run: list[Comparison | None] = [
        next((comparison for comparison in comparisons(run) if comparison.name == name), None) for run in runs
    ]

    def cell(kind: str, area: str) -> str:
        pairs = [
            comparison.get(run.primary, kind, area) if comparison else None
            for run, comparison in zip(runs, by_run, strict=True)
        ]
        means = [value for paired in pairs if (value := finite(at(paired, "difference", "mean"))) is not None]
        if not means:
            return NONE
        rows = "".join(_seed_row(run.name, paired) for run, paired in zip(runs, pairs, strict=True))
        mark = micro_difference(_mean_and_range(means), reach, colour_of(area, domains(runs)))
        return f'<span class="figure">{signed(mean(means))}</span>{mark}<dl class="beside lines">{rows}</dl>'

    return cell


def _seed_row(seed: str, paired: object) -> str:
    difference, bound = signed(at(paired, "difference", "mean")), signed(at(paired, "lower95"))
    return f"<div><dt>{esc(seed)}</dt><dd>{difference}, ≥ {bound}</dd></div>"
