"""Logits token by token from the model's own forward and cache: any causal model of `transformers`."""

from __future__ import annotations

from typing import Any

import torch


class ModelDecoder:
    """A batch of sequences that grow by a token at a time, each prompt read once for all its samples."""

    def __init__(self, model: Any, tokens: torch.Tensor, mask: torch.Tensor, samples: int, max_tokens: int) -> None:
        """Read `tokens`, (prompts, longest), padded on the left as `mask` says; `logits` are then those of its end."""
        self.model = model
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = model(tokens, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
        spread = torch.arange(len(tokens), device=tokens.device).repeat_interleave(samples)
        self.logits: torch.Tensor = output.logits[spread, -1]
        """Of each row's next token, (rows, vocabulary)."""
        self.cache = output.past_key_values
        self.cache.reorder_cache(spread)
        self.mask = torch.cat([mask[spread], mask.new_ones(len(spread), max_tokens)], 1)
        self.position = positions[spread, -1:]
        self.used = tokens.shape[1]

    def advance(self, chosen: torch.Tensor) -> None:
        """Append `chosen`, (rows,), and compute the logits after it."""
        self.used += 1
        self.position = self.position + 1
        output = self.model(
            chosen[:, None], attention_mask=self.mask[:, : self.used], position_ids=self.position,
            past_key_values=self.cache, use_cache=True,
        )  # fmt: skip
        self.logits = output.logits[:, -1]

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows alone, in this order."""
        self.cache.reorder_cache(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]
