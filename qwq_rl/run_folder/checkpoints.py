"""Which checkpoints of a stage are whole, and cutting a stage's records back to one of them.

The trainer saves in place, so a kill can leave half a checkpoint. A checkpoint counts only with its COMPLETE file,
which is written last, once everything else is on the disk, and which says what every file's size is: a checkpoint that
lost a file, or a part of one, to a crash of the machine counts no more, and the one before it is used.
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
"""What a stage's result is called while it is being written."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SAYS_NO_ROOM = (*map(os.strerror, _NO_ROOM), "inline_container.cc", "PytorchStreamWriter failed")
"""How an error without an errno says it: safetensors in words, and torch by where its writer's check failed."""


class DiskFull(UserError):
    """A stage could not write what it has to; its last whole checkpoint is as it was."""

    exit_status = 1


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
    """Make a checkpoint durable, then declare it whole; `progress` is what a resumed process needs to know.

    One process calls it when every process has written its files (a barrier before it is the caller's): what is
    written later is not in the list of files, so nobody would miss it. Raises OSError where the disk gives no more.
    """
    files = {}
    for path in _files(checkpoint):
        to_disk(path)
        files[path.relative_to(checkpoint).as_posix()] = path.stat().st_size
    for path in (*(path for path in checkpoint.rglob("*") if path.is_dir()), checkpoint, checkpoint.parent):
        to_disk(path)
    write_json(checkpoint / COMPLETE, {**progress, "files": files})
    to_disk(checkpoint)


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path != checkpoint / COMPLETE)


def to_disk(path: Path) -> None:
    """Let a file, or the names in a folder, survive a loss of power from here on."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def progress_of(checkpoint: Path) -> dict[str, Any]:
    """What `mark_complete` was given."""
    return {key: value for key, value in (read_json(checkpoint / COMPLETE) or {}).items() if key != "files"}


def damage_of(checkpoint: Path) -> str | None:
    """Why a checkpoint is not whole, in words; None if it is. Another process may be removing it meanwhile."""
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
    for name, size in mark.get("files", {}).items():  # a mark of before there were lists of files says nothing of them
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
    """Remove all whole checkpoints but the newest `keep`. The mark goes first: a kill must not leave a half with it."""
    for path in whole(folder)[:-keep]:
        (path / COMPLETE).unlink()
        shutil.rmtree(path)


def cut_back(folder: StageFolder) -> None:
    """Remove what is no whole checkpoint, and drop everything recorded after the newest one: it will be made again.

    What a kill left of files that were being written goes too. Prints a line for each checkpoint that had been declared
    whole and is not any more.
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
        if re.fullmatch(r"\..+\.\d+", path.name):  # as `write_json`, `write_lines` and the journal name a draft
            path.unlink()

    shutil.rmtree(folder.checkpoints / PARTIAL, ignore_errors=True)

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


def _point(checkpoint: Path | None) -> str:
    return checkpoint.name if checkpoint else "its start"


@contextmanager
def told_when_full(folder: StageFolder) -> Iterator[None]:
    """Whatever in here fails because there is no room to write ends as one message, DiskFull.

    Half a checkpoint is removed then: it would be of no use, and the room it takes may be all that is missing. Any
    other error passes as it is.
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
    """What says that there was no room, anywhere in the chain of what led to `error`."""
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or one.__context__
    for one in chain:
        if isinstance(one, OSError) and one.errno in _NO_ROOM:
            return str(one)
    for one in chain:
        if any(words in str(one) for words in _SAYS_NO_ROOM):
            return str(one).splitlines()[0]
    return None
