"""A run folder (docs/contracts.md) read into frozen records; whatever is not there yet is empty, never an error."""

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


@dataclass(frozen=True)
class Stage:
    """What is known of one stage."""

    name: str
    kind: str
    """sft, rl, reward_model; empty where the stage has not begun."""
    parent: str | None
    """The stage it continues from."""
    status: str
    """waiting, running, done, failed."""
    metrics: tuple[Record, ...]
    evaluations: tuple[Record, ...]
    """In order of update, of one set: the one evaluated most often."""
    finals: Mapping[str, Record]
    """Set -> estimates of the stage's checkpoint."""
    provenance: Record
    recipe: str
    """Text of resolved.yaml."""
    rollouts: tuple[Path, ...]
    entry: Record
    """The stage's entry of pipeline.json."""

    @property
    def updates(self) -> int:
        """Updates made so far."""
        return max((whole(line.get("update")) for line in (*self.metrics, *self.evaluations)), default=0)

    def seconds(self, clock: str) -> float | None:
        """Wall or CPU seconds (`clock` is wall or cpu) of the whole stage: pipeline.json's, else the last metric's."""
        last = self.metrics[-1] if self.metrics else {}
        known = finite(self.entry.get(f"{clock}_seconds"))
        return known if known else finite(last.get(f"{clock}_seconds"))


@dataclass(frozen=True)
class Run:
    """What is known of one run."""

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
    """The set the claims are made on."""
    harder: str | None
    """The split that is harder than training."""

    def stage(self, name: str | None) -> Stage | None:
        """The stage of this name."""
        return next((stage for stage in self.stages if stage.name == name), None)


def seeds(path: Path) -> list[Path]:
    """The `seed-*` runs of a folder, by number; empty where the folder is a run of its own."""
    found = [child for child in path.glob("seed-*") if is_run(child)]
    return sorted(found, key=lambda child: (len(child.name), child.name))


def is_run(path: Path) -> bool:
    """Whether a folder holds a pipeline's state or at least one stage."""
    return RunFolder(path).state.exists() or any(_is_stage(child) for child in _folders(path))


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []


def _is_stage(path: Path) -> bool:
    stage = StageFolder(path)
    return any(file.exists() for file in (stage.metrics, stage.provenance, stage.resolved, stage.done))


def require_run(path: Path) -> None:
    """Raise RunStateError saying what to give instead, where `path` is neither a run nor a folder of seeds."""
    if is_run(path) or seeds(path):
        return
    if not path.exists():
        problem = f"{path}: no such folder"
    elif _is_stage(path):
        raise RunStateError(f"{path} is one stage; give the run's folder: qwq-rl report {path.parent}")
    else:
        problem = f"{path} is no run: it holds no pipeline.json, no stage with a metrics.jsonl and no seed-*/ of such"
    near = [child for child in (*_folders(path), *_folders(path.parent)) if is_run(child) or seeds(child)]
    hint = f"runs nearby: {', '.join(map(str, near[:5]))}" if near else "qwq-rl run RECIPE writes one under runs/"
    raise RunStateError(f"{problem}; {hint}")


def load_run(path: Path) -> Run:
    """Read one run; raises RunStateError where `path` is no run or a file of it is not JSON."""
    require_run(path)
    folder = RunFolder(path)
    pipeline, summary = read_json(folder.state) or {}, read_json(folder.summary) or {}
    names = list(fields(pipeline, "stages"))
    names += [child.name for child in _folders(path) if _is_stage(child) and child.name not in names]
    stages = tuple(_load_stage(folder, name, fields(pipeline, "stages", name), summary) for name in names)
    control, control_of = _control(stages, summary)
    release = at(summary, "release") or at(pipeline, "release")
    sets = list(dict.fromkeys(name for stage in stages for name in stage.finals))
    harder = next((name for name in sets if "hard" in name.lower()), None)
    plain = [name for name in sets if name != harder]
    primary = next((name for name in plain if name.endswith("final")), plain[0] if plain else None)
    place = path.resolve()
    folder_name = f"{place.parent.name}-{place.name}" if place.name.startswith("seed-") else place.name
    name = str(at(summary, "run") or folder_name)
    line = _line(stages, control, release)
    return Run(path, name, stages, line, control, control_of, pipeline, summary, primary, harder)


