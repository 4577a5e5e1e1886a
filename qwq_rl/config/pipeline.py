"""A pipeline: which stages run in which order, the gates between them, and what is evaluated and released."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from qwq_rl.config.loader import Contradictions, about

_TAKEN = ("pipeline", "evaluations", "model")  # other names in a run folder, or in an override


@dataclass(frozen=True)
class Requirement:
    """One figure that a stage must exceed."""

    measure: Literal["pass_at_1", "pass_at_k", "worked_minus_terse"] = field(
        metadata=about(
            "pass_at_1: the mean score; pass_at_k: the share of prompts solved at least once; "
            "worked_minus_terse: the mean score of responses with reasoning minus that of responses without."
        )
    )
    above: float = field(metadata=about("The figure must be above this.", least=-1, below=1))
    domains: tuple[str, ...] = field(
        default=(), metadata=about("The domains that must reach it, each by itself; none named: all of the set.")
    )
    over: Literal["families", "domains"] = field(
        default="domains", metadata=about("Whether each domain as a whole must reach it, or each of its families.")
    )

    def contradictions(self) -> Contradictions:
        """The requirement can be measured, and it can fail."""
        if self.measure == "worked_minus_terse" and self.over == "families":
            yield "over", "worked_minus_terse is measured over domains only"
        if self.measure != "worked_minus_terse" and self.above < 0:
            yield "above", f"a {self.measure} is never below 0: the requirement would always be met"


@dataclass(frozen=True)
class Extend:
    """What to do before giving up at a gate."""

    steps: int = field(metadata=about("Train the stage so many steps longer.", least=1))
    times: int = field(metadata=about("At most so often.", least=1))


@dataclass(frozen=True)
class Gate:
    """What a stage must reach before a stage that starts from it may begin."""

    stage: str = field(metadata=about("The stage that is judged when it ends."))
    set: str = field(metadata=about("The evaluation set it is judged on."))
    require: tuple[Requirement, ...] = field(
        metadata=about("What it must reach, all of it.", some="the gate would always be open")
    )
    extend: Extend | None = field(
        default=None, metadata=about("Train the stage longer where it falls short; without this, the run stops there.")
    )


@dataclass(frozen=True)
class FinalEvaluation:
    """The evaluation of every finished stage, which the report's figures come from."""

    sets: tuple[str, ...] = field(metadata=about("Evaluation sets.", some="there is nothing to evaluate on"))
    samples: int = field(
        metadata=about("Sampled responses to each prompt, at temperature 1; one greedy beside them.", least=1)
    )
    max_tokens: int = field(metadata=about("Longest response, in tokens.", least=1))


@dataclass(frozen=True)
class Control:
    """The stage that shows what the same compute reaches without reinforcement learning."""

    stage: str = field(metadata=about("The control."))
    of: str = field(metadata=about("The stage it is the control of."))

    def contradictions(self) -> Contradictions:
        """A control and the stage it is compared with are two stages."""
        if self.stage == self.of:
            yield "of", f"{self.of} cannot be its own control"


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """`pipeline.yaml`: the stages of a recipe folder."""

    stages: tuple[str, ...] = field(
        metadata=about(
            "The stages in order, each the stem of a YAML file beside this one.", some="name at least one stage"
        )
    )
    parallel: int = field(
        default=1, metadata=about("How many stages and evaluations may run at once where dependencies allow.", least=1)
    )
    gates: tuple[Gate, ...] = field(default=(), metadata=about("What stages must reach before others start from them."))
    evaluate: FinalEvaluation = field(metadata=about("The evaluation of every finished stage."))
    control: Control | None = field(default=None, metadata=about("Which stage is the control of which."))
    release: str = field(metadata=about("The stage whose model is exported as the result."))

    def contradictions(self) -> Contradictions:
        """Stage names are distinct and can be used as folder names and in overrides."""
        for index, name in enumerate(self.stages):
            if name in self.stages[:index]:
                yield f"stages.{index}", f"{name} is named twice"
            if not re.fullmatch(r"[\w-]+", name) or name in _TAKEN:
                yield (
                    f"stages.{index}",
                    f"{name!r} cannot name a stage: letters, digits, _ and -, not {', '.join(_TAKEN)}",
                )
