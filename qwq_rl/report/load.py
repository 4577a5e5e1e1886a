"""Read a run folder (docs/contracts.md) into frozen records. What is not there yet is empty, never an error."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwq_rl.errors import RunStateError
from qwq_rl.report.markup import at, fields, finite, whole
from qwq_rl.run_folder.files import RunFolder, StageFolder, read_json, read_lines

Record = Mapping[str, Any]
"""One JSON object, as read from a file."""


@dataclass(frozen=True)
class Stage:
    """What the run folder holds of one stage."""

    name: str
    kind: str
    """sft, rl or reward_model; empty if the stage has not begun."""
    parent: str | None
    """The stage it continues from."""
    status: str
    """waiting, running, done or failed."""
    metrics: tuple[Record, ...]
    evaluations: tuple[Record, ...]
    """In order of update, all of one set: the one that was evaluated most often."""
    finals: Mapping[str, Record]
    """Set -> estimates of the stage's final checkpoint."""
    provenance: Record
    recipe: str
    """Text of resolved.yaml."""
    rollouts: tuple[Path, ...]
    entry: Record
    """The stage's entry in pipeline.json."""

    @property
    def updates(self) -> int:
        """Updates made so far."""
        return max((whole(line.get("update")) for line in (*self.metrics, *self.evaluations)), default=0)

    def seconds(self, clock: str) -> float | None:
        """Seconds of the whole stage (`clock` is wall or cpu): from pipeline.json, else from the last metrics line."""
        last = self.metrics[-1] if self.metrics else {}
        stage_seconds = finite(self.entry.get(f"{clock}_seconds"))
        return stage_seconds if stage_seconds else finite(last.get(f"{clock}_seconds"))


@dataclass(frozen=True)
class Run:
    """What the run folder holds of one run."""

    path: Path
    name: str
    stages: tuple[Stage, ...]
    line: tuple[Stage, ...]
    """The stages that lead to the released model, in order."""
    control: Stage | None
    control_of: str | None
    pipeline: Record
    summary: Record
    primary: str | None
    """The set that the page's main figures come from."""
    harder: str | None
    """The set whose prompts are harder than those of training."""

    def stage(self, name: str | None) -> Stage | None:
        """The stage of this name."""
        return next((stage for stage in self.stages if stage.name == name), None)


def seeds(path: Path) -> list[Path]:
    """Return the `seed-*` runs in a folder, by number. Empty if the folder itself is a run."""
    seed_folders = [child for child in path.glob("seed-*") if is_run(child)]
    # The length comes first, so that seed-10 follows seed-9.
    return sorted(seed_folders, key=lambda child: (len(child.name), child.name))


def is_run(path: Path) -> bool:
    """Whether a folder holds a pipeline's state or at least one stage."""
    return RunFolder(path).state.exists() or any(_is_stage(child) for child in _folders(path))


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []


def _is_stage(path: Path) -> bool:
    stage = StageFolder(path)
    return any(file.exists() for file in (stage.metrics, stage.provenance, stage.resolved, stage.done))


def require_run(path: Path) -> None:
    """Raise RunStateError if `path` is neither a run nor a folder of seeds. The message says what to give instead."""
    if is_run(path) or seeds(path):
        return
    if not path.exists():
        problem = f"{path}: no such folder"
    elif _is_stage(path):
        raise RunStateError(f"{path} is one stage; give the run's folder: qwq-rl report {path.parent}")
    else:
        problem = f"{path} is no run: it holds no pipeline.json, no stage with a metrics.jsonl and no seed-*/ of such"
    nearby = [child for child in (*_folders(path), *_folders(path.parent)) if is_run(child) or seeds(child)]
    hint = f"runs nearby: {', '.join(map(str, nearby[:5]))}" if nearby else "qwq-rl run RECIPE writes one under runs/"
    raise RunStateError(f"{problem}; {hint}")


def load_run(path: Path) -> Run:
    """Read one run. Raises RunStateError if `path` is not a run or one of its files is not JSON."""
    require_run(path)
    folder = RunFolder(path)
    pipeline, summary = read_json(folder.state) or {}, read_json(folder.summary) or {}
    names = list(fields(pipeline, "stages"))
    names += [child.name for child in _folders(path) if _is_stage(child) and child.name not in names]
    stages = tuple(_load_stage(folder, name, fields(pipeline, "stages", name), summary) for name in names)
    control, control_of = _control(stages, summary)
    release = at(summary, "release") or at(pipeline, "release")
    sets = list(dict.fromkeys(name for stage in stages for name in stage.finals))
    # No file says what a set is for, so its name decides.
    harder = next((name for name in sets if "hard" in name.lower()), None)
    not_harder = [name for name in sets if name != harder]
    primary = next((name for name in not_harder if name.endswith("final")), not_harder[0] if not_harder else None)
    resolved = path.resolve()
    folder_name = f"{resolved.parent.name}-{resolved.name}" if resolved.name.startswith("seed-") else resolved.name
    name = str(at(summary, "run") or folder_name)
    line = _release_line(stages, control, release)
    return Run(path, name, stages, line, control, control_of, pipeline, summary, primary, harder)


