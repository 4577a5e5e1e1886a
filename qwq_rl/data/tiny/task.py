"""One generated task, and the split that keeps the operands of held-out tasks out of training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

Split = Literal["train", "tuning", "final"]
Level = Literal["normal", "harder"]


@dataclass(frozen=True)
class Task:
    """A prompt with its check and its solution: the reasoning and the answer."""

    domain: str
    family: str
    operands: tuple[Any, ...]
    """They decide the split: tasks with the same operands lie in the same split, also across families."""
    prompt: str
    reasoning: str
    """The full reasoning. A terse demonstration leaves it out."""
    answer: str
    check: Mapping[str, Any] | None
    """The check of role score; None for an open task."""
    grade: Mapping[str, Any] | None = None
    """The check of evaluation, if it differs from the check of training."""
    tools: Sequence[Mapping[str, Any]] | None = None
    terse: bool = False
    """Whether demonstrations of this family may leave the reasoning out."""


@dataclass(frozen=True)
class Teacher:
    """Computes the solution of a task. A fallible teacher gets a share of the steps wrong and continues from there."""

    slip: float = 0.0
    """Share of the steps of math and code that are wrong."""
    flaw: float = 0.0
    """Share of the echoes, lists, records, calls and greetings that are wrong."""
    rng: Random = field(default_factory=Random)

    def result(self, right: int, choices: int) -> int:
        """Return the result of one step: `right`, or with probability `slip` another number below `choices`."""
        if self.slip and self.rng.random() < self.slip:
            return (right + self.rng.randrange(1, choices)) % choices
        return right

    def is_flawed(self) -> bool:
        """Draw whether this answer is to be wrong."""
        return bool(self.flaw) and self.rng.random() < self.flaw

    def number(self, right: int) -> int:
        """Return a digit to be copied: `right`, or with probability `flaw` another digit."""
        return (right + self.rng.randrange(1, 10)) % 10 if self.is_flawed() else right


Family = Callable[[Random, Level, Teacher], Task]
"""Draws one task of a family; a `harder` task is beyond everything that `normal` can draw. The check is always right;
reasoning and answer come from the teacher."""


def split_of(operands: tuple[Any, ...]) -> Split:
    """Return the split of an operand tuple, by its MD5: 20 % final, 15 % tuning, the rest training."""
    bucket = int(hashlib.md5(repr(operands).encode()).hexdigest(), 16) % 100
    return "final" if bucket < 20 else "tuning" if bucket < 35 else "train"


def draw(
    family: Family, rng: Random, split: Split, level: Level, count: int, teacher: Teacher = Teacher()
) -> list[Task]:
    """Return `count` tasks with distinct prompts whose operands lie in `split`; fewer if the family has no more."""
    tasks: dict[str, Task] = {}
    misses = 0
    # 2000 draws in a row without a new task: the family has no more in this split.
    while len(tasks) < count and misses < 2000:
        task = family(rng, level, teacher)
        if task.prompt in tasks or split_of(task.operands) != split:
            misses += 1
            continue
        tasks[task.prompt] = task
        misses = 0
    return list(tasks.values())
