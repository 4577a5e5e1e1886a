"""What a recipe asks for: which stage waits for which, what comes first, how long a stage is. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwq_rl.config.recipe import Extend, Gate, Pipeline, Stage, recipe_hash


@dataclass(frozen=True)
class PipelinePlan:
    """A loaded recipe folder. `overrides` are what the command line adds to each stage (`--a.b=c`), seed included."""

    folder: Path
    pipeline: Pipeline
    stages: Mapping[str, Stage]
    overrides: Mapping[str, Sequence[str]]

    @property
    def names(self) -> tuple[str, ...]:
        """The stages in the pipeline's order."""
        return tuple(self.pipeline.stages)

    def needs(self, name: str) -> set[str]:
        """The stages whose result this one starts from or scores with."""
        stage = self.stages[name]
        sources = [stage.model.from_]
        if stage.kind == "rl" and stage.reward_model is not None:
            sources.append(stage.reward_model.from_)
        return {source for source in sources if source is not None and source in self.stages}

    def following(self, name: str) -> list[str]:
        """This stage and all that need it, directly or not, last first."""
        found = {name}
        for other in self.names:
            if self.needs(other) & found:
                found.add(other)
        return [other for other in reversed(self.names) if other in found]

    def urgency(self, name: str) -> int:
        """How many stages, one after the other, still wait for this one: the longer chain goes first."""
        after = [other for other in self.names if name in self.needs(other)]
        return 1 + max((self.urgency(other) for other in after), default=0)

    def gates(self, name: str) -> tuple[Gate, ...]:
        """What the stage must reach before another may use it."""
        return tuple(gate for gate in self.pipeline.gates if gate.stage == name)

    def extension(self, name: str) -> Extend | None:
        """By how much the stage may be lengthened where it fails a gate: what its first gate that says so allows."""
        return next((gate.extend for gate in self.gates(name) if gate.extend is not None), None)

    def extended(self, name: str, times: int) -> Stage:
        """The stage, lengthened so many times."""
        stage, extension = self.stages[name], self.extension(name)
        added = extension.steps * times if extension else 0
        return dataclasses.replace(stage, steps=stage.steps + added)

    def extension_of_hash(self, name: str, found: str) -> int | None:
        """How many times the stage was lengthened when its recipe's hash was `found`; None: it was another recipe."""
        extension = self.extension(name)
        counts = range(extension.times + 1 if extension else 1)
        return next((times for times in counts if recipe_hash(self.extended(name, times)) == found), None)

    def final_sets(self, name: str) -> tuple[str, ...]:
        """The sets on which a finished stage is evaluated; a reward model writes no responses."""
        if self.stages[name].kind == "reward_model":
            return ()
        return tuple(self.pipeline.evaluate.sets)

    def train_arguments(self, name: str, run: Path, times: int) -> list[str]:
        """The trainer's arguments."""
        arguments = [str(self.folder / f"{name}.yaml"), "--run", str(run), *self.overrides.get(name, ())]
        return arguments + ([f"--steps={self.extended(name, times).steps}"] if times else [])
