"""One update of the policy: its samples in micro-batches of like length, the loss of each, and what the metrics say."""

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
from qwq_rl.training.micro_batch import BLANK, MicroBatch, TrainingSample, collate, padded, plan, token_logprobs


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
class Budget:
    """How an update is cut up and weighted."""

    tokens: int
    """Padded tokens of a micro-batch, at most."""
    domain_weights: torch.Tensor
    """(D,)."""
    constant: float | None
    """Tokens that a row counts as, for `row_weights` of kind "constant"; None otherwise."""


@dataclass(frozen=True)
class Targets:
    """What the loss compares the policy's log-probabilities with; (B, L - 1) unless said otherwise."""

    batch: MicroBatch
    advantages: torch.Tensor
    """(B, 1) or (B, L - 1)."""
    weights: torch.Tensor
    """(B,), from `algorithms.losses.row_weights`."""
    old: torch.Tensor | None
    """Log-probabilities before the first update of the round; None where this is the first."""
    reference: torch.Tensor | None


@dataclass(frozen=True)
class LossMetrics:
    """Scalars of one micro-batch, on its device."""

    sums: Mapping[str, torch.Tensor]
    """To be added up over micro-batches and processes."""
    highest: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Of which the largest counts."""


class MetricSums:
    """Adds up metrics without waiting for the device; `reduced` is the one time that processes exchange them."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._highest: dict[str, torch.Tensor] = {}

    def add(self, metrics: LossMetrics) -> None:
        """Take in what one micro-batch came to."""
        for name, value in metrics.sums.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        for name, value in metrics.highest.items():
            value = value.detach().double()
            self._highest[name] = torch.maximum(self._highest[name], value) if name in self._highest else value

    def reduced(self, accelerator: Any) -> dict[str, float]:
        """The metrics over all processes, which must all hold the same names: one gather."""
        if not self._sums and not self._highest:
            return {}
        own = torch.stack([*self._sums.values(), *self._highest.values()]).to(accelerator.device)
        every = accelerator.gather(own[None])  # (processes, metrics)
        sums = every[:, : len(self._sums)].sum(0).tolist()
        highest = every[:, len(self._sums) :].max(0).values.tolist() if self._highest else []
        return dict(zip([*self._sums, *self._highest], [*sums, *highest], strict=True))


def run_update(
    model: Any,
    accelerator: Any,
    samples: Sequence[TrainingSample],
    objective: Objective,
    budget: Budget,
    share: bool = False,
) -> tuple[torch.Tensor, MetricSums]:
    """Forward and backward over all samples of this process; gradients are left in the model, averaged over processes.

    `share`: whether the model reads the prompts that a batch names only once each.

    Returns the loss, a scalar whose mean over processes is that of the whole update, and the metrics. Equal, but for
    rounding, to one forward and backward pass over all rows of all processes. Every process, one without samples too,
    runs as many micro-batches as the one that needs most, the last ones of made-up tokens with weight 0, because
    sharded models and gradient hooks wait for each other.
    """
    weights, own_plan, rounds, blank = _plans(accelerator, samples, objective, budget, share)
    total, metrics = torch.zeros((), device=accelerator.device), MetricSums()
    for number in range(rounds):
        if number < len(own_plan):
            rows = own_plan[number]
            targets = _targets([samples[row] for row in rows], weights[rows], accelerator.device, share)
        else:
            targets = _targets([blank], torch.zeros(1), accelerator.device, share)
        last = number + 1 == rounds
        # Processes exchange gradients once, in the last backward pass.
        with _unsynchronised(accelerator, model) if not last else nullcontext():
            with accelerator.autocast():
                logprobs, entropies = token_logprobs(model, targets.batch)
            loss, of_batch = loss_of(objective, targets, logprobs, entropies)
            metrics.add(of_batch)
            # Gradients are averaged over processes, and the loss is a sum over all of their rows.
            loss = loss * accelerator.num_processes
            # DeepSpeed takes the optimiser's step inside the backward pass that this allows.
            accelerator.gradient_state._set_sync_gradients(last)
            accelerator.backward(loss)
        total += loss.detach()
    metrics.add(LossMetrics({"loss": total / accelerator.num_processes}))
    return total, metrics


