"""The critic: a second model that predicts at each token the reward still to come, with an optimiser of its own.

It reads the policy's tokens and is fitted to the returns of a round by many small updates, as in Open-Reasoner-Zero
(arXiv 2503.24290). It works in one process, in several that hold a copy each, and under ZeRO.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForTokenClassification

from qwq_rl.algorithms.gae import moments, value_loss
from qwq_rl.run_folder.files import read_json, write_json
from qwq_rl.training.critic_engine import engine_for, gathered
from qwq_rl.training.micro_batch import BLANK, TrainingSample, by_micro_batch, collate, padded
from qwq_rl.training.micro_batch import plan as micro_batches

COUNTERS = "critic.json"


@dataclass(frozen=True)
class CriticPlan:
    """How the critic is trained."""

    lr: float
    warmup: int
    """Number of first rounds in which only the critic is trained."""
    epochs: int
    """Passes over each round."""
    minibatches: int
    """Updates per pass."""
    clip: float | None
    """The `clip` of `value_loss`: how far a value may move from its old value in a round; None means no limit."""
    gradient_clip: float
    tokens: int
    """Tokens of a micro-batch, with padding."""


@dataclass(frozen=True)
class CriticFigures:
    """The metrics of a round's fit, over the tokens of all processes; NaN where there are no tokens."""

    value_loss: float
    """Mean over tokens; the loss of each update before its step."""
    explained_variance: float
    """How well the values before the fit explain the returns: 1 is perfect, 0 no better than a constant."""
    gradient_norm: float
    """Mean over updates, before clipping."""
    value: float
    """Mean value before the fit."""
    target: float
    """Mean return."""
    updates: int


def build_critic_model(source: str | Path) -> Any:
    """The backbone of the model at `source` (a folder or a Hub id) with one output per token, in float32, no dropout.

    The output layer starts at 0, unless `source` has one with a single label, as a critic or reward model has.
    """
    config = AutoConfig.from_pretrained(source, num_labels=1)
    for name in ("classifier_dropout", *vars(config)):
        if name.endswith(("dropout", "pdrop")):
            setattr(config, name, 0.0)
    model, loading_info = AutoModelForTokenClassification.from_pretrained(
        source, config=config, dtype=torch.float32, output_loading_info=True
    )
    fresh = [p for name, p in model.named_parameters() if name in loading_info["missing_keys"]]
    with gathered(fresh), torch.no_grad():
        for parameter in fresh:
            parameter.zero_()
    return model


