"""The decoder of a dense Qwen2 or Qwen3, which computes each layer in as few operations as possible.

A layer is `project` (one matrix product for queries, keys and values, and a rotation by complex numbers), attention,
and `finish` (the output product and the MLP). Heads that share a key are neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from qwq_rl.inference.fast_qwen.cache import SharedCache
from qwq_rl.inference.fast_qwen.weights import LayerWeights, QwenWeights, rotations


class QwenDecoder:
    """Decodes from the weights alone. Each text begins with a prompt and grows token by token."""

    def __init__(self, model: Any, weights: QwenWeights, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        """Read `prompts`; `logits` are then those of each prompt's next token."""
        self.weights = weights
        device = weights.embedding.device
        longest = max(map(len, prompts))
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        # Padded on the right: with causal attention real tokens do not see the padding, and their positions are right.
        tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
        self.rotations = rotations(model, weights, longest + max_tokens)
        hidden, cache = self._read(tokens, lengths)
        if device.type == "cpu":
            cache = cache.float()
        self.logits: torch.Tensor = score(weights, hidden)
        """(texts, vocabulary), for each text's next token."""
        self.positions = lengths - 1
        self.cache = SharedCache(cache, lengths)

    def _read(self, tokens: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Read the prompts. Returns the last layer's output at each prompt's last token, (prompts, hidden), and the
        keys and values for `SharedCache`.
        """
        weights, (prompts, longest) = self.weights, tokens.shape
        shape = (2 * len(weights.layers), prompts, weights.key_heads, longest, weights.head_dimension)
        cache = torch.empty(shape, dtype=weights.head.dtype, device=tokens.device)
        rotation = self.rotations[:longest].repeat(prompts, 1, 1, 1)
        hidden = embed(weights, tokens.flatten())
        for index, layer in enumerate(weights.layers):
            turned, values = project(weights, layer, hidden, rotation)
            turned = turned.unflatten(0, (prompts, longest))
            cache[2 * index] = turned[:, :, :, -1].transpose(1, 2)
            cache[2 * index + 1] = values.unflatten(0, (prompts, longest)).transpose(1, 2)
            attended = functional.scaled_dot_product_attention(
                turned[:, :, :, :-1].flatten(2, 3).transpose(1, 2), cache[2 * index], cache[2 * index + 1],
                is_causal=True, scale=weights.query_scale, enable_gqa=True,
            )  # fmt: skip
            finish(weights, layer, hidden, attended.transpose(1, 2).reshape(prompts * longest, -1))
        ends = torch.arange(prompts, device=tokens.device) * longest + lengths - 1
        return hidden[ends], cache

    def advance(self, chosen: torch.Tensor) -> None:
        """Append one token to each text, `chosen` (texts,), and compute the next logits."""
        self.positions = self.positions + 1
        self.cache.grow()
        rotation = self.rotations[self.positions]
        hidden = embed(self.weights, chosen)
        for index, layer in enumerate(self.weights.layers):
            turned, values = project(self.weights, layer, hidden, rotation)
            attended = self.cache.attend(index, turned, values, self.weights.query_scale)
            finish(self.weights, layer, hidden, attended)
        self.logits = score(self.weights, hidden)

    def keep(self, texts: torch.Tensor) -> None:
        """Keep only `texts` (indices), in this order; one that is named several times is copied."""
        self.positions = self.positions[texts]
        self.cache.keep(texts)


def embed(weights: QwenWeights, tokens: torch.Tensor) -> torch.Tensor:
    """The input of the first layer, (tokens, hidden)."""
    return functional.embedding(tokens, weights.embedding)


def project(
    weights: QwenWeights, layer: LayerWeights, hidden: torch.Tensor, rotation: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's queries, keys and values for its input `hidden`, (tokens, hidden).

    Returns the rotated queries and keys in one tensor, (tokens, key heads, queries per key + 1, head dimension), where
    each key comes after the queries that it serves; and the values, (tokens, key heads, head dimension). `rotation`:
    (tokens, 1, 1, head dimension / 2), complex.
    """
    normed = _normed(weights, hidden, layer.attention_gain)
    product = torch.mm(normed, layer.qkv) if layer.qkv_bias is None else torch.addmm(layer.qkv_bias, normed, layer.qkv)
    split = product.shape[1] - weights.key_heads * weights.head_dimension
    groups = product[:, :split].unflatten(1, (weights.key_heads, -1, weights.head_dimension))
    values = product[:, split:].unflatten(1, (weights.key_heads, -1))
    return _rotated(weights, groups, layer.head_gain, rotation), values


def finish(weights: QwenWeights, layer: LayerWeights, hidden: torch.Tensor, attended: torch.Tensor) -> None:
    """Add the output of attention and that of the MLP to `hidden`, in place.

    `attended`: (tokens, query heads * head dimension), before the output matrix.
    """
    _add_product(hidden, attended, layer.attention_out)
    gate, up = torch.mm(_normed(weights, hidden, layer.mlp_gain), layer.gate_up).chunk(2, -1)
    _add_product(hidden, functional.silu(gate).mul_(up), layer.mlp_out)


def score(weights: QwenWeights, hidden: torch.Tensor) -> torch.Tensor:
    """Logits, (tokens, vocabulary), from the output of the last layer."""
    return functional.linear(_normed(weights, hidden, weights.final_gain), weights.head)


def _add_product(hidden: torch.Tensor, left: torch.Tensor, matrix: torch.Tensor) -> None:
    if hidden.dtype == left.dtype:
        hidden.addmm_(left, matrix)
    else:
        hidden.add_(torch.mm(left, matrix))  # as autocast does it: the product in 16 bits, the sum in float32


def _rotated(
    weights: QwenWeights, groups: torch.Tensor, gain: torch.Tensor | None, rotation: torch.Tensor
) -> torch.Tensor:
    """`groups` rotated; normed before, where the model norms queries and keys."""
    heads = groups.float()
    if gain is not None:
        heads = _unit(heads, weights.epsilon).to(groups.dtype) * gain
    turned = torch.view_as_complex(heads.unflatten(-1, (-1, 2))) * rotation
    return torch.view_as_real(turned).flatten(-2).to(groups.dtype)


def _normed(weights: QwenWeights, hidden: torch.Tensor, gain: torch.Tensor | None) -> torch.Tensor:
    if gain is None:
        return _unit(hidden, weights.epsilon)
    return (_unit(hidden.float(), weights.epsilon).to(hidden.dtype) * gain).to(weights.head.dtype)


def _unit(values: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
    """`values` divided by the root of (the mean square of the last dimension + `epsilon`)."""
    length = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    return values * torch.addcmul(epsilon, length, length, value=1 / values.shape[-1]).rsqrt_()
