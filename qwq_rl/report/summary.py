"""Build `summary.json` (docs/contracts.md): the figures of a run, from the files of its folder alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from qwq_rl.evals.estimates import compare
from qwq_rl.run_folder.files import RunFolder, read_json, read_lines

Evaluations = Mapping[str, Mapping[str, Any]]
"""Set -> the estimates of one stage."""


def summarise(run: Path) -> dict[str, Any]:
    """Build `summary.json` of a run: each finished stage, compared with the one it continues from, and the control."""
    state = read_json(RunFolder(run).state) or {}
    stages = finished_stages(run)
    evaluations = {name: _evaluations(run, name) for name in stages}
    release = state.get("release")
    released = evaluations.get(release or "", {})
    return {
        "run": run_name(run),
        "recipe": state.get("recipe"),
        "seed": state.get("seed", recipe_of(run, stages[0]).get("seed") if stages else None),
        "release": release,
        "stages": {name: _stage(run, name, evaluations) for name in stages},
        "control": _control(run, state, evaluations),
        "agreement": next(
            (evaluation["agreement"] for evaluation in released.values() if evaluation.get("agreement")), None
        ),
        "seconds": _seconds(run, state, stages),
    }


def summarise_seeds(runs: Sequence[Path]) -> dict[str, Any]:
    """Join the summaries of several seeds: each figure becomes `{mean, least, most, values}`, one value for each seed.

    The figure of an estimate is its mean. A seed without a figure (its run stopped at a gate) has the value None.
    """
    summaries = [summarise(run) for run in runs]
    return {
        "recipe": summaries[0]["recipe"],
        "release": summaries[0]["release"],
        "seeds": [summary["seed"] for summary in summaries],
        "runs": [summary["run"] for summary in summaries],
        **{
            part: _across([summary[part] for summary in summaries])
            for part in ("stages", "control", "agreement", "seconds")
        },
    }


def run_name(run: Path) -> str:
    """The name of the folder; for one of several seeds `NAME-seed-S`."""
    folder = run.resolve()
    return f"{folder.parent.name}-{folder.name}" if folder.name.startswith("seed-") else folder.name


def finished_stages(run: Path) -> list[str]:
    """The stages that are done, in the order of the pipeline, or sorted by name without a pipeline."""
    state = read_json(RunFolder(run).state) or {}
    names = list(state.get("stages", {})) or sorted(path.parent.name for path in run.glob("*/done.json"))
    return [name for name in names if RunFolder(run).stage(name).done.exists()]


def recipe_of(run: Path, stage: str) -> dict[str, Any]:
    """The recipe of the stage as it ran; empty if there is no resolved.yaml."""
    path = RunFolder(run).stage(stage).resolved
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


def continues_from(run: Path, stage: str) -> str | None:
    """The stage's `model.from`: a stage of the run, a folder or a Hub id; None for a model from scratch."""
    source: str | None = (recipe_of(run, stage).get("model") or {}).get("from")
    return source


def _evaluations(run: Path, stage: str) -> dict[str, dict[str, Any]]:
    """Set -> evaluation of the stage's final checkpoint."""
    done = read_json(RunFolder(run).stage(stage).done) or {}
    folder = RunFolder(run).evaluation(stage, "any").parent
    evaluations = (read_json(path) for path in sorted(folder.glob("*.json")))
    # A stage that was lengthened may still have evaluations of its earlier, shorter training.
    return {
        evaluation["set"]: evaluation
        for evaluation in evaluations
        if evaluation and evaluation["update"] == done["update"]
    }


def _stage(run: Path, name: str, evaluations: Mapping[str, Evaluations]) -> dict[str, Any]:
    done = read_json(RunFolder(run).stage(name).done) or {}
    base = continues_from(run, name)
    figures: dict[str, Any] = {
        "cpu_seconds": done["cpu_seconds"],
        "wall_seconds": done["wall_seconds"],
        "updates": done["update"],
        "sets": {
            data_set: {"domains": evaluation["domains"], "families": evaluation["families"]}
            for data_set, evaluation in evaluations[name].items()
        },
    }
    if base is not None and base in evaluations:
        figures["against"] = {"stage": base, "sets": _differences(run, name, base, evaluations)}
    return figures


def _differences(run: Path, stage: str, base: str, evaluations: Mapping[str, Evaluations]) -> dict[str, Any]:
    """`stage` minus `base`, on every set that both were evaluated on."""
    return {
        data_set: compare(_prompts(run, stage, data_set), _prompts(run, base, data_set))
        for data_set in evaluations[stage]
        if data_set in evaluations[base]
    }


def _prompts(run: Path, stage: str, data_set: str) -> list[dict[str, Any]]:
    return read_lines(RunFolder(run).evaluation(stage, data_set).with_suffix(".jsonl"))


def _control(run: Path, state: Mapping[str, Any], evaluations: Mapping[str, Evaluations]) -> dict[str, Any] | None:
    """The control of the pipeline and the stage it is compared with; None until both are done."""
    pipeline = Path(state.get("recipe") or "") / "pipeline.yaml"
    entry = (yaml.safe_load(pipeline.read_text()) or {}).get("control") if pipeline.is_file() else None
    if not entry or entry["stage"] not in evaluations or entry["of"] not in evaluations:
        return None
    control, compared = entry["stage"], entry["of"]
    cpu_seconds = [(read_json(RunFolder(run).stage(name).done) or {})["cpu_seconds"] for name in (control, compared)]
    return {
        "stage": control,
        "of": compared,
        "cpu_seconds": cpu_seconds,
        "sets": _differences(run, compared, control, evaluations),
    }


def _seconds(run: Path, state: Mapping[str, Any], stages: Sequence[str]) -> dict[str, float]:
    """What the run cost: `wall`, the time in which at least one process ran; `cpu`, the CPU time of all of them."""
    jobs = state.get("jobs", [])
    if not jobs:
        done = [read_json(RunFolder(run).stage(name).done) or {} for name in stages]
        return {kind: math.fsum(record[f"{kind}_seconds"] for record in done) for kind in ("wall", "cpu")}
    # Jobs overlap when several run at once: add only the part of each after the end of all earlier ones.
    wall, covered_until = 0.0, -math.inf
    for started, finished in sorted((job["started"], job["finished"]) for job in jobs):
        wall += max(0.0, finished - max(started, covered_until))
        covered_until = max(covered_until, finished)
    return {"wall": wall, "cpu": math.fsum(job["cpu_seconds"] for job in jobs)}


def _across(values: Sequence[Any]) -> Any:
    """Join the values at the same place of several summaries.

    Numbers become one figure, dictionaries and lists are joined entry by entry, texts must agree (the first is taken).
    """
    present = [value for value in values if value is not None]
    if not present:
        return None
    if all(isinstance(value, Mapping) for value in present):
        if all("mean" in value for value in present):
            return _figure([value and value["mean"] for value in values])
        keys: Iterable[str] = dict.fromkeys(key for value in present for key in value)
        return {key: _across([value.get(key) if value else None for value in values]) for key in keys}
    if all(isinstance(value, list) for value in present):
        return [
            _across([value[position] if value else None for value in values]) for position in range(len(present[0]))
        ]
    # The whole list, not only what is present: each seed keeps its place among the values.
    if all(isinstance(value, int | float) for value in present):
        return _figure(values)
    return present[0]


def _figure(values: Sequence[float | None]) -> dict[str, Any]:
    present = [value for value in values if value is not None]
    return {
        "mean": math.fsum(present) / len(present),
        "least": min(present),
        "most": max(present),
        "values": list(values),
    }
