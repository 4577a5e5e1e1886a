"""Advantages of a round: each response compared with its group, or each token with what a critic expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

import torch
from accelerate.utils import gather_object

from qwq_rl.algorithms.advantages import ADVANTAGES, advantages
from qwq_rl.algorithms.gae import adaptive_lambda, at_last_token, gae, moments, whiten
from qwq_rl.config.blocks import Critic as CriticBlock
from qwq_rl.rollouts.collect import Round
from qwq_rl.training.critic import Critic
from qwq_rl.training.micro_batch import Trace, padded


def compared(collected: Round, algorithm: str, domains: Sequence[str]) -> list[torch.Tensor]:
    """(1,) of each rollout of this process, by the groups of all processes; `domains` are the recipe's, in order."""
    rewards = [[float("nan") if one is None else one for one in of] for _, _, of in collected.outcomes]
    sizes = torch.tensor([len(of) for of in rewards])
    places = [place for place, _, _ in collected.outcomes]
    of_domain = torch.tensor([domains.index(str(row["domain"])) for _, row, _ in collected.outcomes])
    baseline, scale = ADVANTAGES[algorithm]
    every = advantages(
        torch.tensor([one for of in rewards for one in of], dtype=torch.float64),
        torch.tensor(places).repeat_interleave(sizes),
        of_domain.repeat_interleave(sizes),
        baseline=baseline,
        scale=scale,
    ).float()
    return [every[place].reshape(1) for place in collected.places()]


def expected(
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
