"""The weights of a Qwen, laid out for decoding: few matrices, and the gains of the norms inside them.

Float32 alone takes gains and the attention's scale into the matrices: rounded to 16 bits they would move the sampler
away from the model that is trained, so there they stay apart. Under autocast matrices alone are in 16 bits, rounded
once here and not at every token, and what stands between them is in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer; matrices are (in, out), heads of queries and keys `paired`."""

    attention_gain: torch.Tensor | None
    """Of the norm before attention, (hidden,); None where `qkv` holds it."""
    qkv: torch.Tensor
    """(hidden, (query heads + 2 key heads) * head dimension): each key after the queries it serves, then all values."""
    qkv_bias: torch.Tensor | None
    head_gain: torch.Tensor | None
    """Of the norms of queries and keys, float32, (queries a key + 1, head dimension); None for Qwen2."""
    attention_out: torch.Tensor
    mlp_gain: torch.Tensor | None
    gate_up: torch.Tensor
    """(hidden, 2 * intermediate), the gate first."""
    mlp_out: torch.Tensor


@dataclass(frozen=True)
class QwenWeights:
    """What a step of decoding reads."""

    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    final_gain: torch.Tensor
    head: torch.Tensor
    """(vocabulary, hidden), in the dtype of all matrices and of keys and values."""
    key_heads: int
    head_dimension: int
    epsilon: torch.Tensor
    """Of all norms, float32, (1,)."""
    query_scale: float
    """For queries after rotation, where their weights do not hold it; else 1."""


def read_weights(model: Any, dtype: torch.dtype | None = None) -> QwenWeights:
    """The present weights of a model whose `decoding_dtype` is `dtype`, the weights' own where None.

    In their own dtype, embedding, head and output matrices are not copied.
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
    places = torch.arange(count, device=weights.embedding.device)[None]
    cos, sin = model.model.rotary_emb(weights.embedding, places)
    half = weights.head_dimension // 2
    return torch.complex(cos[0, :, :half].float(), sin[0, :, :half].float())[:, None, None]


def paired(heads: torch.Tensor) -> torch.Tensor:
    """The last dimension with its halves interleaved, so that the two numbers a rotation mixes stand side by side."""
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
        # The norm undoes any scale before it.
        scale = 1.0
    if queries.bias is not None:
        bias = torch.cat([_grouped(queries.bias * scale, keys.bias, key_heads, dimension), values.bias]).to(dtype)
    qkv = torch.cat([_grouped(queries.weight * scale, keys.weight, key_heads, dimension), values.weight]).to(dtype)
    gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).to(dtype)
    before, between = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
    return LayerWeights(
        attention_gain=None if folded else before,
        qkv=(qkv * before if folded else qkv).T,
        qkv_bias=bias,
        head_gain=head_gain,
        attention_out=attention.o_proj.weight.to(dtype).T,
        mlp_gain=None if folded else between,
        gate_up=(gate_up * between if folded else gate_up).T,
        mlp_out=mlp.down_proj.weight.to(dtype).T,
    )


def _grouped(queries: torch.Tensor, keys: torch.Tensor, key_heads: int, dimension: int) -> torch.Tensor:
    """Rows of queries and keys, (heads * dimension, ...), `paired`: each key head after the query heads it serves."""
    parts = [rows.reshape(key_heads, -1, dimension, *rows.shape[1:]).movedim(2, -1) for rows in (queries, keys)]
    return paired(torch.cat(parts, 1)).movedim(-1, 2).flatten(0, 2)
