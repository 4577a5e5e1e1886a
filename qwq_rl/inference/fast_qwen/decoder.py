"""One layer of a dense Qwen2 or Qwen3 in as few operations as it takes, for any number of tokens.

A layer is one matrix product for queries, keys and values, a rotation by complex numbers, whatever attention the caller
makes of them, and two more products for the MLP. Heads that share a key stand beside each other.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from qwq_rl.inference.fast_qwen.weights import LayerWeights, QwenWeights


def embed(weights: QwenWeights, tokens: torch.Tensor) -> torch.Tensor:
    """What enters the first layer, (tokens, hidden)."""
    return functional.embedding(tokens, weights.embedding)


def project(
    weights: QwenWeights, layer: LayerWeights, hidden: torch.Tensor, rotation: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys, (tokens, key heads, queries a key + 1, head dimension), and values, without that dimension.

    `rotation`: (tokens, 1, 1, head dimension / 2), complex. Each key comes after the queries that it serves.
    """
    normed = _normed(weights, hidden, layer.attention_gain)
    product = torch.mm(normed, layer.qkv) if layer.qkv_bias is None else torch.addmm(layer.qkv_bias, normed, layer.qkv)
    split = product.shape[1] - weights.key_heads * weights.head_dimension
    groups = product[:, :split].unflatten(1, (weights.key_heads, -1, weights.head_dimension))
    values = product[:, split:].unflatten(1, (weights.key_heads, -1))
    return _turned(weights, groups, layer.head_gain, rotation), values


def finish(weights: QwenWeights, layer: LayerWeights, hidden: torch.Tensor, attended: torch.Tensor) -> None:
    """Add to `hidden` what follows from `attended`, (tokens, query heads * head dimension), and then the MLP's part."""
    _add_product(hidden, attended, layer.attention_out)
    gate, up = torch.mm(_normed(weights, hidden, layer.mlp_gain), layer.gate_up).chunk(2, -1)
    _add_product(hidden, functional.silu(gate).mul_(up), layer.mlp_out)


def score(weights: QwenWeights, hidden: torch.Tensor) -> torch.Tensor:
    """Logits, (tokens, vocabulary), from what leaves the last layer."""
    return functional.linear(_normed(weights, hidden, weights.final_gain), weights.head)


def _add_product(hidden: torch.Tensor, left: torch.Tensor, matrix: torch.Tensor) -> None:
    if hidden.dtype == left.dtype:
        hidden.addmm_(left, matrix)
    else:
        hidden.add_(torch.mm(left, matrix))  # as autocast has it: rounded, and then added in float32


def _turned(
    weights: QwenWeights, groups: torch.Tensor, gain: torch.Tensor | None, rotation: torch.Tensor
) -> torch.Tensor:
    """`groups` normed if the model does, and rotated."""
    wide = groups.float()
    if gain is not None:
        wide = _unit(wide, weights.epsilon).to(groups.dtype) * gain
    turned = torch.view_as_complex(wide.unflatten(-1, (-1, 2))) * rotation
    return torch.view_as_real(turned).flatten(-2).to(groups.dtype)


def _normed(weights: QwenWeights, hidden: torch.Tensor, gain: torch.Tensor | None) -> torch.Tensor:
    if gain is None:
        return _unit(hidden, weights.epsilon)
    return (_unit(hidden.float(), weights.epsilon).to(hidden.dtype) * gain).to(weights.head.dtype)


def _unit(values: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
    """Divided by the root of (the mean square of the last dimension + `epsilon`)."""
    length = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    return values * torch.addcmul(epsilon, length, length, value=1 / values.shape[-1]).rsqrt_()