def loss_of(
    objective: Objective, targets: Targets, logprobs: torch.Tensor, entropies: torch.Tensor | None
) -> tuple[torch.Tensor, LossMetrics]:
    """sum over rows of weight times the sum over its trained tokens of their loss, a scalar; and its metrics.

    `logprobs` and `entropies` (B, L - 1) are the policy's now; `entropies` may be None without an entropy bonus.
    """
    mask, algorithm = targets.batch.mask, objective.algorithm
    old = logprobs.detach() if targets.old is None else targets.old
    ratios = log_ratios(logprobs, old, mask, algorithm.level)
    losses = algorithm.loss(logprobs, ratios, targets.advantages, mask, **objective.parameters)
    sums: dict[str, torch.Tensor] = {}
    if objective.correction is not None:
        # The tokens were drawn by a sampler that is not quite the policy.
        losses = losses * importance_weights(old, targets.batch.sampled, mask, **objective.correction)
    if objective.kl and targets.reference is not None:
        kl = kl_k3(logprobs, targets.reference, ratios if algorithm.level == "token" else None)
        losses = losses + objective.kl * kl
        sums["kl"] = (kl * mask).sum()
    if objective.entropy and entropies is not None:
        losses = losses - objective.entropy * entropies
    counts = _token_metrics(objective, targets, logprobs.detach(), ratios.detach())
    loss = (torch.where(mask, losses, 0.0).sum(-1) * targets.weights).sum()
    return loss, LossMetrics({**sums, **counts.sums}, counts.highest)


def _token_metrics(objective: Objective, targets: Targets, logprobs: torch.Tensor, ratios: torch.Tensor) -> LossMetrics:
    """Trained tokens, those that the clip cut off, and how far the trainer's arithmetic is from the sampler's."""
    counted = targets.batch.mask & (targets.weights[:, None] > 0)
    sums, highest = {"tokens": counted.sum()}, {}
    clip = objective.parameters.get("clip")
    if objective.algorithm.loss is clipped and isinstance(clip, Clip):
        low, high = clipped_tokens(ratios, targets.advantages, clip)
        sums["clipped"] = ((low | high) & counted).sum()
    if targets.old is None:  # the weights are those that sampled: what differs is the arithmetic
        gap = torch.where(counted, logprobs - targets.batch.sampled, 0.0).nan_to_num(nan=0.0).abs()
        sums["gap"] = gap.sum()
        highest["gap_max"] = gap.max()
    return LossMetrics(sums, highest)


def _plans(
    accelerator: Any, samples: Sequence[TrainingSample], objective: Objective, budget: Budget, share: bool
) -> tuple[torch.Tensor, list[list[int]], int, TrainingSample]:
    """Weights of this process's rows, (rows,), its micro-batches, how many all run, and a sample to fill up with."""
    every = objective.needs_every_row
    facts = [
        (sample.extent, sample.tokens, sample.domain, (every and sample.tokens > 0) or sample.teaches)
        for sample in samples
    ]
    known = [(sample.old is not None, sample.reference is not None) for sample in samples[:1]]
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
    own_plan = plans[accelerator.process_index]
    return weights[before : before + len(facts)], own_plan, max(1, *map(len, plans)), _blank(*all_known[0])


def _of_all(facts: list[Any], known: list[tuple[bool, bool]]) -> tuple[list[list[Any]], list[tuple[bool, bool]]]:
    """The facts of every process, and what their samples have, from those that have samples."""
    gathered: list[tuple[list[Any], list[tuple[bool, bool]]]] = gather_object([(facts, known)])
    return [part for part, _ in gathered], [has for _, of in gathered for has in of] or [(False, False)]


def _blank(old: bool, reference: bool) -> TrainingSample:
    """Two made-up tokens that teach nothing, with what the samples beside them have: so they count the same."""
    zero = torch.zeros(1)
    return TrainingSample(
        BLANK.ids, BLANK.mask, BLANK.sampled, BLANK.domain, zero, zero if reference else None, zero if old else None
    )


def _targets(samples: Sequence[TrainingSample], weights: torch.Tensor, device: torch.device, share: bool) -> Targets:
    def together(rows: list[torch.Tensor | None]) -> torch.Tensor | None:
        known = [row for row in rows if row is not None]
        return padded(known, device) if len(known) == len(rows) else None

    return Targets(
        collate(samples, device, share),
        padded([sample.advantage for sample in samples], device),
        weights.to(device),
        together([sample.old for sample in samples]),
        together([sample.reference for sample in samples]),
    )


def _unsynchronised(accelerator: Any, model: Any) -> Any:
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return nullcontext()  # it is told by the flag that `backward` reads
    return accelerator.no_sync(model)
