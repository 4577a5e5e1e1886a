"""Tables of scores and of paired differences, by domain and family, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwq_rl.report.bars import micro_difference, micro_score
from qwq_rl.report.curves import colour_of
from qwq_rl.report.load import Run, Stage, domains, families
from qwq_rl.report.markup import NONE, at, duration, entries, esc, finite, interval, number, scrolled, signed, title
from qwq_rl.report.verdict import difference, score

Cell = Callable[[str, str], str]
"""(domains or families, area) -> the HTML inside a cell."""
Getter = Callable[[str | None, str, str], object]
"""(set, domains or families, area) -> a paired difference `{difference, lower95, prompts}`, or None."""


def columns(run: Run) -> list[Stage]:
    """Return the stages that get a column: those that lead to the released model, if they have a final evaluation.

    The control stands before the stage it is compared with.
    """
    shown: list[Stage] = []
    for stage in run.line:
        if run.control is not None and stage.name == run.control_of and run.control.finals:
            shown.append(run.control)
        shown.append(stage)
    return [stage for stage in shown if stage.finals]


def area_table(run_list: Sequence[Run], head: Sequence[str], cells: Sequence[Cell], caption: str) -> str:
    """One row for each domain, then its families, which page.js folds. `head` and the cells are HTML."""
    order, rows = domains(run_list), []
    for domain in order:
        inner_families = [family for family in families(run_list) if family.split("/")[0] == domain]
        rows.append(_row("domains", domain, domain, colour_of(domain, order), cells, len(inner_families)))
        rows += [_row("families", name, domain, colour_of(name, order), cells, 0) for name in inner_families]
    head_cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    return scrolled("areas", caption, f"<thead><tr><td></td>{head_cells}</tr></thead><tbody>{''.join(rows)}</tbody>")


def _row(kind: str, area: str, domain: str, colour: int, cells: Sequence[Cell], family_count: int) -> str:
    name = (
        f'<b class="c{colour}">{esc(area)}</b>' if kind == "domains" else f"<span>{esc(area.split('/', 1)[-1])}</span>"
    )
    if family_count:
        name += f'<button class="fold" data-domain="{esc(domain)}" hidden>{family_count} families</button>'
    value_cells = "".join(f"<td>{cell(kind, area)}</td>" for cell in cells)
    return f'<tr class="{kind}" data-domain="{esc(domain)}"><th scope="row">{name}</th>{value_cells}</tr>'


def heading(stage: Stage, run: Run) -> str:
    """The head of a column: "after TITLE" or "control", and the stage's own name."""
    is_control = run.control is not None and stage.name == run.control.name
    words = "control" if is_control else f"after {title(stage.name)}"
    return f"{esc(words)}<small>{esc(stage.name)}</small>"


def results_table(run: Run) -> str:
    """After every stage: pass@1 at T=1 with its interval, then greedy, pass@k and the harder set."""
    shown = columns(run)
    if not shown or run.primary is None:
        return '<p class="note">No final evaluation yet: the table appears after the first stage\'s.</p>'
    order = domains([run])
    cells = [_result_cell(run, stage, order) for stage in shown]
    counts = [at(score_record(run, stage, order), "prompts") for stage in shown]
    prompts = next((str(count) for count in counts if count), "?")
    samples = next((str(at(score_record(run, stage, order), "samples")) for stage in shown), "?")
    caption = f"pass@1 at T=1 on {run.primary}, {prompts} prompts × {samples} samples a domain, 95 % interval by prompt"
    return area_table([run], [heading(stage, run) for stage in shown], cells, caption)


def score_record(run: Run, stage: Stage, order: Sequence[str]) -> object:
    """The full score of the first domain on the primary set, or None."""
    return at(stage.finals.get(run.primary or ""), "domains", order[0]) if order else None


