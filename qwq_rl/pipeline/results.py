"""What lies finished in a run folder, and what is still missing there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwq_rl.pipeline.gates import GateResult, judge
from qwq_rl.pipeline.plan import Plan
from qwq_rl.pipeline.state import Record
from qwq_rl.run_folder.files import RunFolder, read_json, read_lines


@dataclass(frozen=True)
class Results:
    """Answers from the files alone: nothing here remembers."""

    plan: Plan
    folder: RunFolder
    record: Record

    def done(self, name: str) -> dict[str, Any] | None:
        """The stage's `done.json`, if its result is there, of the recipe as it stands, lengthened as was decided."""
        done = read_json(self.folder.stage(name).done)
        if done is None or not self.folder.stage(name).final.is_dir():
            return None
        times = self.plan.extension_of_hash(name, done["recipe_hash"])
        return done if times == self.record.stage(name)["extended"] else None

    def evaluation(self, name: str, data_set: str) -> dict[str, Any] | None:
        """`evaluations/STAGE/SET.json`, if it is of the stage's checkpoint, evaluated as the pipeline now says."""
        done, found = self.done(name), read_json(self.folder.evaluation(name, data_set))
        if done is None or found is None or found["update"] != done["update"]:
            return None
        asked = self.plan.pipeline.evaluate
        if any(found["settings"][name] != getattr(asked, name) for name in ("samples", "max_tokens")):
            return None
        return found if found["time"] >= self.folder.stage(name).done.stat().st_mtime else None

    def gate_evaluation(self, name: str, data_set: str) -> dict[str, Any] | None:
        """The evaluation of the stage's last update on a set: the stage's own, or one made afterwards."""
        done = self.done(name)
        for line in reversed(read_lines(self.folder.stage(name).evaluations)):
            if done is not None and line["set"] == data_set and line["update"] == done["update"]:
                return line
        return self.evaluation(name, data_set)

    def missing_gate_sets(self, name: str) -> list[str]:
        """The sets on which a trained stage must still be evaluated for its gates."""
        if self.done(name) is None:
            return []
        sets = dict.fromkeys(gate.set for gate in self.plan.gates(name))
        return [data_set for data_set in sets if self.gate_evaluation(name, data_set) is None]

    def missing_final_sets(self, name: str) -> list[str]:
        """The sets on which a trained stage must still be evaluated for the report."""
        return [data_set for data_set in self.plan.final_sets(name) if self.evaluation(name, data_set) is None]

    def judge_gates(self, name: str) -> list[GateResult]:
        """What the gates of a stage say; every set they need must be there."""
        results: list[GateResult] = []
        for gate in self.plan.gates(name):
            evaluation: Mapping[str, Any] | None = self.gate_evaluation(name, gate.set)
            assert evaluation is not None
            results += judge(gate.require, evaluation)
        return results

    def all_need_done(self, name: str) -> bool:
        """Whether every stage that this one needs is done, its gates passed."""
        needed: Sequence[str] = sorted(self.plan.needs(name))
        return all(self.record.stage(other)["status"] == "done" for other in needed)
