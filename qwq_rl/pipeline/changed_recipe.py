"""What happens if a recipe changed after training: refuse to go on, or set old results aside (`--from`)."""

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
    """Raise RunStateError if a stage was trained, completely or in part, with another recipe than the present one.

    If the two differ only because a gate lengthened the stage, write into `record` how often it did.
    """
    messages: dict[str, str] = {}
    for name in plan.names:
        for trained_hash in _trained_hashes(folder.stage(name)):
            times = plan.extension_of_hash(name, trained_hash)
            if times is None:
                if changes := _changes(plan, folder.stage(name), record):
                    messages[name] = _describe_edit(plan, folder.stage(name), changes)
            elif times > record.stage(name)["extended"]:
                record.update(name, extended=times)
    if messages:
        advice = (
            f"Undo the change; or train anew what it touches: the same command with `--from {next(iter(messages))}`"
            " (old results are set aside); or keep both: `--name` with another name."
        )
        raise RunStateError("\n".join([*messages.values(), advice]))


def set_aside(plan: PipelinePlan, folder: RunFolder, record: Record, restart: str, board: Board) -> None:
    """Move the results of a stage and of all that need it to `STAGE.old-N`.

    Do nothing if this restart was begun before and the stage is not done yet: then the run goes on with it.
    """
    if restart not in plan.stages:
        raise UserError(f"--from {restart}: there is no such stage in {plan.folder}; there is {', '.join(plan.names)}")
    done = read_json(folder.stage(restart).done)
    if record.restart == restart and done is None:
        board.say(f"going on with the restart from {restart}; to begin it again, remove {folder.stage(restart).path}")
        return
    record.set_restart(restart)
    # The restarted stage itself comes last: as long as its done.json is there, a killed restart is begun again.
    for name in plan.following(restart):
        moved = _move_aside(folder, name)
        record.forget(name)
        if moved is not None:
            board.say(f"{name}: old results are in {moved}")


def _move_aside(folder: RunFolder, name: str) -> Path | None:
    """Move the folder of a stage and its evaluations. Returns the new folder, or None if the stage has none.

    Evaluations go last: if a kill leaves them behind, they are older than the next result and do not count.
    """
    stage, evaluations = folder.stage(name).path, folder.path / "evaluations" / name
    if not stage.exists():
        return None
    target = next(
        path for number in itertools.count(1) if not (path := stage.with_name(f"{name}.old-{number}")).exists()
    )
    stage.rename(target)
    if evaluations.exists():
        evaluations.rename(target / "evaluations")
    return target


def _trained_hashes(stage: StageFolder) -> list[str]:
    """The hashes of the recipes with which the stage was begun and, if it is done, finished."""
    records = [read_json(stage.provenance), read_json(stage.done)]
    return [record["recipe_hash"] for record in records if record is not None]


def _changes(plan: PipelinePlan, stage: StageFolder, record: Record) -> str:
    """What differs from the recipe that the stage began with; "" if it is not done and may go on with the changes."""
    if not stage.resolved.exists():
        return "(resolved.yaml is missing)"
    now = resolved_yaml(plan.extended(stage.name, record.stage(stage.name)["extended"]))
    changes = difference(stage.resolved.read_text(), now)
    return changes if stage.done.exists() or not is_free(changes) else ""


def _describe_edit(plan: PipelinePlan, stage: StageFolder, changes: str) -> str:
    verb = "finished" if stage.done.exists() else "began"
    lines = "\n".join(f"  {line}" for line in changes.splitlines())
    return f"{plan.folder / stage.name}.yaml, with its overrides, differs from what {stage.path} {verb} with:\n{lines}"
