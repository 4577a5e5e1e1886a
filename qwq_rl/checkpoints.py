"""Which checkpoints of a stage are whole, and cutting a stage's records back to one of them.

The trainer saves in place, so a kill can leave half a checkpoint. A checkpoint counts only with its COMPLETE file,
which is written last.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qwq_rl.runfolder import StageFolder, read_json, read_lines, write_json, write_lines

COMPLETE = "COMPLETE"


def update_of(checkpoint: Path) -> int:
    """The number in `checkpoint-N`."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def saved(folder: StageFolder) -> list[Path]:
    """Every `checkpoint-N` of a stage, whole or not, oldest first."""
    if not folder.checkpoints.is_dir():
        return []
    found = [path for path in folder.checkpoints.iterdir() if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=update_of)


def mark_complete(checkpoint: Path, progress: Mapping[str, Any]) -> None:
    """Declare a checkpoint whole; `progress` is what a resumed process needs to know (CPU and wall seconds)."""
    write_json(checkpoint / COMPLETE, progress)


def progress_of(checkpoint: Path) -> dict[str, Any]:
    """What `mark_complete` wrote."""
    return read_json(checkpoint / COMPLETE) or {}


def whole(folder: StageFolder) -> list[Path]:
    """The whole checkpoints of a stage, oldest first."""
    return [path for path in saved(folder) if (path / COMPLETE).exists()]


def newest_complete(folder: StageFolder) -> Path | None:
    """The newest whole checkpoint, or None."""
    return next(reversed(whole(folder)), None)


def drop_old(folder: StageFolder, keep: int) -> None:
    """Remove all whole checkpoints but the newest `keep`. The mark goes first: a kill must not leave a half with it."""
    for path in whole(folder)[:-keep]:
        (path / COMPLETE).unlink()
        shutil.rmtree(path)


def cut_back(folder: StageFolder) -> None:
    """Remove half checkpoints, and drop everything recorded after the newest whole one: it will be made again."""
    resume = newest_complete(folder)
    update = update_of(resume) if resume else 0
    for path in saved(folder):
        if not (path / COMPLETE).exists():
            shutil.rmtree(path)

    def kept(path: Path, keep: Callable[[int], bool]) -> None:
        lines = read_lines(path)
        if path.exists():
            write_lines(path, [line for line in lines if keep(line["update"])])

    if update == 0:
        # Measured on the first round, which may be another one now.
        (folder.path / "preference.json").unlink(missing_ok=True)
    kept(folder.metrics, lambda at: at <= update)
    kept(folder.evaluations, lambda at: at <= update and (at > 0 or update > 0))
    for path in (folder.path / "rollouts").glob("update-*.jsonl"):
        if int(path.stem.removeprefix("update-")) > update:
            path.unlink()
