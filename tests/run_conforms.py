"""Whether every record of a run folder is what docs/contracts.md says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conforms import conforms

from qwq_rl.run_folder import schema
from qwq_rl.run_folder.files import RunFolder, StageFolder


def departures(run: Path) -> list[str]:
    """Return every place at which a record of the run departs from its schema, and every record that is missing."""
    folder = RunFolder(run)
    found = [*_file(folder.state, schema.PipelineState), *_file(folder.summary, schema.Summary)]
    for done in sorted(run.glob("*/done.json")):
        found += _stage(StageFolder(done.parent))
    for path in sorted((run / "evaluations").glob("*/*.json")):
        found += _file(path, schema.Evaluation)
        found += _lines(path.with_suffix(".jsonl"), schema.EvaluationPrompt)
    return found


def _stage(folder: StageFolder) -> Iterator[str]:
    """The records of a finished stage."""
    yield from _file(folder.done, schema.Done)
    yield from _file(folder.provenance, schema.Provenance)
    kind = json.loads(folder.metrics.read_text().split("\n")[0])["kind"]
    yield from _lines(folder.metrics, schema.RlMetrics if kind == "rl" else schema.SupervisedMetrics)
    if folder.evaluations.exists():
        yield from _lines(folder.evaluations, schema.EvaluationLine)
    rollouts = sorted(folder.rollouts(0).parent.glob("update-*.jsonl"))
    if kind == "rl" and not rollouts:
        yield f"{folder.path}: no rollouts"
    for path in rollouts:
        yield from _lines(path, schema.RolloutRecord)


def _file(path: Path, schema: Any) -> Iterator[str]:
    if path.exists():
        yield from (f"{path}: {what}" for what in conforms(json.loads(path.read_text()), schema))
    else:
        yield f"{path}: missing"


def _lines(path: Path, schema: Any) -> Iterator[str]:
    if not path.exists():
        yield f"{path}: missing"
        return
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        yield from (f"{path}:{number}: {what}" for what in conforms(json.loads(line), schema))
