"""The critic: a model of its own that says how much reward is to come, with an optimiser of its own.

It reads the tokens that the policy wrote and is fitted to the returns of a round by many small updates, as
Open-Reasoner-Zero does (arXiv 2503.24290). Works in one process, in several that hold a copy each, and under ZeRO.
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
    """How the critic learns."""

    lr: float
    warmup: int
    """Rounds, the first ones, in which only the critic learns."""
    epochs: int
    """Passes over each round."""
    minibatches: int
    """Updates that a pass is split into."""
    clip: float | None
    """How far from its old value a value may move and still be pulled; None: as far as it likes."""
    gradient_clip: float
    tokens: int
    """Tokens of a micro-batch, padding counted."""


@dataclass(frozen=True)
class CriticFigures:
    """What a round's fit shows, over the tokens of all processes; NaN where there are none."""

    value_loss: float
    """Mean over tokens, each update's before its step."""
    explained_variance: float
    """Of the returns by the values before the fit: 1 is perfect, 0 no better than a constant."""
    gradient_norm: float
    """Mean over updates, before clipping."""
    value: float
    """Mean value before the fit."""
    target: float
    """Mean return."""
    updates: int


def build_critic_model(source: str | Path) -> Any:
    """The backbone of the model at `source` (a folder or a Hub id) with one output a token, in float32, no dropout.

    The output starts at 0 unless `source` has one with a single label already, as a critic or reward model has.
    """
    config = AutoConfig.from_pretrained(source, num_labels=1)
    for name in ("classifier_dropout", *vars(config)):
        if name.endswith(("dropout", "pdrop")):
            setattr(config, name, 0.0)
    model, found = AutoModelForTokenClassification.from_pretrained(
        source, config=config, dtype=torch.float32, output_loading_info=True
    )
    fresh = [p for name, p in model.named_parameters() if name in found["missing_keys"]]
    with gathered(fresh), torch.no_grad():
        for parameter in fresh:
            parameter.zero_()
    return model


