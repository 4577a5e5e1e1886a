"""The paths of a run's files, and atomic writes: after a kill a file is the old or the new one, never a part."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwq_rl.errors import RunStateError

_as_line = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode
"""One encoder for all lines. It does not look for cycles: that takes a third longer, and our records have none."""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` to `path` atomically: a temporary file beside it, flushed to disk, then renamed."""
    _write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    _write_atomically(path, "".join(f"{_as_line(value)}\n" for value in values))


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Hidden and with the pid: `cut_back` finds drafts that a kill left by this form of name.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            # Before the rename: else a crash of the machine could leave the new name with an empty file.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one JSON object as a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(f"{_as_line(value)}\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines. An incomplete last line, left by a kill, is dropped; a missing file gives an empty list.

    Raises RunStateError, which names the line, if another line is no JSON object: our own writes never make one.
    """
    if not path.exists():
        return []
    # A complete line ends in a newline: what follows the last one is empty or incomplete.
    complete = path.read_bytes().split(b"\n")[:-1]
    return [_object(line, f"{path}:{number}", "line") for number, line in enumerate(complete, start=1) if line]


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if the file does not exist. Raises RunStateError if it is damaged."""
    return _object(path.read_bytes(), str(path), "file") if path.exists() else None


def _object(text: bytes, place: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        problem = str(error)
    else:
        if isinstance(value, dict):
            return value
        problem = f"it is a {type(value).__name__}, no object"
    raise RunStateError(
        f"{place}: this {what} is damaged ({problem}): remove it and run the same command again, "
        "which goes on from what else lies in the folder"
    )


@dataclass(frozen=True)
class StageFolder:
    """`runs/NAME/STAGE`."""

    path: Path

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.path.name

    @property
    def metrics(self) -> Path:
        """One line per update."""
        return self.path / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        """One line per evaluation during the stage."""
        return self.path / "evaluations.jsonl"

    @property
    def checkpoints(self) -> Path:
        """`checkpoint-N/`, and `final/` when the stage is done."""
        return self.path / "checkpoints"

    @property
    def final(self) -> Path:
        """The stage's result, a Hugging Face folder."""
        return self.checkpoints / "final"

    @property
    def done(self) -> Path:
        """Written last: the stage is finished."""
        return self.path / "done.json"

    @property
    def resolved(self) -> Path:
        """The recipe as it ran, with every default filled in."""
        return self.path / "resolved.yaml"

    @property
    def provenance(self) -> Path:
        """Where the run came from: code, versions, command, and the stage's contract."""
        return self.path / "provenance.json"

    @property
    def audit(self) -> Path:
        """What the audit before training found."""
        return self.path / "audit.json"

    @property
    def log(self) -> Path:
        """What the stage's process printed."""
        return self.path / "stage.log"

    @property
    def lock(self) -> Path:
        """The lock that the trainer holds while it runs."""
        return self.path / "stage.lock"

    def rollouts(self, update: int) -> Path:
        """The rollouts of one update."""
        return self.path / "rollouts" / f"update-{update:06d}.jsonl"


@dataclass(frozen=True)
class RunFolder:
    """`runs/NAME`, or `runs/NAME/seed-S`."""

    path: Path

    def stage(self, name: str) -> StageFolder:
        """The folder of one stage."""
        return StageFolder(self.path / name)

    @property
    def state(self) -> Path:
        """`pipeline.json`: which stages are done, and the results of their gates."""
        return self.path / "pipeline.json"

    @property
    def summary(self) -> Path:
        """`summary.json`."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """`report.html`."""
        return self.path / "report.html"

    @property
    def lock(self) -> Path:
        """The lock that `qwq-rl run` holds while it runs."""
        return self.path / "run.lock"

    @property
    def model(self) -> Path:
        """The released model, a Hugging Face folder."""
        return self.path / "model"

    def evaluation(self, stage: str, data_set: str) -> Path:
        """The estimates of a stage's checkpoint on one set. The same name with `.jsonl` has a line per prompt."""
        return self.path / "evaluations" / stage / (data_set.replace("/", "-") + ".json")
