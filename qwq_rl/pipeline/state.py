"""`pipeline.json`: how far a run has come. Every change is on disk before the next step is taken."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from qwq_rl.pipeline.gates import GateResult
from qwq_rl.pipeline.processes import Ended
from qwq_rl.run_folder.files import RunFolder, read_json, write_json


class Record:
    """What docs/contracts.md shows under "pipeline.json", in memory and on disk."""

    def __init__(self, folder: RunFolder, recipe: str, seed: int, release: str, stages: Sequence[str]) -> None:
        """Read what an earlier start left; what ran or failed then waits again."""
        self._folder = folder
        old = read_json(folder.state) or {}
        self._value: dict[str, Any] = {
            "recipe": recipe,
            "seed": seed,
            "started": old.get("started", time.time()),
            "release": release,
            "restart": old.get("restart"),
            "stages": {name: _waiting(old.get("stages", {}).get(name)) for name in stages},
            "jobs": old.get("jobs", []),
        }

    @property
    def restart(self) -> str | None:
        """The stage that a `--from` threw away, as long as the run it began has not come to its end."""
        restart: str | None = self._value["restart"]
        return restart

    def stage(self, name: str) -> Mapping[str, Any]:
        """The entry of one stage."""
        entry: Mapping[str, Any] = self._value["stages"][name]
        return entry

    def set_restart(self, stage: str | None) -> None:
        """Note that a `--from` began, or, with None, that the run came to its end."""
        self._value["restart"] = stage
        self._write()

    def forget(self, name: str) -> None:
        """Note that a stage starts anew."""
        self._value["stages"][name] = _waiting(None)
        self._write()

    def update(self, name: str, **fields: Any) -> None:
        """Change a stage's entry."""
        self._value["stages"][name] |= fields
        self._write()

    def trained(self, name: str, done: Mapping[str, Any]) -> None:
        """Note what a stage's `done.json` says."""
        self.update(
            name,
            recipe_hash=done["recipe_hash"],
            wall_seconds=done["wall_seconds"],
            cpu_seconds=done["cpu_seconds"],
            checkpoint=str(self._folder.stage(name).final.relative_to(self._folder.path)),
        )

    def judged(self, name: str, gates: Sequence[GateResult]) -> None:
        """Note what the gates of a stage said."""
        self.update(name, gates=[asdict(gate) for gate in gates])

    def add_job(self, ended: Ended) -> None:
        """Note a process that ended."""
        self._value["jobs"].append(
            {
                "name": ended.job.name,
                "started": ended.started,
                "finished": ended.finished,
                "cpu_seconds": ended.cpu_seconds,
                "status": ended.status,
            }
        )
        self._write()

    def _write(self) -> None:
        write_json(self._folder.state, self._value)


def _waiting(old: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entry of a stage at the start; what an earlier start found out stays."""
    fresh: dict[str, Any] = {
        "status": "waiting",
        "recipe_hash": None,
        "started": None,
        "finished": None,
        "wall_seconds": 0.0,
        "cpu_seconds": 0.0,
        "checkpoint": None,
        "extended": 0,
        "attempts": 0,
        "gates": [],
    }
    return fresh | dict(old or {}) | {"status": "waiting"}
