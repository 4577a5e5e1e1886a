"""Finds the whole checkpoints of a stage, and cuts the stage's records back to the newest one.

The trainer saves in place, so a kill can leave half a checkpoint. A checkpoint counts only with its COMPLETE file. That
file is written last, when everything else is on the disk, and lists the size of every file. If a crash of the machine
loses a file or a part of one, the checkpoint no longer counts, and the one before it is used.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwq_rl.errors import RunStateError, UserError
from qwq_rl.run_folder.files import StageFolder, read_json, read_lines, write_json, write_lines

COMPLETE = "COMPLETE"
PARTIAL = "final.partial"
"""The name of a stage's result while it is being written."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SAYS_NO_ROOM = (*map(os.strerror, _NO_ROOM), "inline_container.cc", "PytorchStreamWriter failed")
"""Texts of errors that have no errno: safetensors quotes the system; torch names its writer's failed check."""


class DiskFull(UserError):
    """A stage could not write its files because the disk is full. Its last whole checkpoint is unchanged."""

    exit_status = 1


def update_of(checkpoint: Path) -> int:
    """The number in `checkpoint-N`."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def saved(folder: StageFolder) -> list[Path]:
    """Every `checkpoint-N` of a stage, whole or not, oldest first."""
    if not folder.checkpoints.is_dir():
        return []
    checkpoints = [path for path in folder.checkpoints.iterdir() if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(checkpoints, key=update_of)


def mark_complete(checkpoint: Path, progress: Mapping[str, Any]) -> None:
    """Flush a checkpoint to disk, then mark it as whole. `progress` is what a resumed process needs to know.

    One process calls this after every process has written its files; the caller provides the barrier. A file that is
    written later is not in the list, so its loss would not be noticed. Raises OSError if the disk fails or is full.
    """
    files = {}
    for path in _files(checkpoint):
        to_disk(path)
        files[path.relative_to(checkpoint).as_posix()] = path.stat().st_size
    # The folders too: a new file survives a crash only if the folder that names it is on the disk.
    for path in (*(path for path in checkpoint.rglob("*") if path.is_dir()), checkpoint, checkpoint.parent):
        to_disk(path)
    write_json(checkpoint / COMPLETE, {**progress, "files": files})
    to_disk(checkpoint)


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path != checkpoint / COMPLETE)


def to_disk(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk, so that they survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def progress_of(checkpoint: Path) -> dict[str, Any]:
    """The `progress` that `mark_complete` was given."""
    return {key: value for key, value in (read_json(checkpoint / COMPLETE) or {}).items() if key != "files"}


def damage_of(checkpoint: Path) -> str | None:
    """Say why a checkpoint is not whole; None if it is. Another process may remove it meanwhile."""
    try:
        return _damage_of(checkpoint)
    except RunStateError:
        return f"its {COMPLETE} cannot be read"
    except FileNotFoundError as error:
        return f"{error.filename} is gone"


def _damage_of(checkpoint: Path) -> str | None:
    mark = read_json(checkpoint / COMPLETE)
    if mark is None:
        return f"it has no {COMPLETE}"
    for name, size in mark.get("files", {}).items():  # marks of older versions have no list
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, and {size} were written"
    return None


def whole(folder: StageFolder) -> list[Path]:
    """The whole checkpoints of a stage, oldest first."""
    return [path for path in saved(folder) if damage_of(path) is None]


def newest_complete(folder: StageFolder) -> Path | None:
    """The newest whole checkpoint, or None."""
    return next(reversed(whole(folder)), None)


def drop_old(folder: StageFolder, keep: int) -> None:
    """Remove all whole checkpoints but the newest `keep`."""
    for path in whole(folder)[:-keep]:
        # The mark goes first: a kill must not leave half a checkpoint that is marked as whole.
        (path / COMPLETE).unlink()
        shutil.rmtree(path)


def cut_back(folder: StageFolder) -> None:
    """Remove checkpoints that are not whole, and all records after the newest whole one: they will be made again.

    Unfinished files that a kill left are removed too. Prints a line for each checkpoint that was marked as whole but is
    damaged now.
    """
    resume = newest_complete(folder)
    update = update_of(resume) if resume else 0
    for path in saved(folder):
        damage = damage_of(path)
        if damage and (path / COMPLETE).exists():
            print(f"{path} is damaged ({damage}): it is removed, and what came after {_point(resume)} is made again")
        if damage:
            shutil.rmtree(path)
    for path in (*folder.path.glob(".*"), *(folder.path / "rollouts").glob(".*")):
        if re.fullmatch(r"\..+\.\d+", path.name):  # temporary files of `_write_atomically` and `verdict_log`
            path.unlink()

    shutil.rmtree(folder.checkpoints / PARTIAL, ignore_errors=True)

    def keep_lines(path: Path, keep: Callable[[int], bool]) -> None:
        lines = read_lines(path)
        if path.exists():
            write_lines(path, [line for line in lines if keep(line["update"])])

    if update == 0:
        # The reward model's scale is measured on the first round, and the new first round may differ.
        (folder.path / "preference.json").unlink(missing_ok=True)
    keep_lines(folder.metrics, lambda line_update: line_update <= update)
    # An evaluation at update 0 is before the first step: a stage that starts anew makes it again.
    keep_lines(folder.evaluations, lambda line_update: line_update <= update and (line_update > 0 or update > 0))
    for path in (folder.path / "rollouts").glob("update-*.jsonl"):
        if int(path.stem.removeprefix("update-")) > update:
            path.unlink()


def _point(checkpoint: Path | None) -> str:
    return checkpoint.name if checkpoint else "its start"


@contextmanager
def told_when_full(folder: StageFolder) -> Iterator[None]:
    """Turn any error inside the block that means "no room to write" into DiskFull, with one message.

    Incomplete checkpoints are removed then: they are of no use, and their space may be all that is missing. Any other
    error passes unchanged.
    """
    try:
        yield
    except Exception as error:
        why = _no_room(error)
        if why is None:
            raise
        free = shutil.disk_usage(next(path for path in (folder.path, *folder.path.parents) if path.exists())).free
        for path in (*saved(folder), folder.checkpoints / PARTIAL):
            if path.is_dir() and not (path / COMPLETE).exists():
                shutil.rmtree(path, ignore_errors=True)
        raise DiskFull(
            f"{folder.path}: the disk is full ({why}; {free / 1e6:,.1f} MB were free). Make room there and run the "
            f"same command again: it goes on from {_point(newest_complete(folder))}, which is as it was"
        ) from error


def _no_room(error: BaseException) -> str | None:
    """Return the text of the first error in the chain of causes of `error` that means a full disk, or None."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    # An errno is certain, so the whole chain is searched for one before any text is compared.
    for current in chain:
        if isinstance(current, OSError) and current.errno in _NO_ROOM:
            return str(current)
    for current in chain:
        if any(words in str(current) for words in _SAYS_NO_ROOM):
            return str(current).splitlines()[0]
    return None
