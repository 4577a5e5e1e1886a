"""One update of the policy: its rows in micro-batches of like length, only those that teach something."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object

from qwq_rl.algorithms.weights import row_weights
from qwq_rl.inference.fast_qwen.training_head import shares_prompts
from qwq_rl.training.batches import plan
from qwq_rl.training.forward import token_logprobs
from qwq_rl.training.losses import Objective, Targets, loss_of
from qwq_rl.training.micro_batch import BLANK, Trace, collate, padded
from qwq_rl.training.tally import Tally


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


def run_update(
    model: Any, accelerator: Any, lessons: Sequence[Lesson], objective: Objective, budget: Budget, tally: Tally
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
        objective.policy.weights,
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
