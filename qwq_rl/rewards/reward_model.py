"""Scoring answers with a learned reward model: a sequence classifier with one label."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from qwq_rl.data.chat import render_answered
from qwq_rl.data.row import Row
from qwq_rl.rewards.reward import win_rates
from qwq_rl.run_folder.files import read_json, write_json
from qwq_rl.verifiers import Response

SMALLEST_SCALE = 1e-3


MICRO_BATCH_TOKENS = 16384


class Preference:
    """Scores whole groups. The scale tau, of a stage's first responses, is kept in `preference.json`."""

    def __init__(self, model_folder: str, record: Path) -> None:
        self._model, self._tokenizer = load_reward_model(model_folder)
        self._record = record
        known = read_json(record)
        self._tau: float | None = known["tau"] if known else None

    def win_rates(
        self, items: Sequence[tuple[Row, Response]], generations: int, wanted: Sequence[bool]
    ) -> list[float | None]:
        """The win rate of every item within its group of `generations` neighbours; None where not `wanted`.

        An empty answer is worth less than any other: it is not shown to the model, and loses every comparison.
        """
        shown = [place for place, (_, response) in enumerate(items) if wanted[place] and response.answer]
        raw = score_answers(self._model, self._tokenizer, [(items[p][0], items[p][1].answer) for p in shown])
        scores: list[float | None] = [None] * len(items)
        for place, score in zip(shown, raw, strict=True):
            scores[place] = score
        tau = self._scale(scores, generations)
        rates: list[float | None] = []
        for start in range(0, len(items), generations):
            rates += self._group(scores[start : start + generations], wanted[start : start + generations], tau)
        return rates

    def _group(self, scores: Sequence[float | None], wanted: Sequence[bool], tau: float) -> list[float | None]:
        known = [score for score in scores if score is not None]
        worst = (min(known) if known else 0.0) - 10 * tau
        full = [worst if score is None and want else score for score, want in zip(scores, wanted, strict=True)]
        return win_rates(full, tau)

    def _scale(self, scores: Sequence[float | None], generations: int) -> float:
        """The standard deviation of raw scores within groups, pooled over the first call that has any.

        Over the groups of all processes, which call this together.
        """
        if self._tau is not None:
            return self._tau
        deviations: list[float] = []
        for start in range(0, len(scores), generations):
            group = [score for score in scores[start : start + generations] if score is not None]
            mean = math.fsum(group) / max(1, len(group))
            deviations += [(score - mean) ** 2 for score in group]
        deviations = gather_object(deviations)
        if not deviations:
            return 1.0
        self._tau = max(SMALLEST_SCALE, math.sqrt(math.fsum(deviations) / len(deviations)))
        if PartialState().is_main_process:
            write_json(self._record, {"tau": self._tau})
        return self._tau


def load_reward_model(folder: str | Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """The classifier and its own tokenizer, whose chat template renders what it reads."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype="auto")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def score_answers(
    model: Any, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Mapping[str, Any], str]]
) -> list[float]:
    """The raw score of each (row, final answer), in order.

    Micro-batches are sorted by length and hold about `MICRO_BATCH_TOKENS` tokens each.
    """
    texts = [render_answered(tokenizer, row, answer) for row, answer in pairs]
    ids = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
    scores = [0.0] * len(ids)
    while order:
        rows = max(1, MICRO_BATCH_TOKENS // max(1, len(ids[order[-1]])))
        batch, order = order[-rows:], order[:-rows]
        padded = tokenizer.pad({"input_ids": [ids[place] for place in batch]}, return_tensors="pt").to(model.device)
        for place, score in zip(batch, model(**padded).logits[:, 0].tolist(), strict=True):
            scores[place] = score
    return scores
