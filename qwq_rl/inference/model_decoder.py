"""Logits token by token from the model's own forward and cache: any causal model of `transformers`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class ModelDecoder:
    """Texts that begin with a prompt each and grow by a token at a time."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad_token_id: int, max_tokens: int) -> None:
        """Read `prompts`; `logits` are then those of their ends."""
        self.model = model
        tokens, mask = _left_padded(prompts, pad_token_id, model.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = model(tokens, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
        self.logits: torch.Tensor = output.logits[:, -1]
        """Of each text's next token, (texts, vocabulary)."""
        self.cache = output.past_key_values
        self.mask = torch.cat([mask, mask.new_ones(len(mask), max_tokens)], 1)
        self.position = positions[:, -1:]
        self.used = tokens.shape[1]

    def advance(self, chosen: torch.Tensor) -> None:
        """Append `chosen`, (texts,), and compute the logits after it."""
        self.used += 1
        self.position = self.position + 1
        output = self.model(
            chosen[:, None], attention_mask=self.mask[:, : self.used], position_ids=self.position,
            past_key_values=self.cache, use_cache=True,
        )  # fmt: skip
        self.logits = output.logits[:, -1]

    def keep(self, texts: torch.Tensor) -> None:
        """Go on with these texts alone, in this order, and with one as often as it is named."""
        self.cache.reorder_cache(texts)
        self.mask, self.position = self.mask[texts], self.position[texts]


def _left_padded(
    prompts: Sequence[Sequence[int]], pad_token_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (prompts, longest), padded on the left."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = [[pad_token_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)
