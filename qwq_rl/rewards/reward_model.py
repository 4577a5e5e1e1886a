"""Scoring answers with a learned reward model: a sequence classifier with one label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from qwq_rl.data.chat import render_answered

MICRO_BATCH_TOKENS = 16384


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
