"""A log of verdicts on disk, so that a resumed stage trains on the same verdicts as before.

A verdict may depend on the clock (a timeout) or on a server, so judging the same response again may give another one.
The log has one JSON line per call of the verifiers: the judges, the counts of the call, and the verdicts of each
completion. A file belongs to one process and only grows, until `trim`.
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
"""Verifier name -> counts of what happened when it ran (`Scorer.counts`)."""


@dataclass(frozen=True)
class Key:
    """Identifies a completion: its update, its place and sample number in the round, and a hash of what was judged."""

    update: int
    place: int
    sample: int
    asked: str
    """SHA-256 of the row and the token ids, so that a changed row or response does not get the old verdict."""


def keys_of(update: int, place: int, row: Row, responses: Sequence[Sequence[int]]) -> list[Key]:
    """The keys of a group's completions, given as token ids.

    `update` is the first one that trains on them, `place` the place of their prompt in the round.
    """
    row_hash = hashlib.sha256(json.dumps(row, default=repr).encode())
    keys = []
    for sample, token_ids in enumerate(responses):
        completion_hash = row_hash.copy()
        completion_hash.update(array("q", token_ids).tobytes())
        keys.append(Key(update, place, sample, completion_hash.hexdigest()))
    return keys


def verdict_log_of(folder: StageFolder, rank: int) -> Path:
    """The path of the log of the process with this rank."""
    return folder.path / ("verdicts.jsonl" if rank == 0 else f"verdicts-{rank}.jsonl")


def verdict_logs_beside(folder: StageFolder, rank: int, world: int) -> list[Path]:
    """The logs of other ranks that this process must read too: all of them, but none if `world` processes left them.

    With the same number of processes each rank judges the same completions again, and all of them are in its own log.
    """
    logs = set(folder.path.glob("verdicts*.jsonl"))
    if logs == {verdict_log_of(folder, other_rank) for other_rank in range(world)}:
        return []
    return sorted(logs - {verdict_log_of(folder, rank)})


@dataclass(frozen=True)
class _Call:
    """One line of the log: one call of the scorer."""

    judges: str
    update: int
    counts: Counts
    scored: Mapping[Key, Scored]


class VerdictLog:
    """The verdict log of one process.

    `judges` identifies what gives the verdicts, such as a hash of the verifiers' versions. Entries of other judges are
    ignored, so that a verifier that was fixed judges again.
    """

    def __init__(self, path: Path, judges: str = "", others: Iterable[Path] = ()) -> None:
        """Read the entries that earlier processes left in `path` and in the logs `others`, which are only read.

        A line that is no valid entry, such as one cut off by a kill, is ignored.
        """
        self._path, self._judges = path, judges
        self._entries: dict[Key, tuple[_Call, Scored]] = {}
        text = b""
        for log in (*others, path):  # this process's own log comes last, so its entries win
            text = log.read_bytes() if log.exists() else b""
            for line in text.split(b"\n"):
                call = _call(line)
                if call is not None and call.judges == judges:
                    self._entries |= {key: (call, scored) for key, scored in call.scored.items()}
        # A kill may leave a last line without its end; the next entry must not continue it.
        self._ends_torn = not text.endswith(b"\n") and bool(text)

    def replay(self, key: Key) -> Scored | None:
        """The completion's score from an earlier process; None where it was not judged, or could not be."""
        return self._entries[key][1] if key in self._entries else None

    def intact(self, keys: Iterable[Key]) -> set[Key]:
        """Those of `keys` whose call can be replayed as a whole, because all its completions are among `keys`.

        The rest of a call (some of its rows were changed) must be judged again: the call's counts cover all of it.
        """
        logged = set(keys) & self._entries.keys()
        calls = {id(self._entries[key][0]): self._entries[key][0] for key in logged}
        whole_calls = {
            call_id
            for call_id, call in calls.items()
            if all(key in logged for key in call.scored if self._entries[key][0] is call)
        }
        return {key for key in logged if id(self._entries[key][0]) in whole_calls}

    def counts(self, keys: Iterable[Key]) -> list[Counts]:
        """The counts of each call that judged the completions `keys`.

        A call's counts cover all its completions, so pass only keys of calls that are replayed whole (`intact`).
        """
        calls = [self._entries[key][0] for key in keys if key in self._entries]
        return [call.counts for call in {id(call): call for call in calls}.values()]

    def write(self, update: int, entries: Iterable[tuple[Key, Scored]], counts: Counts) -> None:
        """Add the scores of one call. When this returns or fails, all of them are on disk, or none.

        A completion that could not be judged (no reward) is left out: judged again, it may get one. Raises OSError
        where the disk is full or fails.
        """
        scored = [_entry(key, verdict) for key, verdict in entries if verdict.reward is not None]
        if not scored:
            return
        line = json.dumps({"judges": self._judges, "update": update, "counts": counts, "scored": scored})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = not self._path.exists()
        with self._path.open("a") as file:
            file.write("\n" * self._ends_torn + line + "\n")
            file.flush()
            os.fsync(file.fileno())
        if new:  # the folder's entry for a new file must reach the disk too
            to_disk(self._path.parent)
        self._ends_torn = False

    def trim(self, before_update: int) -> None:
        """Remove the entries of updates before `before_update`, which no checkpoint can need again."""
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
        # Replaced in one step: a kill leaves the old log or the new one, both complete.
        temporary.replace(self._path)
        self._entries = {key: entry for key, entry in self._entries.items() if key.update >= before_update}
        self._ends_torn = False


def _entry(key: Key, scored: Scored) -> dict[str, Any]:
    results = {"score": scored.score, "reward": scored.reward, "verdicts": verdict_lines(scored.verdicts)}
    return {**vars(key), **results, "gates": dict(scored.gates), "preference": scored.preference}


def _call(line: bytes) -> _Call | None:
    """The call that a line describes; None for a line that is no valid entry."""
    try:
        call = json.loads(line)
        scored = dict(_from_entry(entry) for entry in call["scored"])
        return _Call(str(call["judges"]), int(call["update"]), call["counts"], scored)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _from_entry(entry: Mapping[str, Any]) -> tuple[Key, Scored]:
    verdicts = {name: Verdict(**verdict) for name, verdict in entry["verdicts"].items()}
    return (
        Key(entry["update"], entry["place"], entry["sample"], entry["asked"]),
        Scored(entry["score"], entry["reward"], verdicts, entry["gates"], entry["preference"]),
    )
