"""A round made ready to train on, which several updates may share and a checkpoint may keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from qwq_rl.trainer.rollouts import Line
from qwq_rl.trainer.traces import Trace
from qwq_rl.trainer.update import Lesson


@dataclass(frozen=True)
class Prepared:
    """The lessons of this process, from update `first` on, counted from 1."""

    first: int
    lessons: Sequence[Lesson]
    before: Sequence[torch.Tensor]
    """Log-probabilities (L_i - 1,) before the first update; empty where there is only one."""
    summary: Line
    """What the metrics say of the round."""

    def part(self, update: int, parts: int, seed: int) -> list[Lesson]:
        """The lessons of one update: every pass over the round deals them out anew among `parts` updates.

        Dealt by (seed, first update, pass) alone; the parts are as equal as can be.
        """
        number, within = divmod(update - self.first, parts)
        places = list(range(len(self.lessons)))
        if parts > 1:
            generator = torch.Generator().manual_seed(hash((seed, self.first, number)) % 2**63)
            places = torch.randperm(len(places), generator=generator).tolist()[within::parts]
        lessons = [self.lessons[place] for place in places]
        if update == self.first:
            return lessons
        return [replace(one, old=self.before[place]) for one, place in zip(lessons, places, strict=True)]

    def state(self) -> dict[str, Any]:
        """Tensors, numbers and text that `from_state` makes the same of."""
        return {
            "first": self.first,
            "summary": self.summary,
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
    return Prepared(state["first"], lessons, state["before"], state["summary"])
