"""Verdicts on disk before they are used, so that a resumed stage learns from the very verdicts it learned from before.

A verdict may depend on the clock (a time-out) or on a server, so judging the same response again may come out
otherwise. One JSON line a call of the verifiers: who judged, what running them came to, and what each completion got.
A file belongs to one process and only grows, until `trim`.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwq_rl.data.row import Row
from qwq_rl.rewards.reward import Scored, verdict_lines
from qwq_rl.run_folder.checkpoints import to_disk
from qwq_rl.run_folder.files import StageFolder
from qwq_rl.verifiers import Verdict

Counts = Mapping[str, Mapping[str, int]]
"""By verifier name, what running it came to: `Scorer.counts`."""


@dataclass(frozen=True)
class Key:
    """Which completion: sampled for which update, of which prompt and sample of the round, and what was judged."""

    update: int
    place: int
    sample: int
    asked: str
    """SHA-256 of the row and of the token ids: another row, or another response to it, is judged for itself."""


def keys_of(update: int, place: int, row: Row, responses: Sequence[Sequence[int]]) -> list[Key]:
    """The keys of a group's completions, from their token ids.

    `update` is the first that trains on them, `place` that of their prompt in the round.
    """
    asked = hashlib.sha256(json.dumps(row, default=repr).encode())
    keys = []
    for sample, token_ids in enumerate(responses):
        own = asked.copy()
        own.update(array("q", token_ids).tobytes())
        keys.append(Key(update, place, sample, own.hexdigest()))
    return keys


def verdict_log_of(folder: StageFolder, rank: int) -> Path:
    """Where the process of that rank keeps its log."""
    return folder.path / ("verdicts.jsonl" if rank == 0 else f"verdicts-{rank}.jsonl")


def verdict_logs_beside(folder: StageFolder, rank: int, world: int) -> list[Path]:
    """The logs of other ranks, where another number of processes than `world` left them.

    By as many as now every rank judged what it is to judge again, and all of that is in its own.
    """
    found = set(folder.path.glob("verdicts*.jsonl"))
    if found == {verdict_log_of(folder, other) for other in range(world)}:
        return []
    return sorted(found - {verdict_log_of(folder, rank)})


@dataclass(frozen=True)
class _Call:
    """A line of the log: one call of the scorer."""

    judges: str
    update: int
    counts: Counts
    scored: Mapping[Key, Scored]


class VerdictLog:
    """The verdicts that one process of a stage has on the disk.

    `judges` stands for what gives the verdicts, such as a hash of the verifiers' versions: entries of other judges are
    passed over, so that a verifier which was mended is asked again.
    """

    def __init__(self, path: Path, judges: str = "", others: Iterable[Path] = ()) -> None:
        """Read what earlier processes left, in the logs `others` too, which stay as they are.

        A line that is no entry, as a kill leaves one, is as if never written.
        """
        self._path, self._judges = path, judges
        self._left: dict[Key, tuple[_Call, Scored]] = {}
        text = b""
        for file in (*others, path):  # what this process wrote itself comes last, and counts
            text = file.read_bytes() if file.exists() else b""
            for line in text.split(b"\n"):
                call = _call(line)
                if call is not None and call.judges == judges:
                    self._left |= {key: (call, scored) for key, scored in call.scored.items()}
        self._torn = not text.endswith(b"\n") and bool(text)

    def replay(self, key: Key) -> Scored | None:
        """What the completion got from an earlier process; None where it was not judged, or could not be."""
        return self._left[key][1] if key in self._left else None

    def intact(self, keys: Iterable[Key]) -> set[Key]:
        """Of `keys`, those whose call comes again with every completion it gave something to.

        What else there is of a call, as when some rows were mended since, is to be judged anew: its counts would lie.
        """
        asked = set(keys) & self._left.keys()
        calls = {id(self._left[key][0]): self._left[key][0] for key in asked}
        whole = {
            number
            for number, call in calls.items()
            if all(key in asked for key in call.scored if self._left[key][0] is call)
        }
        return {key for key in asked if id(self._left[key][0]) in whole}

    def counts(self, keys: Iterable[Key]) -> list[Counts]:
        """What running the verifiers came to when the completions that are replayed were judged, call by call.

        A call's counts are those of all its completions: the keys of calls that come again whole (`intact`) are meant.
        """
        calls = [self._left[key][0] for key in keys if key in self._left]
        return [call.counts for call in {id(call): call for call in calls}.values()]

    def write(self, update: int, entries: Iterable[tuple[Key, Scored]], counts: Counts) -> None:
        """Add what the completions of one call got; all of it, or nothing, is on the disk when this returns or fails.

        What could not be judged (no reward) is left out: judged again, it may have one. Raises OSError where the disk
        gives no more.
        """
        scored = [_entry(key, verdict) for key, verdict in entries if verdict.reward is not None]
        if not scored:
            return
        line = json.dumps({"judges": self._judges, "update": update, "counts": counts, "scored": scored})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = not self._path.exists()
        with self._path.open("a") as file:
            file.write("\n" * self._torn + line + "\n")
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
                call = _call(line)
                if call is not None and call.judges == self._judges and call.update >= before_update:
                    file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        self._left = {key: entry for key, entry in self._left.items() if key.update >= before_update}
        self._torn = False


def _entry(key: Key, scored: Scored) -> dict[str, Any]:
    given = {"score": scored.score, "reward": scored.reward, "verdicts": verdict_lines(scored.verdicts)}
    return {**vars(key), **given, "gates": dict(scored.gates), "preference": scored.preference}


def _call(line: bytes) -> _Call | None:
    """The call that a line is about; None for a line that is none."""
    try:
        call = json.loads(line)
        scored = dict(_given(entry) for entry in call["scored"])
        return _Call(str(call["judges"]), int(call["update"]), call["counts"], scored)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _given(entry: Mapping[str, Any]) -> tuple[Key, Scored]:
    verdicts = {name: Verdict(**verdict) for name, verdict in entry["verdicts"].items()}
    return (
        Key(entry["update"], entry["place"], entry["sample"], entry["asked"]),
        Scored(entry["score"], entry["reward"], verdicts, entry["gates"], entry["preference"]),
    )
