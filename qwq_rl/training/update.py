"""One update of the policy: its rows in micro-batches of like length, only those that teach something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object

from qwq_rl.algorithms.losses import Clip, clipped, clipped_tokens, kl_k3, row_weights
from qwq_rl.algorithms.named import Algorithm
from qwq_rl.algorithms.ratios import importance_weights, log_ratios
from qwq_rl.inference.fast_qwen.training_head import shares_prompts
from qwq_rl.training.micro_batch import BLANK, MicroBatch, Trace, collate, padded, plan, token_logprobs


@dataclass(frozen=True)
class Lesson:
    """A trace and what the update is to make of it."""

    trace: Trace
    advantage: torch.Tensor
    """(1,), or (L - 1,) where a critic gave each token its own."""
    old: torch.Tensor | None = None
    """(L - 1,) log-probabilities before the round's first update; None in that update itself."""
    reference: torch.Tensor | None = None
    """(L - 1,) log-probabilities under the reference."""

    @property
    def teaches(self) -> bool:
        """Whether the policy loss has a gradient here."""
        return bool(self.trace.mask.any()) and bool((self.advantage != 0).any())


@dataclass(frozen=True)
class Budget:
    """How an update is cut up and weighted."""

    tokens: int
    """Padded tokens of a micro-batch, at most."""
    domain_weights: torch.Tensor
    """(D,)."""
    constant: float | None
    """Tokens that a row counts as, for `row_weights` of kind "constant"; None otherwise."""


@dataclass(frozen=True)
class Objective:
    """What the recipe asks of an update."""

    algorithm: Algorithm
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of `algorithm.loss`, such as its clip."""
    kl: float = 0.0
    """Weight of the KL divergence to the reference."""
    entropy: float = 0.0
    """Weight of the entropy bonus."""
    correction: Mapping[str, Any] | None = None
    """Keyword arguments of `importance_weights`, for a sampler whose log-probabilities are not the trainer's."""

    @property
    def needs_every_row(self) -> bool:
        """Whether a row without an advantage has a gradient."""
        return self.kl > 0 or self.entropy > 0


@dataclass(frozen=True)
class Targets:
    """What the loss compares the policy's log-probabilities with; (B, L - 1) unless said otherwise."""

    batch: MicroBatch
    advantages: torch.Tensor
    """(B, 1) or (B, L - 1)."""
    weights: torch.Tensor
    """(B,), from `objective.weights.row_weights`."""
    old: torch.Tensor | None
    """Log-probabilities before the first update of the round; None where this is the first."""
    reference: torch.Tensor | None


def run_update(
    model: Any, accelerator: Any, lessons: Sequence[Lesson], objective: Objective, budget: Budget, tally: MetricSums
) -> torch.Tensor:
    """Forward and backward over all lessons of this process; gradients are left in the model, averaged over processes.

    Returns the loss, a scalar whose mean over processes is that of the whole update. Equal, but for rounding, to one
    forward and backward pass over all rows of all processes. Every process, one without lessons too, runs as many
    micro-batches as the one that needs most, the last ones of made-up tokens with weight 0, because sharded models and
    gradient hooks wait for each other.
    """
    share = shares_prompts(accelerator.unwrap_model(model))
    weights, own, rounds, blank = _plans(accelerator, lessons, objective, budget, share)
    total = torch.zeros((), device=accelerator.device)
    for number in range(rounds):
        if number < len(own):
            targets = _targets([lessons[at] for at in own[number]], weights[own[number]], accelerator.device, share)
        else:
            targets = _targets([blank], torch.zeros(1), accelerator.device, share)
        last = number + 1 == rounds
        with _unsynchronised(accelerator, model) if not last else nullcontext():
            with accelerator.autocast():
                logprobs, entropies = token_logprobs(model, targets.batch)
            loss = loss_of(objective, targets, logprobs, entropies, tally) * accelerator.num_processes
            # DeepSpeed takes the optimiser's step inside the backward pass that this allows.
            accelerator.gradient_state._set_sync_gradients(last)
            accelerator.backward(loss)
        total += loss.detach()
    return total


def _plans(
    accelerator: Any, lessons: Sequence[Lesson], objective: Objective, budget: Budget, share: bool
) -> tuple[torch.Tensor, list[list[int]], int, Lesson]:
    """Weights of this process's rows, (rows,), its micro-batches, how many all run, and a lesson to fill up with."""
    every = objective.needs_every_row
    facts = [
        (one.trace.extent, one.trace.tokens, one.trace.domain, (every and one.trace.tokens > 0) or one.teaches)
        for one in lessons
    ]
    known = [(one.old is not None, one.reference is not None) for one in lessons[:1]]
    gathered, all_known = _of_all(facts, known)
    flat = [fact for part in gathered for fact in part]
    weights = row_weights(
        torch.tensor([fact[1] for fact in flat]),
        torch.tensor([fact[2] for fact in flat]),
        budget.domain_weights,
        objective.algorithm.weights,
        None if budget.constant is None else budget.constant * max(1, len(flat)),
    )
    plans = [
        plan([fact[0] for fact in part], [fact[3] for fact in part], budget.tokens, share) if part else []
        for part in gathered
    ]
    before = sum(len(part) for part in gathered[: accelerator.process_index])
    own = plans[accelerator.process_index]
    return weights[before : before + len(facts)], own, max(1, *map(len, plans)), _blank(*all_known[0])


