"""The plan of a recipe: which stage waits for which, which goes first, how long a stage trains. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwq_rl.config.recipe import Extend, Gate, Pipeline, Stage, recipe_hash


@dataclass(frozen=True)
class PipelinePlan:
    """A loaded recipe folder. `overrides`: stage -> what the command line adds to it (`--a.b=c`), with the seed."""

    folder: Path
    pipeline: Pipeline
    stages: Mapping[str, Stage]
    overrides: Mapping[str, Sequence[str]]

    @property
    def names(self) -> tuple[str, ...]:
        """The stages in the order of the pipeline."""
        return tuple(self.pipeline.stages)

    def needs(self, name: str) -> set[str]:
        """The stages whose result this one starts from, or uses as its reward model."""
        stage = self.stages[name]
        sources = [stage.model.from_]
        if stage.kind == "rl" and stage.reward_model is not None:
            sources.append(stage.reward_model.from_)
        return {source for source in sources if source is not None and source in self.stages}

    def following(self, name: str) -> list[str]:
        """This stage and all that need it, directly or not, in reverse order of the pipeline."""
        affected = {name}
        for candidate in self.names:
            if self.needs(candidate) & affected:
                affected.add(candidate)
        return [candidate for candidate in reversed(self.names) if candidate in affected]

    def urgency(self, name: str) -> int:
        """The length of the longest chain of stages that begins with this one. The longest chain goes first."""
        dependents = [dependent for dependent in self.names if name in self.needs(dependent)]
        return 1 + max((self.urgency(dependent) for dependent in dependents), default=0)

    def gates(self, name: str) -> tuple[Gate, ...]:
        """The gates that the stage must pass before another may use it."""
        return tuple(gate for gate in self.pipeline.gates if gate.stage == name)

    def extension(self, name: str) -> Extend | None:
        """How much longer the stage may train if it fails a gate: the `extend` of its first gate that has one."""
        return next((gate.extend for gate in self.gates(name) if gate.extend is not None), None)

    def extended(self, name: str, times: int) -> Stage:
        """The stage, lengthened `times` times."""
        stage, extension = self.stages[name], self.extension(name)
        added = extension.steps * times if extension else 0
        return dataclasses.replace(stage, steps=stage.steps + added)

    def extension_of_hash(self, name: str, found: str) -> int | None:
        """How often the stage was lengthened if the hash of its recipe was `found`; None if that was another recipe."""
        extension = self.extension(name)
        # A hash cannot be read back, so compute that of every length the stage may have.
        counts = range(extension.times + 1 if extension else 1)
        return next((times for times in counts if recipe_hash(self.extended(name, times)) == found), None)

    def final_sets(self, name: str) -> tuple[str, ...]:
        """The sets on which a finished stage is evaluated; none for a reward model, which writes no responses."""
        if self.stages[name].kind == "reward_model":
            return ()
        return tuple(self.pipeline.evaluate.sets)

    def train_arguments(self, name: str, run: Path, times: int) -> list[str]:
        """The arguments of the trainer."""
        arguments = [str(self.folder / f"{name}.yaml"), "--run", str(run), *self.overrides.get(name, ())]
        return arguments + ([f"--steps={self.extended(name, times).steps}"] if times else [])
