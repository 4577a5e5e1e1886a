"""The result of a run in plain sentences, from its loaded files."""

from __future__ import annotations

from qwq_rl.report.load import Run, Stage, domains
from qwq_rl.report.markup import at, duration, entries, esc, fields, finite, listed, number, signed, title


def score(stage: Stage | None, data_set: str | None, area: str, kind: str = "domains", what: str = "sampled") -> object:
    """The estimate of one area (a domain or family) of a stage on a set, or None."""
    return at(stage.finals.get(data_set or ""), kind, area, what) if stage else None


def difference(run: Run, stage: Stage, data_set: str | None, area: str, kind: str = "domains") -> object:
    """The paired difference from the stage it continues from: `{difference, lower95, prompts}`, or None."""
    return at(run.summary, "stages", stage.name, "against", "sets", data_set or "", kind, area)


def sides(paired: object) -> str:
    """Return "up" where the interval lies above 0, "down" where it lies below 0, else "even"."""
    low, high = finite(at(paired, "difference", "low")), finite(at(paired, "difference", "high"))
    return "up" if low is not None and low > 0 else "down" if high is not None and high < 0 else "even"


def _before_and_after(run: Run, stage: Stage, area: str) -> str:
    base = score(run.stage(at(run.summary, "stages", stage.name, "against", "stage")), run.primary, area)
    current = score(stage, run.primary, area)
    return f"{esc(area)} from <b>{number(at(base, 'mean'))}</b> to <b>{number(at(current, 'mean'))}</b>"


def _change_and_bound(run: Run, stage: Stage, area: str) -> str:
    paired = difference(run, stage, run.primary, area)
    change, bound = signed(at(paired, "difference", "mean")), signed(at(paired, "lower95"))
    return f"{esc(area)} (<b>{change}</b>, no lower than {bound})"


def stage_sentence(run: Run, stage: Stage, then: bool) -> str:
    """What one stage changed. Empty if it was not compared with the stage it continues from."""
    groups: dict[str, list[str]] = {"up": [], "down": [], "even": []}
    for area in domains([run]):
        paired = difference(run, stage, run.primary, area)
        if paired is not None:
            groups[sides(paired)].append(area)
    if not any(groups.values()):
        return ""
    method = {"rl": "reinforcement learning", "sft": "supervised training"}.get(stage.kind, "the stage")
    subject = f"{method} ({esc(title(stage.name))})"
    clauses = []
    if groups["up"]:
        clauses.append(f"lifted pass@1 on {listed([_before_and_after(run, stage, area) for area in groups['up']])}")
    if groups["down"]:
        clauses.append(f"lowered {listed([_change_and_bound(run, stage, area) for area in groups['down']])}")
    if groups["even"]:
        clauses.append(
            f"left {listed([_change_and_bound(run, stage, area) for area in groups['even']])} unchanged within noise"
        )
    text = f"{subject} {listed(clauses) if len(clauses) < 3 else '; it '.join(clauses)}."
    return f"Then {text}" if then else text[0].upper() + text[1:]


def control_sentence(run: Run) -> str:
    """Whether reinforcement learning was better than more supervised training. Empty without a control."""
    control = at(run.summary, "control")
    differences = fields(control, "sets", run.primary or "", "domains")
    if not differences:
        return ""
    relations = {"up": "ahead on", "down": "behind on", "even": "level within noise on"}
    parts = []
    for area, paired in differences.items():
        mean, low, high = (signed(at(paired, "difference", key)) for key in ("mean", "low", "high"))
        parts.append(f"{relations[sides(paired)]} {esc(area)} (<b>{mean}</b>, {low} to {high})")
    spent = entries(control, "cpu_seconds")
    clocks = [f"{duration(seconds)} of CPU" for seconds in spent] if len(spent) == 2 else ["as much CPU", "its own"]
    stage_title = esc(title(str(at(control, "of"))))
    control_side = f"Beside the control, which spent {clocks[0]} on more supervised training instead"
    return f"{control_side}, {stage_title} ({clocks[1]}) is {listed(parts)}."


def failure_sentence(run: Run) -> str:
    """Which stage stopped the run, and which of its gates did not pass. Empty if no stage failed."""
    stage = next((stage for stage in run.stages if stage.status == "failed"), None)
    if stage is None:
        return ""
    failed_gates = [
        f"{esc(at(gate, 'measure'))} of {esc(at(gate, 'scope'))} <b>{number(at(gate, 'value'))}</b>, not above "
        f"{number(at(gate, 'above'))}"
        for gate in entries(run.pipeline, "stages", stage.name, "gates")
        if not at(gate, "passed")
    ]
    # A stage can fail one gate for each family; three are enough in a sentence.
    more = f" and {len(failed_gates) - 3} more" if len(failed_gates) > 3 else ""
    reason = f": its gates found {'; '.join(failed_gates[:3])}{more}" if failed_gates else ""
    return f"The run stopped at {esc(title(stage.name))}{reason}."


def sentences(run: Run) -> list[str]:
    """The result as HTML sentences: what stopped the run, the change by each stage, and the control."""
    return [text for text in (failure_sentence(run), *_findings(run)) if text]


def _findings(run: Run) -> list[str]:
    """The change by each stage, then the control. If there is neither: the newest scores."""
    texts: list[str] = []
    for stage in run.line:
        text = stage_sentence(run, stage, then=bool(texts))
        if text:
            texts.append(text)
    control = control_sentence(run)
    if texts or control:
        return texts + ([control] if control else [])
    for stage in reversed(run.line):
        for record in (stage.finals.get(run.primary or ""), *reversed(stage.evaluations)):
            parts = [
                f"{esc(area)} <b>{number(at(area_score, 'sampled', 'mean'))}</b>"
                for area, area_score in fields(record, "domains").items()
            ]
            if parts:
                return [
                    f"So far, in {esc(title(stage.name))}, held-out pass@1 is {listed(parts)}; nothing is compared yet."
                ]
    return ["Nothing has been evaluated yet."]