def _load_stage(run: RunFolder, name: str, entry: Record, summary: Record) -> Stage:
    folder = run.stage(name)
    metrics = _once(read_lines(folder.metrics), "update")
    provenance = read_json(folder.provenance) or {}
    recipe = folder.resolved.read_text(errors="replace") if folder.resolved.exists() else ""
    written = re.search(r"^kind:\s*(\w+)", recipe, re.MULTILINE)
    kind = str(metrics[-1].get("kind") or "") if metrics else written.group(1) if written else ""
    parent = at(provenance, "contract", "base") or at(summary, "stages", name, "against", "stage")
    evaluations = _main_set(read_lines(folder.evaluations))
    default = "done" if folder.done.exists() else "running" if metrics else "waiting"
    return Stage(
        name=name,
        kind=kind,
        parent=parent,
        status=str(entry.get("status") or default),
        metrics=metrics,
        evaluations=tuple(_on_training_clock(line, metrics) for line in evaluations),
        finals=_finals(run, name, summary),
        provenance=provenance,
        recipe=recipe,
        rollouts=tuple(sorted((folder.path / "rollouts").glob("update-*.jsonl"))),
        entry=entry,
    )


def _once(lines: Sequence[Record], key: str) -> tuple[Record, ...]:
    """The last line of each value of `key`, in order: a resumed stage may have written one twice."""
    kept = {whole(line.get(key)): line for line in lines}
    return tuple(kept[value] for value in sorted(kept))


def _main_set(lines: Sequence[Record]) -> tuple[Record, ...]:
    names = [line.get("set") for line in lines]
    chosen = max(dict.fromkeys(names), key=names.count, default=None)
    return _once([line for line in lines if line.get("set") == chosen], "update")


def _on_training_clock(line: Record, metrics: Sequence[Record]) -> Record:
    """The evaluation with the training's CPU seconds at its update: its own count includes the evaluation itself."""
    update = finite(line.get("update")) or 0.0
    clock = next((one.get("cpu_seconds") for one in metrics if (finite(one.get("update")) or 0.0) >= update), None)
    seconds = [value for value in (finite(clock), finite(line.get("cpu_seconds"))) if value is not None]
    return {**line, "cpu_seconds": min(seconds)} if seconds else line


def _finals(run: RunFolder, stage: str, summary: Record) -> dict[str, Record]:
    """Set -> estimates: the files under evaluations/, and what summary.json has beyond them."""
    found: dict[str, Record] = {}
    for path in sorted((run.path / "evaluations" / stage).glob("*.json")):
        record = read_json(path) or {}
        found[str(record.get("set") or path.stem)] = record
    for name, record in fields(summary, "stages", stage, "sets").items():
        found.setdefault(name, record)
    return found


def _control(stages: Sequence[Stage], summary: Record) -> tuple[Stage | None, str | None]:
    """The control and the stage it stands beside: as summary.json says, else a supervised sibling of an RL stage."""
    named, of = at(summary, "control", "stage"), at(summary, "control", "of")
    for stage in stages:
        rivals = [
            other.name for other in stages if other.kind == "rl" and stage.parent and other.parent == stage.parent
        ]
        if stage.name == named or (named is None and stage.kind == "sft" and rivals):
            return stage, of or (rivals[0] if rivals else None)
    return None, None


def _line(stages: Sequence[Stage], control: Stage | None, release: str | None) -> tuple[Stage, ...]:
    """Follow the parents back from the released stage, or from the last policy stage that has begun."""
    begun = [s for s in stages if s.kind in ("sft", "rl") and (control is None or s.name != control.name)]
    current = next((s for s in begun if s.name == release), begun[-1] if begun else None)
    if current is None:
        return ()
    if current.parent is None and not current.provenance:
        return tuple(begun)
    line: list[Stage] = []
    while current is not None and current not in line:
        line.insert(0, current)
        parent = current.parent
        current = next((s for s in stages if s.name == parent), None)
    return tuple(line)


def domains(runs: Sequence[Run]) -> list[str]:
    """Domain names in the order in which the runs' evaluations and training name them."""
    lines = [line for run in runs for stage in run.stages for line in (*stage.finals.values(), *stage.evaluations)]
    lines += [line for run in runs for stage in run.stages for line in stage.metrics[:1]]
    return list(dict.fromkeys(str(name) for line in lines for name in fields(line, "domains")))


def families(runs: Sequence[Run]) -> list[str]:
    """Family names `DOMAIN/FAMILY`, domain by domain."""
    lines = [line for run in runs for stage in run.stages for line in (*stage.finals.values(), *stage.evaluations)]
    found = dict.fromkeys(str(name) for line in lines for name in fields(line, "families"))
    order = domains(runs)
    return sorted(
        found, key=lambda name: order.index(name.split("/")[0]) if name.split("/")[0] in order else len(order)
    )
