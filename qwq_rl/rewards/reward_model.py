"""Scores answers with a learned reward model: a sequence classifier with one label."""

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
    """Scores whole groups. The scale tau is measured on a stage's first responses and kept in `preference.json`."""

    def __init__(self, model_folder: str, record: Path) -> None:
        self._model, self._tokenizer = load_reward_model(model_folder)
        self._record = record
        saved = read_json(record)
        self._tau: float | None = saved["tau"] if saved else None

    def win_rates(
        self, items: Sequence[tuple[Row, Response]], generations: int, wanted: Sequence[bool]
    ) -> list[float | None]:
        """Return the win rate of every item within its group of `generations` items in a row; None if not `wanted`.

        An empty answer counts as worse than all others: the model does not score it, and it loses every comparison.
        """
        scored_places = [place for place, (_, response) in enumerate(items) if wanted[place] and response.answer]
        raw_scores = score_answers(
            self._model, self._tokenizer, [(items[index][0], items[index][1].answer) for index in scored_places]
        )
        scores: list[float | None] = [None] * len(items)
        for place, score in zip(scored_places, raw_scores, strict=True):
            scores[place] = score
        tau = self._scale(scores, generations)
        rates: list[float | None] = []
        for start in range(0, len(items), generations):
            rates += self._group_rates(scores[start : start + generations], wanted[start : start + generations], tau)
        return rates

    def _group_rates(self, scores: Sequence[float | None], wanted: Sequence[bool], tau: float) -> list[float | None]:
        present = [score for score in scores if score is not None]
        # 10 tau below the worst answer: an empty answer beats a scored one with a chance of at most 5e-5.
        empty_score = (min(present) if present else 0.0) - 10 * tau
        filled = [
            empty_score if score is None and is_wanted else score
            for score, is_wanted in zip(scores, wanted, strict=True)
        ]
        return win_rates(filled, tau)

    def _scale(self, scores: Sequence[float | None], generations: int) -> float:
        """Return tau: the standard deviation of raw scores within groups, pooled over all groups of all processes.

        The first call that has scores fixes it. All processes must call this together. Until there are scores, it is 1.
        """
        if self._tau is not None:
            return self._tau
        squared_deviations: list[float] = []
        for start in range(0, len(scores), generations):
            group = [score for score in scores[start : start + generations] if score is not None]
            mean = math.fsum(group) / max(1, len(group))
            squared_deviations += [(score - mean) ** 2 for score in group]
        squared_deviations = gather_object(squared_deviations)
        if not squared_deviations:
            return 1.0
        self._tau = max(SMALLEST_SCALE, math.sqrt(math.fsum(squared_deviations) / len(squared_deviations)))
        if PartialState().is_main_process:
            write_json(self._record, {"tau": self._tau})
        return self._tau


def load_reward_model(folder: str | Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return the classifier and its own tokenizer, whose chat template renders its input."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype="auto")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def score_answers(
    model: Any, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Mapping[str, Any], str]]
) -> list[float]:
    """Return the raw score of each (row, final answer), in order.

    Micro-batches are sorted by length and have about `MICRO_BATCH_TOKENS` tokens each.
    """
    texts = [render_answered(tokenizer, row, answer) for row, answer in pairs]
    ids = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    # Texts of similar length share a micro-batch, which saves padding; the longest go first.
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
    scores = [0.0] * len(ids)
    while order:
        batch_size = max(1, MICRO_BATCH_TOKENS // max(1, len(ids[order[-1]])))
        batch, order = order[-batch_size:], order[:-batch_size]
        padded = tokenizer.pad({"input_ids": [ids[place] for place in batch]}, return_tensors="pt").to(model.device)
        for place, score in zip(batch, model(**padded).logits[:, 0].tolist(), strict=True):
            scores[place] = score
    return scores
