"""A round made ready to train on, which several updates may share and a checkpoint may keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from qwq_rl.rollouts.rollout import Line
from qwq_rl.training.micro_batch import Trace
from qwq_rl.training.update import Lesson


@dataclass(frozen=True)
class Prepared:
    """The lessons of this process, from update `first` on, counted from 1."""

    first: int
    lessons: Sequence[Lesson]
    places: Sequence[int]
    """Where each lesson stands among those of all processes."""
    total: int
    """Lessons of all processes."""
    before: Sequence[torch.Tensor]
    """Log-probabilities (L_i - 1,) before the first update; empty where there is only one."""
    summary: Line
    """What the metrics say of the round."""

    def part(self, update: int, parts: int, seed: int) -> list[Lesson]:
        """The lessons of one update: every pass over the round deals them out anew among `parts` updates.

        Dealt by (seed, first update, pass) and place among those of all processes: however many there are, an update
        has the same lessons. The parts are as equal as can be; this process may have none in one of them.
        """
        number, within = divmod(update - self.first, parts)
        chosen = list(range(len(self.lessons)))
        if parts > 1:
            generator = torch.Generator().manual_seed(hash((seed, self.first, number)) % 2**63)
            dealt = torch.randperm(self.total, generator=generator).tolist()[within::parts]
            mine = {place: at for at, place in enumerate(self.places)}
            chosen = [mine[place] for place in dealt if place in mine]
        lessons = [self.lessons[at] for at in chosen]
        if update == self.first:
            return lessons
        return [replace(one, old=self.before[at]) for one, at in zip(lessons, chosen, strict=True)]

    def state(self) -> dict[str, Any]:
        """Tensors, numbers and text that `from_state` makes the same of."""
        return {
            "first": self.first,
            "summary": self.summary,
            "places": list(self.places),
            "total": self.total,
            "before": list(self.before),
            "lessons": [
                {
                    "ids": one.trace.ids,
                    "mask": one.trace.mask,
                    "sampled": one.trace.sampled,
                    "domain": one.trace.domain,
                    "advantage": one.advantage,
                    "reference": one.reference,
                }
                for one in self.lessons
            ],
        }


def from_state(state: Mapping[str, Any]) -> Prepared:
    """The round that `Prepared.state` described."""
    lessons = [
        Lesson(
            Trace(one["ids"], one["mask"], one["sampled"], one["domain"]), one["advantage"], reference=one["reference"]
        )
        for one in state["lessons"]
    ]
    return Prepared(state["first"], lessons, state["places"], state["total"], state["before"], state["summary"])
