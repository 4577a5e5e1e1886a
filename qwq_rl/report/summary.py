"""The figures of a run on one page: `summary.json` (docs/contracts.md), from the files of its folder alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from qwq_rl.evals.estimates import compare
from qwq_rl.run_folder.files import RunFolder, read_json, read_lines

Evaluations = Mapping[str, Mapping[str, Any]]
"""The estimates of one stage, by set."""


def summarise(run: Path) -> dict[str, Any]:
    """Build `summary.json` of a run: every finished stage, compared with the one it continues from, and the control."""
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
        "agreement": next((line["agreement"] for line in released.values() if line.get("agreement")), None),
        "seconds": _seconds(run, state, stages),
    }


def summarise_seeds(runs: Sequence[Path]) -> dict[str, Any]:
    """Put the summaries of several seeds together: every figure as `{mean, least, most, values}`, one value a seed.

    The figure of an estimate is its mean. A seed that lacks a figure (its run stopped at a gate) has the value None.
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
    """The folder's name; for one of several seeds, `NAME-seed-S`."""
    folder = run.resolve()
    return f"{folder.parent.name}-{folder.name}" if folder.name.startswith("seed-") else folder.name


def finished_stages(run: Path) -> list[str]:
    """The stages that are done, in the pipeline's order, or by name where there is no pipeline."""
    state = read_json(RunFolder(run).state) or {}
    names = list(state.get("stages", {})) or sorted(path.parent.name for path in run.glob("*/done.json"))
    return [name for name in names if RunFolder(run).stage(name).done.exists()]


def recipe_of(run: Path, stage: str) -> dict[str, Any]:
    """The stage's recipe as it ran; empty where it was not kept."""
    path = RunFolder(run).stage(stage).resolved
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


def continues_from(run: Path, stage: str) -> str | None:
    """What the stage's `model.from` names: a stage of the run, a folder or a Hub id; None for a model from scratch."""
    source: str | None = (recipe_of(run, stage).get("model") or {}).get("from")
    return source


def _evaluations(run: Path, stage: str) -> dict[str, dict[str, Any]]:
    """The evaluations of the stage's final checkpoint, by set."""
    done = read_json(RunFolder(run).stage(stage).done) or {}
    folder = RunFolder(run).evaluation(stage, "any").parent
    lines = (read_json(path) for path in sorted(folder.glob("*.json")))
    return {line["set"]: line for line in lines if line and line["update"] == done["update"]}


def _stage(run: Path, name: str, evaluations: Mapping[str, Evaluations]) -> dict[str, Any]:
    done = read_json(RunFolder(run).stage(name).done) or {}
    before = continues_from(run, name)
    found: dict[str, Any] = {
        "cpu_seconds": done["cpu_seconds"],
        "wall_seconds": done["wall_seconds"],
        "updates": done["update"],
        "sets": {
            data_set: {"domains": line["domains"], "families": line["families"]}
            for data_set, line in evaluations[name].items()
        },
    }
    if before is not None and before in evaluations:
        found["against"] = {"stage": before, "sets": _differences(run, name, before, evaluations)}
    return found


def _differences(run: Path, a: str, b: str, evaluations: Mapping[str, Evaluations]) -> dict[str, Any]:
    """Stage a minus stage b on every set that both were evaluated on."""
    return {
        data_set: compare(_prompts(run, a, data_set), _prompts(run, b, data_set))
        for data_set in evaluations[a]
        if data_set in evaluations[b]
    }


def _prompts(run: Path, stage: str, data_set: str) -> list[dict[str, Any]]:
    return read_lines(RunFolder(run).evaluation(stage, data_set).with_suffix(".jsonl"))


def _control(run: Path, state: Mapping[str, Any], evaluations: Mapping[str, Evaluations]) -> dict[str, Any] | None:
    """The pipeline's control, where it and what it is the control of are done."""
    pipeline = Path(state.get("recipe") or "") / "pipeline.yaml"
    named = (yaml.safe_load(pipeline.read_text()) or {}).get("control") if pipeline.is_file() else None
    if not named or named["stage"] not in evaluations or named["of"] not in evaluations:
        return None
    stage, of = named["stage"], named["of"]
    cpu_seconds = [(read_json(RunFolder(run).stage(name).done) or {})["cpu_seconds"] for name in (stage, of)]
    return {"stage": stage, "of": of, "cpu_seconds": cpu_seconds, "sets": _differences(run, of, stage, evaluations)}


def _seconds(run: Path, state: Mapping[str, Any], stages: Sequence[str]) -> dict[str, float]:
    """What the run cost: the time in which at least one of its processes ran, and the CPU time of all of them."""
    jobs = state.get("jobs", [])
    if not jobs:
        done = [read_json(RunFolder(run).stage(name).done) or {} for name in stages]
        return {kind: math.fsum(one[f"{kind}_seconds"] for one in done) for kind in ("wall", "cpu")}
    wall, until = 0.0, -math.inf
    for started, finished in sorted((job["started"], job["finished"]) for job in jobs):
        wall += max(0.0, finished - max(started, until))
        until = max(until, finished)
    return {"wall": wall, "cpu": math.fsum(job["cpu_seconds"] for job in jobs)}


def _across(values: Sequence[Any]) -> Any:
    """The same place of several summaries: numbers become one figure, dictionaries are entered, texts must agree."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    if all(isinstance(value, Mapping) for value in known):
        if all("mean" in value for value in known):
            return _figure([value and value["mean"] for value in values])
        keys: Iterable[str] = dict.fromkeys(key for value in known for key in value)
        return {key: _across([value.get(key) if value else None for value in values]) for key in keys}
    if all(isinstance(value, list) for value in known):
        return [_across([value[at] if value else None for value in values]) for at in range(len(known[0]))]
    if all(isinstance(value, int | float) for value in known):
        return _figure(values)
    return known[0]


def _figure(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {"mean": math.fsum(known) / len(known), "least": min(known), "most": max(known), "values": list(values)}
