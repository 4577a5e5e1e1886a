"""Logits token by token from the weights of a dense Qwen2 or Qwen3: prompts read at once, then a token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from qwq_rl.inference.fast_qwen.cache import SharedCache
from qwq_rl.inference.fast_qwen.decoder import embed, finish, project, score
from qwq_rl.inference.fast_qwen.weights import QwenWeights, rotations


class QwenDecoder:
    """Texts that begin with a prompt each and grow by a token at a time."""

    def __init__(self, model: Any, weights: QwenWeights, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        """Read `prompts`; `logits` are then those of their ends."""
        self.weights = weights
        device = weights.embedding.device
        longest = max(map(len, prompts))
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        # Padded on the right: what is real sees none of it, and stands where it would without.
        tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
        self.rotations = rotations(model, weights, longest + max_tokens)
        hidden, cache = self._read(tokens, lengths)
        if device.type == "cpu":
            cache = cache.float()
        self.logits: torch.Tensor = score(weights, hidden)
        """Of each text's next token, (texts, vocabulary)."""
        self.positions = lengths - 1
        self.cache = SharedCache(cache, lengths)

    def _read(self, tokens: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What leaves the last layer at each prompt's end, (prompts, hidden), and keys and values for `SharedCache`."""
        weights, (prompts, longest) = self.weights, tokens.shape
        shape = (2 * len(weights.layers), prompts, weights.key_heads, longest, weights.head_dimension)
        cache = torch.empty(shape, dtype=weights.head.dtype, device=tokens.device)
        rotation = self.rotations[:longest].repeat(prompts, 1, 1, 1)
        hidden = embed(weights, tokens.flatten())
        for place, layer in enumerate(weights.layers):
            turned, values = project(weights, layer, hidden, rotation)
            turned = turned.unflatten(0, (prompts, longest))
            cache[2 * place] = turned[:, :, :, -1].transpose(1, 2)
            cache[2 * place + 1] = values.unflatten(0, (prompts, longest)).transpose(1, 2)
            attended = functional.scaled_dot_product_attention(
                turned[:, :, :, :-1].flatten(2, 3).transpose(1, 2), cache[2 * place], cache[2 * place + 1],
                is_causal=True, scale=weights.query_scale, enable_gqa=True,
            )  # fmt: skip
            finish(weights, layer, hidden, attended.transpose(1, 2).reshape(prompts * longest, -1))
        ends = torch.arange(prompts, device=tokens.device) * longest + lengths - 1
        return hidden[ends], cache

    def advance(self, chosen: torch.Tensor) -> None:
        """Append `chosen`, (texts,), and compute the logits after it."""
        self.positions = self.positions + 1
        self.cache.grow()
        rotation = self.rotations[self.positions]
        hidden = embed(self.weights, chosen)
        for place, layer in enumerate(self.weights.layers):
            turned, values = project(self.weights, layer, hidden, rotation)
            attended = self.cache.attend(place, turned, values, self.weights.query_scale)
            finish(self.weights, layer, hidden, attended)
        self.logits = score(self.weights, hidden)

    def keep(self, texts: torch.Tensor) -> None:
        """Go on with these texts alone, in this order, and with one as often as it is named."""
        self.positions = self.positions[texts]
        self.cache.keep(texts)
