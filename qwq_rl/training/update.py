"""One update of the policy: micro-batches of similar length, the loss of each, and the metrics. Read `run_update`."""

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
    """The recipe's settings of an update."""

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
        """Whether a row with advantage 0 has a gradient too."""
        return self.kl > 0 or self.entropy > 0


@dataclass(frozen=True)
class Budget:
    """How an update is split into micro-batches, and how rows are weighted."""

    tokens: int
    """Tokens of a micro-batch at most, with padding."""
    domain_weights: torch.Tensor
    """(D,), one per domain."""
    constant: float | None
    """Tokens that each row counts as in `row_weights` of kind "constant"; None for other kinds."""


@dataclass(frozen=True)
class Targets:
    """What the loss needs besides the policy's log-probabilities; (B, L - 1) where no shape is given."""

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
    """To be summed over micro-batches and processes."""
    highest: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Of these the largest over micro-batches and processes is taken."""


class MetricSums:
    """Sums metrics without waiting for the device. Processes exchange them only in `reduced`."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._highest: dict[str, torch.Tensor] = {}

    def add(self, metrics: LossMetrics) -> None:
        """Add the metrics of one micro-batch."""
        for name, value in metrics.sums.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        for name, value in metrics.highest.items():
            value = value.detach().double()
            self._highest[name] = torch.maximum(self._highest[name], value) if name in self._highest else value

    def reduced(self, accelerator: Any) -> dict[str, float]:
        """The metrics over all processes, in one gather. All processes must have the same names."""
        if not self._sums and not self._highest:
            return {}
        own_values = torch.stack([*self._sums.values(), *self._highest.values()]).to(accelerator.device)
        all_values = accelerator.gather(own_values[None])  # (processes, metrics)
        sums = all_values[:, : len(self._sums)].sum(0).tolist()
        highest = all_values[:, len(self._sums) :].max(0).values.tolist() if self._highest else []
        return dict(zip([*self._sums, *self._highest], [*sums, *highest], strict=True))


def run_update(
    model: Any,
    accelerator: Any,
    samples: Sequence[TrainingSample],
    objective: Objective,
    budget: Budget,
    share: bool = False,
) -> tuple[torch.Tensor, MetricSums]:
    """Forward and backward passes over all samples of this process. The gradients stay in the model, averaged over
    processes.

    `share`: whether the model computes each prompt of a batch only once.

    Returns the loss, a scalar whose mean over processes is the loss of the whole update, and the metrics. Except for
    rounding the result is that of one forward and backward pass over all rows of all processes. Every process, also one
    without samples, runs as many micro-batches as the one that needs most; it fills up with made-up tokens of weight 0.
    Sharded models and gradient hooks wait for each other, so different numbers of passes would hang.
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
            loss, batch_metrics = loss_of(objective, targets, logprobs, entropies)
            metrics.add(batch_metrics)
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
    """The loss of a micro-batch, a scalar, and its metrics. A row counts with its weight times the sum over its tokens.

    `logprobs` and `entropies` (B, L - 1) are those of the current policy. Without an entropy bonus `entropies` may be
    None.
    """
    mask, algorithm = targets.batch.mask, objective.algorithm
    old = logprobs.detach() if targets.old is None else targets.old
    ratios = log_ratios(logprobs, old, mask, algorithm.level)
    losses = algorithm.loss(logprobs, ratios, targets.advantages, mask, **objective.parameters)
    sums: dict[str, torch.Tensor] = {}
    if objective.correction is not None:
        # The sampler that drew the tokens differs slightly from the policy.
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
    """Counts of trained and of clipped tokens, and the gap between log-probabilities of trainer and sampler."""
    counted = targets.batch.mask & (targets.weights[:, None] > 0)
    sums, highest = {"tokens": counted.sum()}, {}
    clip = objective.parameters.get("clip")
    if objective.algorithm.loss is clipped and isinstance(clip, Clip):
        low, high = clipped_tokens(ratios, targets.advantages, clip)
        sums["clipped"] = ((low | high) & counted).sum()
    if targets.old is None:  # the weights are those that sampled, so only arithmetic makes a difference
        gap = torch.where(counted, logprobs - targets.batch.sampled, 0.0).nan_to_num(nan=0.0).abs()
        sums["gap"] = gap.sum()
        highest["gap_max"] = gap.max()
    return LossMetrics(sums, highest)


def _plans(
    accelerator: Any, samples: Sequence[TrainingSample], objective: Objective, budget: Budget, share: bool
) -> tuple[torch.Tensor, list[list[int]], int, TrainingSample]:
    """Weights of this process's rows, (rows,), its micro-batches, the number that every process runs, a blank sample.

    Every process plans for all: weights depend on the rows of all processes, and the number on their plans.
    """
    needs_every_row = objective.needs_every_row
    facts = [
        (sample.extent, sample.tokens, sample.domain, (needs_every_row and sample.tokens > 0) or sample.teaches)
        for sample in samples
    ]
    has_fields = [(sample.old is not None, sample.reference is not None) for sample in samples[:1]]
    gathered, all_has_fields = _from_all_processes(facts, has_fields)
    all_facts = [fact for process_facts in gathered for fact in process_facts]
    weights = row_weights(
        torch.tensor([fact[1] for fact in all_facts]),
        torch.tensor([fact[2] for fact in all_facts]),
        budget.domain_weights,
        objective.algorithm.weights,
        None if budget.constant is None else budget.constant * max(1, len(all_facts)),
    )
    plans = [
        plan([fact[0] for fact in process_facts], [fact[3] for fact in process_facts], budget.tokens, share)
        if process_facts
        else []
        for process_facts in gathered
    ]
    start = sum(len(process_facts) for process_facts in gathered[: accelerator.process_index])
    own_plan = plans[accelerator.process_index]
    return weights[start : start + len(facts)], own_plan, max(1, *map(len, plans)), _blank(*all_has_fields[0])


def _from_all_processes(
    facts: list[Any], has_fields: list[tuple[bool, bool]]
) -> tuple[list[list[Any]], list[tuple[bool, bool]]]:
    """The facts of every process; and which optional fields samples have, from the processes that have samples."""
    gathered: list[tuple[list[Any], list[tuple[bool, bool]]]] = gather_object([(facts, has_fields)])
    return [part for part, _ in gathered], [flag for _, flags in gathered for flag in flags] or [(False, False)]


def _blank(old: bool, reference: bool) -> TrainingSample:
    """Two made-up tokens that are not trained on. It has the optional fields of real samples, so its metrics have the
    same names.
    """
    zero = torch.zeros(1)
    return TrainingSample(
        BLANK.ids, BLANK.mask, BLANK.sampled, BLANK.domain, zero, zero if reference else None, zero if old else None
    )


def _targets(samples: Sequence[TrainingSample], weights: torch.Tensor, device: torch.device, share: bool) -> Targets:
    def padded_if_all(rows: list[torch.Tensor | None]) -> torch.Tensor | None:
        present = [row for row in rows if row is not None]
        return padded(present, device) if len(present) == len(rows) else None

    return Targets(
        collate(samples, device, share),
        padded([sample.advantage for sample in samples], device),
        weights.to(device),
        padded_if_all([sample.old for sample in samples]),
        padded_if_all([sample.reference for sample in samples]),
    )


def _unsynchronised(accelerator: Any, model: Any) -> Any:
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return nullcontext()  # DeepSpeed decides by the flag that `_set_sync_gradients` sets
    return accelerator.no_sync(model)
