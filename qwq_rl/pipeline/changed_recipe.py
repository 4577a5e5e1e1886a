"""A recipe that changed under a run: say what changed, and set old results aside where a new start is wanted."""

from __future__ import annotations

import itertools
from pathlib import Path

from qwq_rl.config.recipe import difference, is_free, resolved_yaml
from qwq_rl.errors import RunStateError, UserError
from qwq_rl.pipeline.plan import PipelinePlan
from qwq_rl.pipeline.state import Record
from qwq_rl.pipeline.terminal import Board
from qwq_rl.run_folder.files import RunFolder, StageFolder, read_json


def refuse_edited(plan: PipelinePlan, folder: RunFolder, record: Record) -> None:
    """Raise RunStateError where a stage was trained, in whole or in part, by another recipe than there is now.

    Where only the lengthening by a gate tells them apart, `record` learns how often that was.
    """
    messages: dict[str, str] = {}
    for name in plan.names:
        for found in _trained_hashes(folder.stage(name)):
            times = plan.extension_of_hash(name, found)
            if times is None:
                if changes := _changes(plan, folder.stage(name), record):
                    messages[name] = _edited(plan, folder.stage(name), changes)
            elif times > record.stage(name)["extended"]:
                record.update(name, extended=times)
    if messages:
        advice = (
            f"Undo the change; or train anew what it touches: the same command with `--from {next(iter(messages))}`"
            " (old results are set aside); or keep both: `--name` with another name."
        )
        raise RunStateError("\n".join([*messages.values(), advice]))


def set_aside(plan: PipelinePlan, folder: RunFolder, record: Record, restart: str, board: Board) -> None:
    """Move a stage's results and those of all that need it to `STAGE.old-N`, unless this very restart is under way."""
    if restart not in plan.stages:
        raise UserError(f"--from {restart}: there is no such stage in {plan.folder}; there is {', '.join(plan.names)}")
    done = read_json(folder.stage(restart).done)
    if record.restart == restart and done is None:
        board.say(f"going on with the restart from {restart}; to begin it again, remove {folder.stage(restart).path}")
        return
    record.set_restart(restart)
    for name in plan.following(restart):
        moved = _move(folder, name)
        record.forget(name)
        if moved is not None:
            board.say(f"{name}: old results are in {moved}")


def _move(folder: RunFolder, name: str) -> Path | None:
    """Evaluations go last: an evaluation that outlives its stage is older than the next result and does not count."""
    stage, evaluations = folder.stage(name).path, folder.path / "evaluations" / name
    if not stage.exists():
        return None
    old = next(path for n in itertools.count(1) if not (path := stage.with_name(f"{name}.old-{n}")).exists())
    stage.rename(old)
    if evaluations.exists():
        evaluations.rename(old / "evaluations")
    return old


def _trained_hashes(stage: StageFolder) -> list[str]:
    """The hashes of the recipes by which the stage was begun and, if so, finished."""
    records = [read_json(stage.provenance), read_json(stage.done)]
    return [record["recipe_hash"] for record in records if record is not None]


def _changes(plan: PipelinePlan, stage: StageFolder, record: Record) -> str:
    """What is not as it was when the stage began; "" where it is not done and may go on with that."""
    if not stage.resolved.exists():
        return "(resolved.yaml is missing)"
    now = resolved_yaml(plan.extended(stage.name, record.stage(stage.name)["extended"]))
    changes = difference(stage.resolved.read_text(), now)
    return changes if stage.done.exists() or not is_free(changes) else ""


def _edited(plan: PipelinePlan, stage: StageFolder, changes: str) -> str:
    when = "finished" if stage.done.exists() else "began"
    lines = "\n".join(f"  {line}" for line in changes.splitlines())
    return f"{plan.folder / stage.name}.yaml, with its overrides, differs from what {stage.path} {when} with:\n{lines}"
