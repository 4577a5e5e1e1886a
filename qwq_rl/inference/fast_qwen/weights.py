"""The weights of a Qwen, laid out for decoding in few matrices.

In float32 the gains of the norms and the scale of attention are multiplied into the matrices. In 16 bits they stay
separate: the rounded products would make the sampler another model than the one in training. Under autocast only the
matrices are in 16 bits, rounded once here instead of at every token; all other operations are in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer. Matrices are (in, out); the heads of queries and keys are `paired`."""

    attention_gain: torch.Tensor | None
    """Gain of the norm before attention, (hidden,); None where it is multiplied into `qkv`."""
    qkv: torch.Tensor
    """(hidden, (query heads + 2 key heads) * head dimension): each key after the queries it serves, then all values."""
    qkv_bias: torch.Tensor | None
    head_gain: torch.Tensor | None
    """Gains of the norms of queries and keys, float32, (queries per key + 1, head dimension); None for Qwen2."""
    attention_out: torch.Tensor
    mlp_gain: torch.Tensor | None
    gate_up: torch.Tensor
    """(hidden, 2 * intermediate), the gate first."""
    mlp_out: torch.Tensor


@dataclass(frozen=True)
class QwenWeights:
    """All that a step of decoding reads."""

    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    final_gain: torch.Tensor
    head: torch.Tensor
    """(vocabulary, hidden), in the dtype of all matrices and of keys and values."""
    key_heads: int
    head_dimension: int
    epsilon: torch.Tensor
    """The epsilon of all norms, float32, (1,)."""
    query_scale: float
    """Multiplied into queries after rotation; 1 where their weights contain it already."""


def read_weights(model: Any, dtype: torch.dtype | None = None) -> QwenWeights:
    """The current weights of a model whose `decoding_dtype` is `dtype`; None means the type of its weights.

    In that type the embedding, the head and the output matrices are not copied.
    """
    config, backbone, dtype = model.config, model.model, dtype or model.dtype
    dimension = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    folded = dtype == torch.float32
    return QwenWeights(
        embedding=backbone.embed_tokens.weight,
        layers=tuple(_layer(layer, dimension, dtype) for layer in backbone.layers),
        final_gain=backbone.norm.weight,
        head=model.lm_head.weight.to(dtype),
        key_heads=config.num_key_value_heads,
        head_dimension=dimension,
        epsilon=torch.tensor([config.rms_norm_eps], device=model.device),
        query_scale=1.0 if folded else dimension**-0.5,
    )


def rotations(model: Any, weights: QwenWeights, count: int) -> torch.Tensor:
    """The model's own rotary factors of the first `count` positions, complex, (count, 1, 1, head dimension / 2)."""
    positions = torch.arange(count, device=weights.embedding.device)[None]
    cos, sin = model.model.rotary_emb(weights.embedding, positions)
    half = weights.head_dimension // 2
    return torch.complex(cos[0, :, :half].float(), sin[0, :, :half].float())[:, None, None]


def paired(heads: torch.Tensor) -> torch.Tensor:
    """The last dimension with its halves interleaved, so that the two numbers that a rotation mixes are neighbours."""
    return heads.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def _layer(layer: Any, dimension: int, dtype: torch.dtype) -> LayerWeights:
    folded = dtype == torch.float32
    attention, mlp = layer.self_attn, layer.mlp
    queries, keys, values = attention.q_proj, attention.k_proj, attention.v_proj
    key_heads = keys.out_features // dimension
    scale = dimension**-0.5 if folded else 1.0
    head_gain, bias = None, None
    if hasattr(attention, "q_norm"):
        query_gain = (attention.q_norm.weight.float() * scale).expand(queries.out_features // keys.out_features, -1)
        head_gain = paired(torch.cat([query_gain, attention.k_norm.weight.float()[None]]))
        # The norm cancels any scale before it, so the scale is in the gain of the queries, not in their weights.
        scale = 1.0
    if queries.bias is not None:
        bias = torch.cat([_grouped(queries.bias * scale, keys.bias, key_heads, dimension), values.bias]).to(dtype)
    qkv = torch.cat([_grouped(queries.weight * scale, keys.weight, key_heads, dimension), values.weight]).to(dtype)
    gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).to(dtype)
    attention_norm, mlp_norm = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
    return LayerWeights(
        attention_gain=None if folded else attention_norm,
        qkv=(qkv * attention_norm if folded else qkv).T,
        qkv_bias=bias,
        head_gain=head_gain,
        attention_out=attention.o_proj.weight.to(dtype).T,
        mlp_gain=None if folded else mlp_norm,
        gate_up=(gate_up * mlp_norm if folded else gate_up).T,
        mlp_out=mlp.down_proj.weight.to(dtype).T,
    )


def _grouped(queries: torch.Tensor, keys: torch.Tensor, key_heads: int, dimension: int) -> torch.Tensor:
    """Rows of queries and keys, (heads * dimension, ...), `paired`; each key head comes after its query heads."""
    parts = [rows.reshape(key_heads, -1, dimension, *rows.shape[1:]).movedim(2, -1) for rows in (queries, keys)]
    return paired(torch.cat(parts, 1)).movedim(-1, 2).flatten(0, 2)
