"""`pipeline.json`, the state of a run (`Record`), its gates (`judge`), and what its files say is done (`Results`)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qwq_rl.config.recipe import Requirement
from qwq_rl.pipeline.plan import PipelinePlan
from qwq_rl.pipeline.processes import ProcessEnd
from qwq_rl.run_folder.files import RunFolder, read_json, read_lines, write_json


class Record:
    """pipeline.json (see docs/contracts.md) in memory and on disk. Every change is written at once."""

    def __init__(self, folder: RunFolder, recipe: str, seed: int, release: str, stages: Sequence[str]) -> None:
        """Read what an earlier start wrote. Every stage is waiting again, whether it ran, failed or was done."""
        self._folder = folder
        old = read_json(folder.state) or {}
        self._state: dict[str, Any] = {
            "recipe": recipe,
            "seed": seed,
            "started": old.get("started", time.time()),
            "release": release,
            "restart": old.get("restart"),
            "stages": {name: _waiting_entry(old.get("stages", {}).get(name)) for name in stages},
            "jobs": old.get("jobs", []),
        }

    @property
    def restart(self) -> str | None:
        """The stage named by `--from`, until the run that it began has come to its end."""
        restart: str | None = self._state["restart"]
        return restart

    def stage(self, name: str) -> Mapping[str, Any]:
        """The entry of one stage."""
        entry: Mapping[str, Any] = self._state["stages"][name]
        return entry

    def set_restart(self, stage: str | None) -> None:
        """Record that a `--from` began, or, with None, that the run came to its end."""
        self._state["restart"] = stage
        self._write()

    def forget(self, name: str) -> None:
        """Reset the entry of a stage that starts again from nothing."""
        self._state["stages"][name] = _waiting_entry(None)
        self._write()

    def update(self, name: str, **fields: Any) -> None:
        """Change fields of a stage's entry."""
        self._state["stages"][name] |= fields
        self._write()

    def trained(self, name: str, done: Mapping[str, Any]) -> None:
        """Record what the `done.json` of a stage says."""
        self.update(
            name,
            recipe_hash=done["recipe_hash"],
            wall_seconds=done["wall_seconds"],
            cpu_seconds=done["cpu_seconds"],
            checkpoint=str(self._folder.stage(name).final.relative_to(self._folder.path)),
        )

    def judged(self, name: str, gates: Sequence[GateResult]) -> None:
        """Record the results of a stage's gates."""
        self.update(name, gates=[asdict(gate) for gate in gates])

    def add_job(self, ended: ProcessEnd) -> None:
        """Record a process that ended."""
        self._state["jobs"].append(
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
        write_json(self._folder.state, self._state)


def _waiting_entry(earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entry of a stage at the start of a run, with everything but the status of an earlier start."""
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
    return fresh | dict(earlier or {}) | {"status": "waiting"}


@dataclass(frozen=True)
class GateResult:
    """One requirement on one domain or family. `value` is None if it could not be measured; `note` says why."""

    measure: str
    scope: str
    value: float | None
    above: float
    passed: bool
    note: str = ""

    def describe(self) -> str:
        """One line: measure, domain or family, verdict, value, and the limit that it must exceed."""
        value = "not measured" if self.value is None else f"{self.value:.3f}"
        verdict = "passed" if self.passed else "failed"
        note = f", {self.note}" if self.note else ""
        return f"{self.measure} of {self.scope} {verdict}: {value}, must be above {self.above:g}{note}"


def judge(requirements: Sequence[Requirement], evaluation: Mapping[str, Any]) -> list[GateResult]:
    """Measure every requirement on `evaluation` (a line of evaluations.jsonl): one result for each domain or family."""
    return [result for requirement in requirements for result in _judge_requirement(requirement, evaluation)]


def _judge_requirement(requirement: Requirement, evaluation: Mapping[str, Any]) -> list[GateResult]:
    results = []
    for domain in requirement.domains or sorted(evaluation["domains"]):
        if domain not in evaluation["domains"]:
            results.append(_result(requirement, domain, None, False, "the set has no prompt of this domain"))
        elif requirement.measure == "worked_minus_terse":
            results.append(_worked_minus_terse(requirement, domain, evaluation["modes"].get(domain)))
        elif requirement.over == "families":
            families = [name for name in sorted(evaluation["families"]) if name.split("/")[0] == domain]
            results += [_score(requirement, name, evaluation["families"][name]) for name in families]
        else:
            results.append(_score(requirement, domain, evaluation["domains"][domain]))
    return results


def _score(requirement: Requirement, scope: str, area: Mapping[str, Any]) -> GateResult:
    estimate = area["pass_at_k" if requirement.measure == "pass_at_k" else "sampled"]
    if estimate is None or estimate["mean"] is None:
        return _result(requirement, scope, None, False, "no response of it could be judged")
    return _result(requirement, scope, estimate["mean"], estimate["mean"] > requirement.above)


def _worked_minus_terse(requirement: Requirement, domain: str, modes: Mapping[str, Any] | None) -> GateResult:
    """Worked answers must be right more often than terse ones.

    Without terse answers the gate passes: there is nothing that training could collapse to.
    """
    if modes is None or not modes["worked"]["share"]:
        return _result(requirement, domain, None, False, "no response reasons before it answers")
    if not modes["terse"]["share"]:
        return _result(requirement, domain, None, True, "no terse responses")
    if modes["worked"]["mean"] is None or modes["terse"]["mean"] is None:
        return _result(requirement, domain, None, False, "no response of a kind could be judged")
    value = modes["worked"]["mean"] - modes["terse"]["mean"]
    return _result(requirement, domain, value, value > requirement.above)


def _result(requirement: Requirement, scope: str, value: float | None, passed: bool, note: str = "") -> GateResult:
    return GateResult(requirement.measure, scope, value, requirement.above, passed, note)


@dataclass(frozen=True)
class Results:
    """What is done and what is missing, read from the files at every call, never from memory."""

    plan: PipelinePlan
    folder: RunFolder
    record: Record

    def done(self, name: str) -> dict[str, Any] | None:
        """The stage's `done.json`; None unless its result exists and its recipe is the present one.

        The stage must also be lengthened as often as its gates have decided.
        """
        done = read_json(self.folder.stage(name).done)
        if done is None or not self.folder.stage(name).final.is_dir():
            return None
        times = self.plan.extension_of_hash(name, done["recipe_hash"])
        return done if times == self.record.stage(name)["extended"] else None

    def evaluation(self, name: str, data_set: str) -> dict[str, Any] | None:
        """`evaluations/STAGE/SET.json`; None unless it is of the final checkpoint and has the pipeline's settings."""
        done, estimates = self.done(name), read_json(self.folder.evaluation(name, data_set))
        if done is None or estimates is None or estimates["update"] != done["update"]:
            return None
        settings = self.plan.pipeline.evaluate
        if any(estimates["settings"][key] != getattr(settings, key) for key in ("samples", "max_tokens")):
            return None
        # An evaluation that is older than done.json is of an earlier training with the same number of updates.
        return estimates if estimates["time"] >= self.folder.stage(name).done.stat().st_mtime else None

    def gate_evaluation(self, name: str, data_set: str) -> dict[str, Any] | None:
        """The evaluation of the stage's last update on a set: made during the stage, or else afterwards."""
        done = self.done(name)
        for line in reversed(read_lines(self.folder.stage(name).evaluations)):
            if done is not None and line["set"] == data_set and line["update"] == done["update"]:
                return line
        return self.evaluation(name, data_set)

    def missing_gate_sets(self, name: str) -> list[str]:
        """The sets on which a trained stage must still be evaluated before its gates can be judged."""
        if self.done(name) is None:
            return []
        sets = dict.fromkeys(gate.set for gate in self.plan.gates(name))
        return [data_set for data_set in sets if self.gate_evaluation(name, data_set) is None]

    def missing_final_sets(self, name: str) -> list[str]:
        """The sets on which a trained stage must still be evaluated for the report."""
        return [data_set for data_set in self.plan.final_sets(name) if self.evaluation(name, data_set) is None]

    def judge_gates(self, name: str) -> list[GateResult]:
        """The results of a stage's gates. Every set that they need must have been evaluated."""
        results: list[GateResult] = []
        for gate in self.plan.gates(name):
            evaluation: Mapping[str, Any] | None = self.gate_evaluation(name, gate.set)
            assert evaluation is not None
            results += judge(gate.require, evaluation)
        return results

    def all_need_done(self, name: str) -> bool:
        """Whether every stage that this one needs is done and has passed its gates."""
        needed: Sequence[str] = sorted(self.plan.needs(name))
        return all(self.record.stage(needed_stage)["status"] == "done" for needed_stage in needed)