def _result_cell(run: Run, stage: Stage, order: Sequence[str]) -> Cell:
    def cell(kind: str, area: str) -> str:
        sampled = score(stage, run.primary, area, kind)
        if finite(at(sampled, "mean")) is None:
            return NONE
        harder = score(stage, run.harder, area, kind)
        extra_scores = {
            "greedy": at(score(stage, run.primary, area, kind, "greedy"), "mean"),
            f"pass@{_samples(run, stage, area, kind)}": at(score(stage, run.primary, area, kind, "pass_at_k"), "mean"),
            "harder": at(harder, "mean"),
        }
        pairs = "".join(f"<div><dt>{name}</dt><dd>{number(value)}</dd></div>" for name, value in extra_scores.items())
        return (
            f'<span class="figure">{number(at(sampled, "mean"))}</span> <span class="ci">{interval(sampled)}</span>'
            f'{micro_score(sampled, colour_of(area, order))}<dl class="beside">{pairs}</dl>'
        )

    return cell


def _samples(run: Run, stage: Stage, area: str, kind: str) -> str:
    return str(at(stage.finals.get(run.primary or ""), kind, area, "samples") or "k")


@dataclass(frozen=True)
class Comparison:
    """One column of paired differences; `note` stands below its name."""

    name: str
    note: str
    get: Getter


def comparisons(run: Run) -> list[Comparison]:
    """Return what summary.json compares: each stage with the one it continues from, and RL with the control."""
    compared = []
    for stage in run.line:
        base = at(run.summary, "stages", stage.name, "against", "stage")
        if base:
            name = f"{title(stage.name)} − {title(str(base))}"
            compared.append(Comparison(name, "paired by prompt", _against(run, stage)))
    control = at(run.summary, "control")
    if control:
        spent = [duration(value) for value in entries(control, "cpu_seconds")]
        clock = f"CPU {spent[1]} against {spent[0]}" if len(spent) == 2 else "paired by prompt"
        name = f"{title(str(at(control, 'of')))} − control"
        compared.append(
            Comparison(name, clock, lambda data_set, kind, area: at(control, "sets", data_set or "", kind, area))
        )
    return compared


def _against(run: Run, stage: Stage) -> Getter:
    return lambda data_set, kind, area: difference(run, stage, data_set, area, kind)


def differences_table(run: Run) -> str:
    """Paired differences: each stage minus the one it continues from, and RL minus control, with both CPU times."""
    compared = comparisons(run)
    if not compared:
        return '<p class="note">No paired differences yet: <code>summary.json</code> holds none.</p>'
    reach = reach_of([run])
    cells = [_difference_cell(run, comparison.get, reach) for comparison in compared]
    heads = [f"{esc(comparison.name)}<small>{esc(comparison.note)}</small>" for comparison in compared]
    caption = (
        f"Differences of pass@1 on {run.primary}, paired by prompt: mean, 95 % interval, one-sided 95 % lower bound"
    )
    return area_table([run], heads, cells, caption)


def reach_of(runs: Sequence[Run]) -> float:
    """The largest absolute limit of any domain's interval, at least 0.1: one scale for a whole table."""
    ends = [
        abs(finite(at(comparison.get(run.primary, "domains", area), "difference", key)) or 0.0)
        for run in runs
        for comparison in comparisons(run)
        for area in domains(runs)
        for key in ("low", "high")
    ]
    return max([0.1, *ends])


def _difference_cell(run: Run, get: Getter, reach: float) -> Cell:
    def cell(kind: str, area: str) -> str:
        harder = at(get(run.harder, kind, area), "difference")
        harder_entry = f"<div><dt>harder</dt><dd>{signed(at(harder, 'mean'))}</dd></div>" if harder else ""
        return difference_inside(get(run.primary, kind, area), reach, colour_of(area, domains([run])), harder_entry)

    return cell


def difference_inside(paired: object, reach: float, colour: int, beside: str = "") -> str:
    """The HTML of a difference: mean, interval, mark and lower bound. `beside` holds further `<div>` pairs."""
    estimate = at(paired, "difference")
    if finite(at(estimate, "mean")) is None:
        return NONE
    limits = f"{signed(at(estimate, 'low'))} to {signed(at(estimate, 'high'))}"
    bound = finite(at(paired, "lower95"))
    lower = f"<div><dt>at least</dt><dd>{signed(bound, 3)}</dd></div>" if bound is not None else ""
    return (
        f'<span class="figure">{signed(at(estimate, "mean"))}</span> <span class="ci">{limits}</span>'
        f'{micro_difference(estimate, reach, colour)}<dl class="beside">{lower}{beside}</dl>'
    )
