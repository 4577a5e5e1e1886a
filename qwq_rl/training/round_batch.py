"""A round that is ready for training: its samples with their advantages, for one update or several."""

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
    """The samples of this process in a round. `first` is its first update, counted from 1. Checkpoints may hold it."""

    first: int
    samples: Sequence[TrainingSample]
    places: Sequence[int]
    """The index of each sample among those of all processes."""
    total: int
    """Number of samples of all processes."""
    old_logprobs: Sequence[torch.Tensor]
    """(L_i - 1,) per sample, from before the first update; empty where the round has only one update."""
    summary: Line
    """The round's summary for the metrics."""

    def part(self, update: int, parts: int, seed: int) -> list[TrainingSample]:
        """The samples of one update. Every pass over the round splits them again at random into `parts` updates.

        The split depends on (seed, first update, pass) and the places among all processes, so an update has the same
        samples with any number of processes. Parts differ by one sample at most. This process may have none in a part.
        """
        number, within = divmod(update - self.first, parts)
        chosen = list(range(len(self.samples)))
        if parts > 1:
            generator = torch.Generator().manual_seed(hash((seed, self.first, number)) % 2**63)
            dealt = torch.randperm(self.total, generator=generator).tolist()[within::parts]
            own_row = {place: row for row, place in enumerate(self.places)}
            chosen = [own_row[place] for place in dealt if place in own_row]
        if update == self.first:  # the policy is still the one from before the round, so no old log-probabilities
            return [self.samples[row] for row in chosen]
        return [replace(self.samples[row], old=self.old_logprobs[row]) for row in chosen]

    def state(self) -> dict[str, Any]:
        """The round as tensors, numbers and text, for `from_state`."""
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
    """The round that `RoundBatch.state` was called on."""
    samples = [TrainingSample(**sample) for sample in state["samples"]]
    return RoundBatch(state["first"], samples, state["places"], state["total"], state["old_logprobs"], state["summary"])


def group_advantages(collected: Round, algorithm: str, domains: Sequence[str]) -> list[torch.Tensor]:
    """The advantage (1,) of each rollout of this process, from the groups of all. `domains`: the recipe's, in order."""
    rewards = [[math.nan if reward is None else reward for reward in group.rewards] for group in collected.outcomes]
    sizes = torch.tensor([len(group_rewards) for group_rewards in rewards])
    places = [outcome.place for outcome in collected.outcomes]
    group_domains = torch.tensor([domains.index(outcome.domain) for outcome in collected.outcomes])
    baseline, scale = ALGORITHMS[algorithm].baseline, ALGORITHMS[algorithm].scale
    assert baseline, f"{algorithm} needs a critic"
    assert scale, f"{algorithm} needs a critic"
    all_advantages = advantages(
        torch.tensor([reward for group_rewards in rewards for reward in group_rewards], dtype=torch.float64),
        torch.tensor(places).repeat_interleave(sizes),
        group_domains.repeat_interleave(sizes),
        baseline=baseline,
        scale=scale,
    ).float()
    return [all_advantages[place].reshape(1) for place in collected.places()]


def critic_advantages(
    collected: Round, samples: Sequence[TrainingSample], critic: Critic, block: CriticBlock, seed: int
) -> tuple[list[torch.Tensor], dict[str, float | None]]:
    """The advantages (L - 1,) of each rollout of this process, by GAE with the critic, which then learns the returns.

    `samples` of responses that could not be judged have an empty mask. While the critic warms up, all advantages are 0.
    Also returns the critic's figures, None instead of NaN.
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
        all_moments: list[torch.Tensor] = gather_object([moments(token_advantages, mask)])
        token_advantages = whiten(token_advantages, mask, total=torch.stack(all_moments).sum(0))
    if critic.warming:
        token_advantages = torch.zeros_like(token_advantages)
    sizes = [len(sample.mask) for sample in samples]
    targets = [row[:size] for row, size in zip(returns, sizes, strict=True)]
    figures = critic.fit(samples, old_values, targets, seed, collected.places())
    finite_figures = {name: None if math.isnan(value) else value for name, value in asdict(figures).items()}
    return [row[:size].clone() for row, size in zip(token_advantages, sizes, strict=True)], finite_figures