class Critic:
    """Values of tokens, and the updates that fit them to returns. Every process must make the same calls."""

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
        """Whether the round to be fitted next is one in which only the critic learns."""
        return self.rounds < self.plan.warmup

    def values(self, samples: Sequence[TrainingSample]) -> list[torch.Tensor]:
        """V before each token but the first, (L - 1,) in float32 on the CPU: position t reads tokens 0 to t."""
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
        """Fit the values of the masked tokens to their returns; `old_values` are those from before, each (L - 1,).

        `samples` are this process's, `places` where they stand among those of all (None: behind those of the processes
        before). A minibatch holds some of every process, and its loss is the mean over the tokens of all. The same rows
        at the same places give the same minibatches, over however many processes.
        """
        self._engine.train(True)
        before = self._before(samples, old_values, returns)
        work = self._work(samples, seed, places)
        tokens = self._sum([sum(samples[row].tokens for rows in batch for row in rows) for batch in work])
        counts = self._most([len(batch) for batch in work])
        lost = torch.zeros((), dtype=torch.float64, device=self._device)
        norms = []
        for batch, total, count in zip(work, tokens.tolist(), counts.tolist(), strict=True):
            if total == 0:
                continue
            for place, rows in enumerate(self._padded_out(batch, int(count))):
                loss = self._loss(samples, old_values, returns, rows)
                lost += loss.detach()
                self._engine.backward(loss / total, last=place == count - 1)
            norms.append(self._engine.step())
        self.rounds += 1
        self.updates += len(norms)
        seen = float(tokens.sum())
        error = float(self._sum([float(lost)])[0])
        return CriticFigures(
            value_loss=error / seen if seen else float("nan"),
            gradient_norm=sum(norms) / len(norms) if norms else float("nan"),
            updates=len(norms),
            **before,
        )

    def save(self, folder: Path) -> None:
        """Write weights, optimiser and counters into `folder`, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        self._engine.save(folder)
        if self._accelerator.is_main_process:
            write_json(folder / COUNTERS, {"rounds": self.rounds, "updates": self.updates})

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote, to the bit. Raises RunStateError if there is no critic of this kind."""
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
        """The loss of some rows, summed over their tokens; 0 with a gradient of 0 without any: others wait for it."""
        batch = collate([samples[row] for row in rows] or [BLANK], self._device)
        values = self._forward(batch.ids)
        if not rows:
            return values.sum() * 0.0
        old, wanted = (padded([part[row] for row in rows], self._device) for part in (old_values, returns))
        return value_loss(values, old, wanted, batch.mask, self.plan.clip).sum()

    def _work(
        self, samples: Sequence[TrainingSample], seed: int, places: Sequence[int] | None
    ) -> list[list[list[int]]]:
        """The micro-batches that this process runs in each update."""
        sizes = self._accelerator.gather(torch.tensor([len(samples)], device=self._device))
        start = int(sizes[: self._accelerator.process_index].sum())
        own = {place: at for at, place in enumerate(range(start, start + len(samples)) if places is None else places)}
        generator = torch.Generator().manual_seed(seed)
        work = []
        for _ in range(self.plan.epochs):
            for part in split(int(sizes.sum()), self.plan.minibatches, generator):
                mine = [own[place] for place in part if place in own]
                work.append(self._micro_batches(samples, [row for row in mine if samples[row].tokens]))
        return work

    def _micro_batches(self, samples: Sequence[TrainingSample], rows: Sequence[int]) -> list[list[int]]:
        """`rows` in micro-batches of like length; none without rows."""
        extents = [samples[row].extent for row in rows]
        found = micro_batches(extents, [True] * len(rows), self.plan.tokens) if rows else []
        return [[rows[place] for place in places] for places in found]

    @staticmethod
    def _padded_out(batches: Sequence[Sequence[int]], count: int) -> Iterator[Sequence[int]]:
        """`batches`, and as many empty ones behind them as are missing from `count`."""
        yield from batches
        yield from [()] * (count - len(batches))

    def _before(
        self, samples: Sequence[TrainingSample], old_values: Sequence[torch.Tensor], returns: Sequence[torch.Tensor]
    ) -> dict[str, float]:
        """Means, and the explained variance, over the tokens of all processes."""
        mask = _joined([sample.mask for sample in samples]).bool()
        old, wanted = _joined(old_values), _joined(returns)
        parts = torch.cat([moments(part, mask) for part in (old, wanted, wanted - old)])
        count, value, _, _, target, spread, _, missed, error = self._sum(parts.tolist()).tolist()
        if count == 0:
            return dict.fromkeys(("value", "target", "explained_variance"), float("nan"))
        variance = spread / count - (target / count) ** 2
        left = error / count - (missed / count) ** 2
        explained = 1 - left / variance if variance > 1e-12 else float("nan")
        return {"value": value / count, "target": target / count, "explained_variance": explained}

    def _sum(self, numbers: Sequence[float]) -> torch.Tensor:
        """Each number added up over processes."""
        mine = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        return self._accelerator.reduce(mine, "sum").cpu()

    def _most(self, numbers: Sequence[int]) -> torch.Tensor:
        """Each number's largest over processes."""
        mine = torch.tensor([list(numbers)], device=self._device)
        return self._accelerator.gather(mine).amax(0).cpu()


def split(rows: int, parts: int, generator: torch.Generator) -> list[list[int]]:
    """Every row, 0 to `rows` - 1, in one of `parts` parts, at random.

    Of each `parts` rows in a row every part gets one: so the answers to one prompt are spread over the parts, and of
    the rows that a process holds, its part of each is as large as of any other.
    """
    found: list[list[int]] = [[] for _ in range(parts)]
    for start in range(0, rows, parts):
        order = torch.randperm(parts, generator=generator).tolist()
        for row, part in zip(range(start, min(start + parts, rows)), order, strict=False):
            found[part].append(row)
    return found


def _joined(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(rows)) if rows else torch.empty(0)
