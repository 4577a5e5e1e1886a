"""The weights of a Qwen, laid out for decoding: few matrices, and the gains of the norms inside them.

Float32 alone takes gains and the attention's scale into the matrices: rounded to 16 bits they would move the sampler
away from the model that is trained, so there they stay apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer; matrices are (in, out), heads of queries and keys in rotary pairs (see `paired`)."""

    attention_gain: torch.Tensor | None
    """Of the norm before attention, (hidden,); None where `qkv` holds it."""
    qkv: torch.Tensor
    """(hidden, (query heads + 2 key heads) * head dimension), queries first, then keys, then values."""
    qkv_bias: torch.Tensor | None
    head_gain: torch.Tensor | None
    """Of the norms of queries and keys, float32, (query heads + key heads, head dimension); None for Qwen2."""
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
    """(vocabulary, hidden)."""
    query_heads: int
    key_heads: int
    head_dimension: int
    epsilon: float
    query_scale: float
    """For queries after rotation, where their weights do not hold it; else 1."""


def read_weights(model: Any) -> QwenWeights:
    """The present weights of a model that `fits_qwen_decoder`; embedding, head and the two output matrices are views."""
    config, backbone = model.config, model.model
    dimension = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    folded = model.dtype == torch.float32
    return QwenWeights(
        embedding=backbone.embed_tokens.weight,
        layers=tuple(_layer(layer, dimension, folded) for layer in backbone.layers),
        final_gain=backbone.norm.weight,
        head=model.lm_head.weight,
        query_heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_dimension=dimension,
        epsilon=config.rms_norm_eps,
        query_scale=1.0 if folded else dimension**-0.5,
    )


def paired(heads: torch.Tensor) -> torch.Tensor:
    """The last dimension with its halves interleaved, so that the two numbers a rotation mixes stand side by side."""
    return heads.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def _layer(layer: Any, dimension: int, folded: bool) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    scale = dimension**-0.5 if folded else 1.0
    normed_heads = hasattr(attention, "q_norm")
    # A norm of the queries undoes any scale before it.
    query_scale = 1.0 if normed_heads else scale
    matrices = [
        _pair_rows(attention.q_proj.weight, dimension) * query_scale,
        _pair_rows(attention.k_proj.weight, dimension),
        attention.v_proj.weight,
    ]
    bias = None
    if attention.q_proj.bias is not None:
        query_bias = _pair_rows(attention.q_proj.bias, dimension) * query_scale
        bias = torch.cat([query_bias, _pair_rows(attention.k_proj.bias, dimension), attention.v_proj.bias])
    qkv, gate_up = torch.cat(matrices), torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
    before, between = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
    return LayerWeights(
        attention_gain=None if folded else before,
        qkv=(qkv * before if folded else qkv).T,
        qkv_bias=bias,
        head_gain=_head_gain(attention, dimension, scale) if normed_heads else None,
        attention_out=attention.o_proj.weight.T,
        mlp_gain=None if folded else between,
        gate_up=(gate_up * between if folded else gate_up).T,
        mlp_out=mlp.down_proj.weight.T,
    )


def _pair_rows(rows: torch.Tensor, dimension: int) -> torch.Tensor:
    """`paired` of each head along the first dimension, (heads * dimension, ...)."""
    heads = rows.reshape(-1, dimension, *rows.shape[1:])
    return paired(heads.movedim(1, -1)).movedim(-1, 1).reshape(rows.shape)


def _head_gain(attention: Any, dimension: int, query_scale: float) -> torch.Tensor:
    query = paired(attention.q_norm.weight.float() * query_scale).expand(attention.q_proj.out_features // dimension, -1)
    key = paired(attention.k_norm.weight.float()).expand(attention.k_proj.out_features // dimension, -1)
    return torch.cat([query, key])