def _load_stage(run: RunFolder, name: str, entry: Record, summary: Record) -> Stage:
    folder = run.stage(name)
    metrics = _last_by(read_lines(folder.metrics), "update")
    provenance = read_json(folder.provenance) or {}
    recipe = folder.resolved.read_text(errors="replace") if folder.resolved.exists() else ""
    kind_line = re.search(r"^kind:\s*(\w+)", recipe, re.MULTILINE)
    kind = str(metrics[-1].get("kind") or "") if metrics else kind_line.group(1) if kind_line else ""
    # A stage that has begun says in its contract what it continues from; summary.json knows only finished stages.
    parent = at(provenance, "contract", "base") or at(summary, "stages", name, "against", "stage")
    evaluations = _of_main_set(read_lines(folder.evaluations))
    default_status = "done" if folder.done.exists() else "running" if metrics else "waiting"
    return Stage(
        name=name,
        kind=kind,
        parent=parent,
        status=str(entry.get("status") or default_status),
        metrics=metrics,
        evaluations=tuple(_on_training_clock(line, metrics) for line in evaluations),
        finals=_finals(run, name, summary),
        provenance=provenance,
        recipe=recipe,
        rollouts=tuple(sorted((folder.path / "rollouts").glob("update-*.jsonl"))),
        entry=entry,
    )


def _last_by(lines: Sequence[Record], key: str) -> tuple[Record, ...]:
    """Keep the last line of each value of `key`, sorted by it. A resumed stage may have written an update twice."""
    kept = {whole(line.get(key)): line for line in lines}
    return tuple(kept[value] for value in sorted(kept))


def _of_main_set(lines: Sequence[Record]) -> tuple[Record, ...]:
    names = [line.get("set") for line in lines]
    main_set = max(dict.fromkeys(names), key=names.count, default=None)
    return _last_by([line for line in lines if line.get("set") == main_set], "update")


def _on_training_clock(line: Record, metrics: Sequence[Record]) -> Record:
    """Set the evaluation's `cpu_seconds` to those of training at its update.

    The evaluation's own count includes the time of the evaluation itself.
    """
    update = finite(line.get("update")) or 0.0
    training_seconds = next(
        (metric.get("cpu_seconds") for metric in metrics if (finite(metric.get("update")) or 0.0) >= update), None
    )
    # The smaller one: a metrics line of a later update may have counted more than the evaluation itself.
    known_seconds = [
        value for value in (finite(training_seconds), finite(line.get("cpu_seconds"))) if value is not None
    ]
    return {**line, "cpu_seconds": min(known_seconds)} if known_seconds else line


def _finals(run: RunFolder, stage: str, summary: Record) -> dict[str, Record]:
    """Set -> estimates: from the files under evaluations/, and from summary.json for the sets without a file."""
    estimates: dict[str, Record] = {}
    for path in sorted((run.path / "evaluations" / stage).glob("*.json")):
        record = read_json(path) or {}
        estimates[str(record.get("set") or path.stem)] = record
    for name, record in fields(summary, "stages", stage, "sets").items():
        estimates.setdefault(name, record)
    return estimates


def _control(stages: Sequence[Stage], summary: Record) -> tuple[Stage | None, str | None]:
    """Return the control and the name of the stage it is compared with.

    summary.json names both. Without it, the control is the supervised stage with the same parent as an RL stage.
    """
    control_name, compared_name = at(summary, "control", "stage"), at(summary, "control", "of")
    for stage in stages:
        rl_siblings = [
            candidate.name
            for candidate in stages
            if candidate.kind == "rl" and stage.parent and candidate.parent == stage.parent
        ]
        if stage.name == control_name or (control_name is None and stage.kind == "sft" and rl_siblings):
            return stage, compared_name or (rl_siblings[0] if rl_siblings else None)
    return None, None


def _release_line(stages: Sequence[Stage], control: Stage | None, release: str | None) -> tuple[Stage, ...]:
    """Follow the parents back from the released stage, or else from the last policy stage (sft or rl)."""
    policies = [
        stage for stage in stages if stage.kind in ("sft", "rl") and (control is None or stage.name != control.name)
    ]
    current = next((stage for stage in policies if stage.name == release), policies[-1] if policies else None)
    if current is None:
        return ()
    # Nothing is known of parents yet: the stages in the pipeline's order are the best guess.
    if current.parent is None and not current.provenance:
        return tuple(policies)
    ancestry: list[Stage] = []
    # The second condition ends the loop if damaged files name parents in a circle.
    while current is not None and current not in ancestry:
        ancestry.insert(0, current)
        parent = current.parent
        current = next((stage for stage in stages if stage.name == parent), None)
    return tuple(ancestry)


def domains(runs: Sequence[Run]) -> list[str]:
    """Return the domain names, in the order in which the runs' evaluations and metrics name them."""
    lines = [line for run in runs for stage in run.stages for line in (*stage.finals.values(), *stage.evaluations)]
    lines += [line for run in runs for stage in run.stages for line in stage.metrics[:1]]
    return list(dict.fromkeys(str(name) for line in lines for name in fields(line, "domains")))


def families(runs: Sequence[Run]) -> list[str]:
    """Return the family names `DOMAIN/FAMILY`, domain by domain."""
    lines = [line for run in runs for stage in run.stages for line in (*stage.finals.values(), *stage.evaluations)]
    names = dict.fromkeys(str(name) for line in lines for name in fields(line, "families"))
    order = domains(runs)
    return sorted(
        names, key=lambda name: order.index(name.split("/")[0]) if name.split("/")[0] in order else len(order)
    )
