"""A round made ready to train on: its samples with their advantages, which several updates may share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from qwq_rl.algorithms.advantages import advantages
from qwq_rl.algorithms.gae import adaptive_lambda, at_last_token, gae, moments, whiten
from qwq_rl.algorithms.named import ALGORITHMS
from qwq_rl.training.micro_batch import TrainingSample, padded

if TYPE_CHECKING:
    from qwq_rl.config.blocks import CriticBlock
    from qwq_rl.rollouts.collect import Round
    from qwq_rl.rollouts.rollout import Line
    from qwq_rl.training.critic import Critic


@dataclass(frozen=True)
class RoundBatch:
    """The samples of this process, from update `first` on, counted from 1. A checkpoint may keep it."""

    first: int
    samples: Sequence[TrainingSample]
    places: Sequence[int]
    """Where each sample stands among those of all processes."""
    total: int
    """Samples of all processes."""
    old_logprobs: Sequence[torch.Tensor]
    """(L_i - 1,) before the first update; empty where there is only one."""
    summary: Line
    """What the metrics say of the round."""

    def part(self, update: int, parts: int, seed: int) -> list[TrainingSample]:
        """The samples of one update: every pass over the round deals them out anew among `parts` updates.

        Dealt by (seed, first update, pass) and place among those of all processes: however many there are, an update
        has the same samples. The parts are as equal as can be; this process may have none in one of them.
        """
        number, within = divmod(update - self.first, parts)
        chosen = list(range(len(self.samples)))
        if parts > 1:
            generator = torch.Generator().manual_seed(hash((seed, self.first, number)) % 2**63)
            dealt = torch.randperm(self.total, generator=generator).tolist()[within::parts]
            own_row = {place: row for row, place in enumerate(self.places)}
            chosen = [own_row[place] for place in dealt if place in own_row]
        if update == self.first:
            return [self.samples[row] for row in chosen]
        return [replace(self.samples[row], old=self.old_logprobs[row]) for row in chosen]

    def state(self) -> dict[str, Any]:
        """Tensors, numbers and text that `from_state` makes the same of."""
        return {
            "first": self.first,
            "summary": self.summary,
            "places": list(self.places),
            "total": self.total,
            "old_logprobs": list(self.old_logprobs),
            "samples": [
                {
                    "ids": sample.ids,
                    "mask": sample.mask,
                    "sampled": sample.sampled,
                    "domain": sample.domain,
                    "advantage": sample.advantage,
                    "reference": sample.reference,
                }
                for sample in self.samples
            ],
        }


def from_state(state: Mapping[str, Any]) -> RoundBatch:
    """The round that `RoundBatch.state` described."""
    samples = [TrainingSample(**sample) for sample in state["samples"]]
    return RoundBatch(state["first"], samples, state["places"], state["total"], state["old_logprobs"], state["summary"])


def group_advantages(collected: Round, algorithm: str, domains: Sequence[str]) -> list[torch.Tensor]:
    """(1,) of each rollout of this process, by the groups of all processes; `domains` are the recipe's, in order."""
    rewards = [[math.nan if reward is None else reward for reward in one.rewards] for one in collected.outcomes]
    sizes = torch.tensor([len(group) for group in rewards])
    places = [outcome.place for outcome in collected.outcomes]
    group_domains = torch.tensor([domains.index(outcome.domain) for outcome in collected.outcomes])
    baseline, scale = ALGORITHMS[algorithm].baseline, ALGORITHMS[algorithm].scale
    assert baseline, f"{algorithm} needs a critic"
    assert scale, f"{algorithm} needs a critic"
    of_all = advantages(
        torch.tensor([reward for group in rewards for reward in group], dtype=torch.float64),
        torch.tensor(places).repeat_interleave(sizes),
        group_domains.repeat_interleave(sizes),
        baseline=baseline,
        scale=scale,
    ).float()
    return [of_all[place].reshape(1) for place in collected.places()]


def critic_advantages(
    collected: Round, samples: Sequence[TrainingSample], critic: Critic, block: CriticBlock, seed: int
) -> tuple[list[torch.Tensor], dict[str, float | None]]:
    """(L - 1,) of each rollout of this process: its tokens against the critic, which then learns from the round.

    `samples` of responses that could not be judged have an empty mask. While the critic warms up, every advantage is 0.
    Also returns the critic's figures, None where there is no number.
    """
    cpu = torch.device("cpu")
    old_values = critic.values(samples)
    values, mask = padded(old_values, cpu), padded([sample.mask for sample in samples], cpu).bool()
    rewards = at_last_token(torch.tensor([rollout.scored.reward or 0.0 for rollout in collected.rollouts]), mask)
    policy_lam = adaptive_lambda(mask.sum(-1)) if block.policy_lam is None else block.policy_lam
    token_advantages, _ = gae(values, rewards, mask, block.gamma, policy_lam)
    # The critic is fitted to returns of its own lambda, which may look further ahead (VC-PPO, arXiv 2503.01491).
    _, returns = gae(values, rewards, mask, block.gamma, block.lam)
    if block.whiten:
        of_all: list[torch.Tensor] = gather_object([moments(token_advantages, mask)])
        token_advantages = whiten(token_advantages, mask, total=torch.stack(of_all).sum(0))
    if critic.warming:
        token_advantages = torch.zeros_like(token_advantages)
    sizes = [len(sample.mask) for sample in samples]
    targets = [row[:size] for row, size in zip(returns, sizes, strict=True)]
    figures = critic.fit(samples, old_values, targets, seed, collected.places())
    known = {name: None if math.isnan(value) else value for name, value in asdict(figures).items()}
    return [row[:size].clone() for row, size in zip(token_advantages, sizes, strict=True)], known