class Critic:
    """Computes values of tokens and fits them to returns. Every process must make the same calls."""

    def __init__(self, model: Any, plan: CriticPlan, accelerator: Any) -> None:
        self.plan = plan
        self.rounds = 0
        """Rounds fitted so far."""
        self.updates = 0
        self._accelerator = accelerator
        self._device: torch.device = accelerator.device
        self._engine = engine_for(model, plan.lr, plan.gradient_clip, accelerator)

    @property
    def warming(self) -> bool:
        """Whether only the critic is trained in the next round."""
        return self.rounds < self.plan.warmup

    def values(self, samples: Sequence[TrainingSample]) -> list[torch.Tensor]:
        """V before each token except the first, (L - 1,) in float32 on the CPU: position t reads tokens 0 to t."""
        self._engine.train(False)
        return by_micro_batch(
            lambda batch: self._forward(batch.ids), samples, self.plan.tokens, self._accelerator, False
        )

    def fit(
        self,
        samples: Sequence[TrainingSample],
        old_values: Sequence[torch.Tensor],
        returns: Sequence[torch.Tensor],
        seed: int,
        places: Sequence[int] | None = None,
    ) -> CriticFigures:
        """Fit the values of the tokens in the mask to their `returns`. `old_values` are the values now; each (L - 1,).

        `samples` are those of this process. `places` are their indices among the samples of all processes; None puts
        them after those of lower ranks. A minibatch has samples of every process, and its loss is the mean over all
        their tokens. Minibatches depend only on places, not on the number of processes.
        """
        self._engine.train(True)
        before = self._figures_before(samples, old_values, returns)
        updates = self._updates(samples, seed, places)
        tokens = self._sum([sum(samples[row].tokens for rows in batch for row in rows) for batch in updates])
        counts = self._largest([len(batch) for batch in updates])
        summed_loss = torch.zeros((), dtype=torch.float64, device=self._device)
        norms = []
        for batch, total, count in zip(updates, tokens.tolist(), counts.tolist(), strict=True):
            if total == 0:  # the same in all processes, so all of them skip this update
                continue
            for index, rows in enumerate(self._filled_up(batch, int(count))):
                loss = self._loss(samples, old_values, returns, rows)
                summed_loss += loss.detach()
                self._engine.backward(loss / total, last=index == count - 1)
            norms.append(self._engine.step())
        self.rounds += 1
        self.updates += len(norms)
        token_count = float(tokens.sum())
        loss_sum = float(self._sum([float(summed_loss)])[0])
        return CriticFigures(
            value_loss=loss_sum / token_count if token_count else float("nan"),
            gradient_norm=sum(norms) / len(norms) if norms else float("nan"),
            updates=len(norms),
            **before,
        )

    def save(self, folder: Path) -> None:
        """Write weights, optimiser and counters to `folder`, which is created."""
        folder.mkdir(parents=True, exist_ok=True)
        self._engine.save(folder)
        if self._accelerator.is_main_process:
            write_json(folder / COUNTERS, {"rounds": self.rounds, "updates": self.updates})

    def load(self, folder: Path) -> None:
        """Restore exactly what `save` wrote. Raises RunStateError if there is no critic of this kind."""
        self._engine.load(folder)
        counters = read_json(folder / COUNTERS) or {}
        self.rounds, self.updates = counters["rounds"], counters["updates"]

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Values (B, L - 1) of tokens (B, L)."""
        return self._engine.logits(ids)[:, :-1, 0].float()

    def _loss(
        self,
        samples: Sequence[TrainingSample],
        old_values: Sequence[torch.Tensor],
        returns: Sequence[torch.Tensor],
        rows: Sequence[int],
    ) -> torch.Tensor:
        """The loss of `rows`, summed over their tokens. Without rows it is 0, with a gradient of 0."""
        batch = collate([samples[row] for row in rows] or [BLANK], self._device)
        values = self._forward(batch.ids)
        if not rows:  # still a loss: every process must run as many backward passes as the others
            return values.sum() * 0.0
        old, targets = (padded([tensors[row] for row in rows], self._device) for tensors in (old_values, returns))
        return value_loss(values, old, targets, batch.mask, self.plan.clip).sum()

    def _updates(
        self, samples: Sequence[TrainingSample], seed: int, places: Sequence[int] | None
    ) -> list[list[list[int]]]:
        """For each update the micro-batches that this process runs."""
        sizes = self._accelerator.gather(torch.tensor([len(samples)], device=self._device))
        start = int(sizes[: self._accelerator.process_index].sum())
        own_index = {
            place: index for index, place in enumerate(range(start, start + len(samples)) if places is None else places)
        }
        # All processes split all rows with the same seed; each then keeps the rows that it has.
        generator = torch.Generator().manual_seed(seed)
        updates = []
        for _ in range(self.plan.epochs):
            for part in split(int(sizes.sum()), self.plan.minibatches, generator):
                own_rows = [own_index[place] for place in part if place in own_index]
                updates.append(self._micro_batches(samples, [row for row in own_rows if samples[row].tokens]))
        return updates

    def _micro_batches(self, samples: Sequence[TrainingSample], rows: Sequence[int]) -> list[list[int]]:
        """`rows` in micro-batches of similar length; none without rows."""
        extents = [samples[row].extent for row in rows]
        batches = micro_batches(extents, [True] * len(rows), self.plan.tokens) if rows else []
        return [[rows[index] for index in indices] for indices in batches]

    @staticmethod
    def _filled_up(batches: Sequence[Sequence[int]], count: int) -> Iterator[Sequence[int]]:
        """`batches`, filled up with empty ones to `count`."""
        yield from batches
        yield from [()] * (count - len(batches))

    def _figures_before(
        self, samples: Sequence[TrainingSample], old_values: Sequence[torch.Tensor], returns: Sequence[torch.Tensor]
    ) -> dict[str, float]:
        """Mean value, mean return and explained variance over the tokens of all processes."""
        mask = _concatenated([sample.mask for sample in samples]).bool()
        old, targets = _concatenated(old_values), _concatenated(returns)
        parts = torch.cat([moments(values, mask) for values in (old, targets, targets - old)])
        count, value_sum, _, _, target_sum, target_squares, _, error_sum, error_squares = self._sum(
            parts.tolist()
        ).tolist()
        if count == 0:
            return dict.fromkeys(("value", "target", "explained_variance"), float("nan"))
        variance = target_squares / count - (target_sum / count) ** 2
        residual_variance = error_squares / count - (error_sum / count) ** 2
        explained = 1 - residual_variance / variance if variance > 1e-12 else float("nan")
        return {"value": value_sum / count, "target": target_sum / count, "explained_variance": explained}

    def _sum(self, numbers: Sequence[float]) -> torch.Tensor:
        """Each number summed over processes."""
        own_numbers = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        return self._accelerator.reduce(own_numbers, "sum").cpu()

    def _largest(self, numbers: Sequence[int]) -> torch.Tensor:
        """The largest of each number over processes."""
        own_numbers = torch.tensor([list(numbers)], device=self._device)
        return self._accelerator.gather(own_numbers).amax(0).cpu()


def split(rows: int, parts: int, generator: torch.Generator) -> list[list[int]]:
    """Split the rows 0 to `rows` - 1 at random into `parts` parts.

    Of each `parts` consecutive rows every part gets one. So the completions of one prompt are spread over the parts,
    and the rows of a process are spread evenly too.
    """
    result: list[list[int]] = [[] for _ in range(parts)]
    for start in range(0, rows, parts):
        order = torch.randperm(parts, generator=generator).tolist()
        for row, part in zip(range(start, min(start + parts, rows)), order, strict=False):
            result[part].append(row)
    return result


def _concatenated(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(rows)) if rows else torch.empty(0)