def _of_all(facts: list[Any], known: list[tuple[bool, bool]]) -> tuple[list[list[Any]], list[tuple[bool, bool]]]:
    """The facts of every process, and what their lessons have, from those that have lessons."""
    gathered: list[tuple[list[Any], list[tuple[bool, bool]]]] = gather_object([(facts, known)])
    return [part for part, _ in gathered], [one for _, of in gathered for one in of] or [(False, False)]


def _blank(old: bool, reference: bool) -> Lesson:
    """A lesson of two made-up tokens that teaches nothing, with what those beside it have: so it counts the same."""
    zero = torch.zeros(1)
    return Lesson(BLANK, zero, zero if old else None, zero if reference else None)


def _targets(lessons: Sequence[Lesson], weights: torch.Tensor, device: torch.device, share: bool) -> Targets:
    batch = collate([one.trace for one in lessons], device, share)

    def together(rows: list[torch.Tensor | None]) -> torch.Tensor | None:
        known = [row for row in rows if row is not None]
        return padded(known, device) if len(known) == len(rows) else None

    return Targets(
        batch,
        padded([one.advantage for one in lessons], device),
        weights.to(device),
        together([one.old for one in lessons]),
        together([one.reference for one in lessons]),
    )


def _unsynchronised(accelerator: Any, model: Any) -> Any:
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return nullcontext()  # it is told by the flag that `backward` reads
    return accelerator.no_sync(model)


def loss_of(
    objective: Objective, targets: Targets, logprobs: torch.Tensor, entropies: torch.Tensor | None, tally: MetricSums
) -> torch.Tensor:
    """sum over rows of weight times the sum over its trained tokens of their loss, a scalar; figures go to `tally`.

    `logprobs` and `entropies` (B, L - 1) are the policy's now; `entropies` may be None without an entropy bonus.
    """
    mask, advantages, sampled = targets.batch.mask, targets.advantages, targets.batch.sampled
    old = logprobs.detach() if targets.old is None else targets.old
    ratios = log_ratios(logprobs, old, mask, objective.algorithm.level)
    losses = objective.algorithm.loss(logprobs, ratios, advantages, mask, **objective.parameters)
    if objective.correction is not None:
        losses = losses * importance_weights(old, sampled, mask, **objective.correction)
    if objective.kl and targets.reference is not None:
        kl = kl_k3(logprobs, targets.reference, ratios if objective.algorithm.level == "token" else None)
        losses = losses + objective.kl * kl
        tally.add("kl", (kl * mask).sum())
    if objective.entropy and entropies is not None:
        losses = losses - objective.entropy * entropies
    _note(objective, targets, logprobs.detach(), ratios.detach(), tally)
    return (torch.where(mask, losses, 0.0).sum(-1) * targets.weights).sum()


def _note(
    objective: Objective, targets: Targets, logprobs: torch.Tensor, ratios: torch.Tensor, tally: MetricSums
) -> None:
    mask, real = targets.batch.mask, targets.weights[:, None] > 0
    tally.add("tokens", (mask & real).sum())
    clip = objective.parameters.get("clip")
    if objective.algorithm.loss is clipped and isinstance(clip, Clip):
        low, high = clipped_tokens(ratios, targets.advantages, clip)
        tally.add("clipped", ((low | high) & mask & real).sum())
    if targets.old is None:  # the weights are those that sampled: what differs is the arithmetic
        gap = torch.where(mask & real, logprobs - targets.batch.sampled, 0.0).nan_to_num(nan=0.0).abs()
        tally.add("gap", gap.sum())
        tally.highest("gap_max", gap.max())


class MetricSums:
    """Adds up figures without waiting for the device; `reduced` is the one time that processes exchange them."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._highest: dict[str, torch.Tensor] = {}

    def add(self, name: str, value: torch.Tensor) -> None:
        """Add a scalar to the sum of that name."""
        value = value.detach().double()
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def highest(self, name: str, value: torch.Tensor) -> None:
        """Keep the largest scalar of that name, at least 0."""
        value = value.detach().double()
        self._highest[name] = torch.maximum(self._highest[name], value) if name in self._highest else value

    def reduced(self, accelerator: Any) -> dict[str, float]:
        """The figures over all processes, which must all hold the same names: one gather."""
        if not self._sums and not self._highest:
            return {}
        own = torch.stack([*self._sums.values(), *self._highest.values()]).to(accelerator.device)
        every = accelerator.gather(own[None])  # (processes, figures)
        sums = every[:, : len(self._sums)].sum(0).tolist()
        highest = every[:, len(self._sums) :].max(0).values.tolist() if self._highest else []
        return dict(zip([*self._sums, *self._highest], [*sums, *highest], strict=True))
