"""Verdicts on disk before they are used, so that a resumed stage learns from the very verdicts it learned from before.

A verdict may depend on the clock (a time-out) or on a server, so judging the same response again may come out
otherwise. One JSON line a scored completion: its key, who judged, and what it got. A file belongs to one process and
only grows, until `trim`.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwq_rl.checkpoints import to_disk
from qwq_rl.runfolder import StageFolder
from qwq_rl.scoring import Scored
from qwq_rl.verifiers import Verdict


@dataclass(frozen=True)
class Key:
    """Which completion: sampled for which update, of which prompt and sample of the round, with which tokens."""

    update: int
    place: int
    sample: int
    tokens: str
    """SHA-256 of the token ids: a completion that was sampled otherwise this time is judged for itself."""


def key_of(update: int, place: int, sample: int, token_ids: Sequence[int]) -> Key:
    """The key of a completion; `update` is the first that trains on it, `place` that of its prompt in the round."""
    return Key(update, place, sample, hashlib.sha256(array("q", token_ids).tobytes()).hexdigest())


def journal_of(folder: StageFolder, rank: int) -> Path:
    """Where the process of that rank keeps its journal."""
    return folder.path / ("verdicts.jsonl" if rank == 0 else f"verdicts-{rank}.jsonl")


class Journal:
    """The journal of one process of a stage.

    `judges` stands for what gives the verdicts, such as a hash of the verifiers' versions: entries of other judges are
    passed over, so that a verifier which was mended is asked again.
    """

    def __init__(self, path: Path, judges: str = "") -> None:
        """Read what an earlier process left; a line that is no entry, as a kill leaves one, is as if never written."""
        self._path, self._judges = path, judges
        self._left: dict[Key, Scored] = {}
        text = path.read_bytes() if path.exists() else b""
        for line in text.split(b"\n"):
            entry = _entry(line)
            if entry is not None and entry[0] == judges:
                self._left[entry[1]] = entry[2]
        self._torn = not text.endswith(b"\n") and bool(text)

    def replay(self, key: Key) -> Scored | None:
        """What the completion got from an earlier process; None where it was not judged, or could not be."""
        return self._left.get(key)

    def write(self, entries: Iterable[tuple[Key, Scored]]) -> None:
        """Add what completions got; it is on the disk when this returns.

        What could not be judged (no reward) is left out: judged again, it may have one. Raises OSError where the disk
        gives no more.
        """
        lines = [_line(self._judges, key, scored) for key, scored in entries if scored.reward is not None]
        if not lines:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = not self._path.exists()
        with self._path.open("a") as file:
            file.write("\n" * self._torn + "".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        if new:
            to_disk(self._path.parent)
        self._torn = False

    def trim(self, before_update: int) -> None:
        """Forget the entries of updates before `before_update`: those up to the oldest checkpoint that may be used."""
        if not self._path.exists():
            return
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            for line in self._path.read_bytes().split(b"\n"):
                entry = _entry(line)
                if entry is not None and entry[0] == self._judges and entry[1].update >= before_update:
                    file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        self._left = {key: scored for key, scored in self._left.items() if key.update >= before_update}
        self._torn = False


def _line(judges: str, key: Key, scored: Scored) -> dict[str, Any]:
    verdicts = {name: asdict(verdict) for name, verdict in scored.verdicts.items()}
    given = {"score": scored.score, "reward": scored.reward, "verdicts": verdicts}
    return {**asdict(key), "judges": judges, **given, "gates": dict(scored.gates), "preference": scored.preference}


def _entry(line: bytes) -> tuple[str, Key, Scored] | None:
    """Judges, key and what was given; None for a line that is no entry."""
    try:
        entry = json.loads(line)
        key = Key(entry["update"], entry["place"], entry["sample"], entry["tokens"])
        verdicts = {name: Verdict(**verdict) for name, verdict in entry["verdicts"].items()}
        given = Scored(entry["score"], entry["reward"], verdicts, entry["gates"], entry["preference"])
        return str(entry["judges"]), key, given
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
