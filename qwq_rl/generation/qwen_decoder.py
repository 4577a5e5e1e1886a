"""Logits token by token from the weights of a dense Qwen2 or Qwen3, in as few operations as they take.

The prompts go through the model's own forward. After them a step is, a layer, one matrix product for queries, keys and
values, a rotation by complex numbers, attention over the used part of a cache that is written in place, and two more
products for the MLP. Heads that share a key are the rows of one small matrix, so no key is repeated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from qwq_rl.generation.qwen_weights import LayerWeights, QwenWeights, paired


class QwenDecoder:
    """A batch of sequences that grow by a token at a time, each prompt read once for all its samples."""

    def __init__(
        self, model: Any, weights: QwenWeights, tokens: torch.Tensor, mask: torch.Tensor, samples: int, max_tokens: int
    ) -> None:
        """Read `tokens`, (prompts, longest), padded on the left as `mask` says; `logits` are then those of its end."""
        self.weights = weights
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = model(tokens, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
        spread = torch.arange(len(tokens), device=tokens.device).repeat_interleave(samples)
        self.logits: torch.Tensor = output.logits[spread, -1]
        """Of each row's next token, (rows, vocabulary)."""
        self.used = tokens.shape[1]
        capacity = self.used + max_tokens
        self.cache = self._spread_cache(output.past_key_values, spread, capacity)
        """Keys and values, (2 * layers, rows, key heads, capacity, head dimension)."""
        self.bias = self._attention_bias(mask[spread], capacity)
        self.positions = positions[spread, -1]
        self.rotations = self._rotations(model, int(positions.max()) + 1 + max_tokens)

    def _spread_cache(self, prompts: Any, spread: torch.Tensor, capacity: int) -> torch.Tensor:
        """The prompts' keys and values copied to their samples, with room for what follows."""
        first = prompts.layers[0].keys
        shape = (2 * len(self.weights.layers), len(spread), first.shape[1], capacity, first.shape[-1])
        cache = torch.empty(shape, dtype=first.dtype, device=first.device)
        for place, layer in enumerate(prompts.layers):
            cache[2 * place, :, :, : self.used] = paired(layer.keys)[spread]
            cache[2 * place + 1, :, :, : self.used] = layer.values[spread]
        return cache

    def _attention_bias(self, mask: torch.Tensor, capacity: int) -> torch.Tensor | None:
        """What padding adds to attention scores, (rows, key heads, 1, capacity); None where there is no padding."""
        if bool(mask.all()):
            return None
        dtype = self.cache.dtype
        bias = torch.zeros(len(mask), self.weights.key_heads, 1, capacity, dtype=dtype, device=mask.device)
        bias[..., : self.used].masked_fill_(mask[:, None, None] == 0, torch.finfo(dtype).min)
        return bias

    def _rotations(self, model: Any, count: int) -> torch.Tensor:
        """The model's own rotary factors as complex numbers, (count, 1, 1, head dimension / 2)."""
        places = torch.arange(count, device=self.positions.device)[None]
        cos, sin = model.model.rotary_emb(self.weights.embedding, places)
        half = self.weights.head_dimension // 2
        return torch.complex(cos[0, :, :half].float(), sin[0, :, :half].float())[:, None, None]

    def advance(self, chosen: torch.Tensor) -> None:
        """Append `chosen`, (rows,), and compute the logits after it."""
        self.used += 1
        self.positions = self.positions + 1
        rotation = self.rotations[self.positions]
        bias = None if self.bias is None else self.bias.flatten(0, 1)[..., : self.used]
        hidden = functional.embedding(chosen, self.weights.embedding)
        for place, layer in enumerate(self.weights.layers):
            attended = self._attend(layer, hidden, self.cache[2 * place], self.cache[2 * place + 1], rotation, bias)
            hidden.addmm_(attended, layer.attention_out)
            gates = torch.mm(self._normed(hidden, layer.mlp_gain), layer.gate_up)
            gate, up = gates.chunk(2, -1)
            hidden.addmm_(functional.silu(gate).mul_(up), layer.mlp_out)
        self.logits = functional.linear(self._normed(hidden, self.weights.final_gain), self.weights.head)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows alone, in this order; only rows that change their place are copied."""
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        sources = rows[moved]
        used = self.cache[:, :, :, : self.used]
        used[:, moved] = used[:, sources]
        self.cache = self.cache[:, : len(rows)]
        self.positions = self.positions[rows]
        if self.bias is not None:
            self.bias = self.bias[rows]

    def _attend(
        self, layer: LayerWeights, hidden: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
        rotation: torch.Tensor, bias: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        """Each row's attention over its cache and its newest token, (rows, query heads * head dimension)."""
        weights, rows = self.weights, len(hidden)
        normed = self._normed(hidden, layer.attention_gain)
        if layer.qkv_bias is None:
            product = torch.mm(normed, layer.qkv)
        else:
            product = torch.addmm(layer.qkv_bias, normed, layer.qkv)
        split = product.shape[1] - weights.key_heads * weights.head_dimension
        groups = product[:, :split].unflatten(1, (weights.key_heads, -1, weights.head_dimension))
        turned = self._turned(groups, layer.head_gain, rotation)
        keys[:, :, self.used - 1] = turned[:, :, -1]
        values[:, :, self.used - 1] = product[:, split:].view(rows, weights.key_heads, -1)
        queries = turned[:, :, :-1].flatten(0, 1)
        if weights.query_scale != 1.0:
            queries = queries * weights.query_scale
        seen = keys.flatten(0, 1)[:, : self.used].transpose(1, 2)
        scores = torch.bmm(queries, seen) if bias is None else torch.baddbmm(bias, queries, seen)
        shares = torch.softmax(scores, -1, dtype=torch.float32).to(hidden.dtype)
        return torch.bmm(shares, values.flatten(0, 1)[:, : self.used]).view(rows, -1)

    def _turned(self, groups: torch.Tensor, gain: torch.Tensor | None, rotation: torch.Tensor) -> torch.Tensor:
        """Queries and keys, (rows, key heads, queries a key + 1, head dimension), normed if the model does, rotated."""
        wide = groups.float()
        if gain is not None:
            wide = _unit(wide, self.weights.epsilon).to(groups.dtype).float().mul_(gain)
        turned = torch.view_as_complex(wide.unflatten(-1, (-1, 2))) * rotation
        return torch.view_as_real(turned).flatten(-2).to(groups.dtype)

    def _normed(self, hidden: torch.Tensor, gain: torch.Tensor | None) -> torch.Tensor:
        unit = _unit(hidden.float(), self.weights.epsilon).to(hidden.dtype)
        return unit if gain is None else unit * gain


def _unit(values: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
    """Divided by the root of (the mean square of the last dimension + `epsilon`)."""
    length = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    return values * torch.addcmul(epsilon, length, length, value=1 / values.shape[-1]).rsqrt_()
