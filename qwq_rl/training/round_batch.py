"""A round made ready to train on, which several updates may share and a checkpoint may keep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from accelerate.utils import gather_object

from qwq_rl.algorithms.advantages import advantages
from qwq_rl.algorithms.gae import adaptive_lambda, at_last_token, gae, moments, whiten
from qwq_rl.algorithms.named import ALGORITHMS
from qwq_rl.config.blocks import CriticBlock as CriticBlock
from qwq_rl.rollouts.collect import Round
from qwq_rl.rollouts.rollout import Line
from qwq_rl.training.critic import Critic
from qwq_rl.training.micro_batch import Trace, padded
from qwq_rl.training.update import Lesson


@dataclass(frozen=True)
class RoundBatch:
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


def from_state(state: Mapping[str, Any]) -> RoundBatch:
    """The round that `RoundBatch.state` described."""
    lessons = [
        Lesson(
            Trace(one["ids"], one["mask"], one["sampled"], one["domain"]), one["advantage"], reference=one["reference"]
        )
        for one in state["lessons"]
    ]
    return RoundBatch(state["first"], lessons, state["places"], state["total"], state["before"], state["summary"])


def group_advantages(collected: Round, algorithm: str, domains: Sequence[str]) -> list[torch.Tensor]:
    """(1,) of each rollout of this process, by the groups of all processes; `domains` are the recipe's, in order."""
    rewards = [[float("nan") if one is None else one for one in of] for _, _, of in collected.outcomes]
    sizes = torch.tensor([len(of) for of in rewards])
    places = [place for place, _, _ in collected.outcomes]
    of_domain = torch.tensor([domains.index(str(row["domain"])) for _, row, _ in collected.outcomes])
    baseline, scale = ALGORITHMS[algorithm].baseline, ALGORITHMS[algorithm].scale
    assert baseline, f"{algorithm} needs a critic"
    assert scale, f"{algorithm} needs a critic"
    every = advantages(
        torch.tensor([one for of in rewards for one in of], dtype=torch.float64),
        torch.tensor(places).repeat_interleave(sizes),
        of_domain.repeat_interleave(sizes),
        baseline=baseline,
        scale=scale,
    ).float()
    return [every[place].reshape(1) for place in collected.places()]


def critic_advantages(
    collected: Round, traces: Sequence[Trace], critic: Critic, block: CriticBlock, seed: int
) -> tuple[list[torch.Tensor], dict[str, float | None]]:
    """(L - 1,) of each rollout of this process: its tokens against the critic, which then learns from the round.

    `traces` of responses that could not be judged have an empty mask. While the critic warms up, every advantage is 0.
    Also returns the critic's figures, None where there is no number.
    """
    cpu = torch.device("cpu")
    old = critic.values(traces)
    values, mask = padded(old, cpu), padded([trace.mask for trace in traces], cpu).bool()
    rewards = at_last_token(torch.tensor([one.scored.reward or 0.0 for one in collected.rollouts]), mask)
    by_length = adaptive_lambda(mask.sum(-1))
    policy_lam = by_length if block.policy_lam is None else block.policy_lam
    found, _ = gae(values, rewards, mask, block.gamma, policy_lam)
    _, returns = gae(values, rewards, mask, block.gamma, block.lam)
    if block.whiten:
        every: list[torch.Tensor] = gather_object([moments(found, mask)])
        found = whiten(found, mask, total=torch.stack(every).sum(0))
    if critic.warming:
        found = torch.zeros_like(found)
    sizes = [len(trace.mask) for trace in traces]
    targets = [row[:size] for row, size in zip(returns, sizes, strict=True)]
    figures = critic.fit(traces, old, targets, seed, collected.places())
    known = {name: None if math.isnan(value) else value for name, value in asdict(figures).items()}
    return [row[:size].clone() for row, size in zip(found, sizes, strict=True)], known
