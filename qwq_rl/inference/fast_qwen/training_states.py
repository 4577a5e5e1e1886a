"""The hidden states of a dense Qwen in training on a CPU. Shared prompts are computed once, padding is not computed.

A model's own forward computes the prompt of a group again for every completion, computes the padding of the shorter
ones, and makes a dozen passes over its tensors where two are enough. Here the tokens of a micro-batch are the rows of
one matrix in all operations that treat tokens alike. Only attention arranges them in rows again: rows of similar length
together, and a completion sees the keys of its prompt before its own. The weights are computed from the model's by
`fast_qwen.weights`, as for decoding, so gradients reach the model's parameters.

Read `states`, then `_layout` and `_attended`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from qwq_rl.inference.fast_qwen.fit import fits_qwen_decoder
from qwq_rl.inference.fast_qwen.weights import LayerWeights, QwenWeights, read_weights, rotations


@dataclass(frozen=True)
class Prompts:
    """The P different prompts of a batch of B rows."""

    rows: torch.Tensor
    """(P,) int64: for each prompt a row that begins with it."""
    lengths: torch.Tensor
    """(P,) int64: number of tokens of each prompt."""
    of: torch.Tensor
    """(B,) int64: for each row the prompt that it begins with."""


def has_qwen_states(model: Any) -> bool:
    """Whether `states` computes the same as the forward of `model` in its current state."""
    checkpointing = getattr(model, "is_activation_checkpointing", False)
    dropout = model.training and getattr(model.config, "attention_dropout", 0.0) > 0
    return fits_qwen_decoder(model) and model.dtype == torch.float32 and not checkpointing and not dropout


def states(model: Any, ids: torch.Tensor, wanted: torch.Tensor, prompts: Prompts | None = None) -> torch.Tensor:
    """Final hidden states at the `wanted` positions of `ids`, (positions, hidden), row by row.

    `ids` (B, L) are padded on the right. `wanted` (B, L - 1) is True where the state after a token is needed; with
    `prompts`, nowhere before the last token of the row's prompt. It makes no checks: ask `has_qwen_states` first.
    """
    layout = _layout(ids, wanted, prompts)
    weights = read_weights(model)
    rotation = rotations(model, weights, int(layout.positions.max()) + 1)[layout.positions]
    hidden = functional.embedding(layout.tokens, weights.embedding)
    for layer in weights.layers:
        unit = _RmsNorm.apply(hidden, weights.epsilon)
        hidden = torch.addmm(hidden, _attended(unit, layer, weights, rotation, layout.blocks), layer.attention_out)
        gates = _RmsNorm.apply(hidden, weights.epsilon) @ layer.gate_up
        hidden = torch.addmm(hidden, _SwiGlu.apply(gates), layer.mlp_out)
    return _RmsNorm.apply(hidden.index_select(0, layout.places), weights.epsilon) * weights.final_gain


@dataclass(frozen=True)
class _Block:
    """R rows of similar length, the longest of W tokens, whose attention is computed together."""

    rows: torch.Tensor
    """(R,): the rows of the batch."""
    positions: torch.Tensor
    """(R, W): each token's position in its row."""
    real: torch.Tensor
    """(R, W) bool: False for padding."""
    prompts: torch.Tensor | None
    """(R,): the prompt whose keys a row sees before its own; None for the prompts' block and where none are shared."""
    bias: torch.Tensor
    """(R, 1, W, keys): added to attention scores; the prompt's keys come first."""
    places: torch.Tensor
    """Indices of the real tokens among R * W."""


@dataclass(frozen=True)
class _Layout:
    """The N tokens that are computed, block after block."""

    tokens: torch.Tensor
    """(N,)."""
    positions: torch.Tensor
    """(N,) int64: each token's position in its row."""
    blocks: tuple[_Block, ...]
    places: torch.Tensor
    """Indices of the wanted tokens among N."""


def _layout(ids: torch.Tensor, wanted: torch.Tensor, prompts: Prompts | None) -> _Layout:
    """Lay out the tokens. A row ends at its last wanted position; a row without one still has one token."""
    ends = (wanted * torch.arange(1, ids.shape[1], device=ids.device)).amax(1).clamp(min=1)
    shared_lengths, blocks = torch.zeros_like(ends), []
    if prompts is not None:
        blocks.append(_block(prompts.rows, torch.zeros_like(prompts.lengths), prompts.lengths))
        shared_lengths = prompts.lengths[prompts.of]
    for rows in _similar_lengths(ends - shared_lengths):
        blocks.append(_block(rows, shared_lengths[rows], (ends - shared_lengths)[rows], prompts))
    index_of_token = torch.zeros_like(ids[:, 1:])
    tokens, positions, tokens_read = [], [], 0
    for block in blocks:
        row = block.rows[:, None].expand_as(block.real)[block.real]
        positions.append(block.positions[block.real])
        tokens.append(ids[row, positions[-1]])
        index_of_token[row, positions[-1]] = torch.arange(tokens_read, tokens_read + len(row), device=ids.device)
        tokens_read += len(row)
    if prompts is not None:  # the state at a prompt's last token predicts the first own token of each of its rows
        all_rows = torch.arange(len(ids), device=ids.device)
        index_of_token[all_rows, shared_lengths - 1] = (prompts.lengths.cumsum(0) - 1)[prompts.of]
    return _Layout(torch.cat(tokens), torch.cat(positions), tuple(blocks), index_of_token[wanted])


def _similar_lengths(lengths: torch.Tensor) -> list[torch.Tensor]:
    """Rows that have tokens, longest first, in groups whose shortest row is more than half as long as the longest."""
    order = lengths.argsort(descending=True, stable=True)
    groups: list[list[int]] = []
    longest = 0
    for row, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        if length <= 0:
            break
        if 2 * length <= longest or not groups:
            groups.append([])
            longest = length
        groups[-1].append(row)
    return [torch.tensor(group, device=lengths.device) for group in groups]


def _block(rows: torch.Tensor, first: torch.Tensor, lengths: torch.Tensor, prompts: Prompts | None = None) -> _Block:
    """The block of `rows` (R,), with `lengths` (R,) tokens of each row from its position `first` (R,) on."""
    offsets = torch.arange(int(lengths.max()), device=rows.device)
    real = offsets < lengths[:, None]
    visible = torch.ones(len(offsets), len(offsets), dtype=torch.bool, device=rows.device).tril()
    visible = visible.expand(len(rows), -1, -1)
    row_prompts = None
    if prompts is not None:
        row_prompts = prompts.of[rows]
        prompt_visible = torch.arange(int(prompts.lengths.max()), device=rows.device) < first[:, None]
        visible = torch.cat([prompt_visible[:, None].expand(-1, len(offsets), -1), visible], -1)
    bias = torch.zeros(visible.shape, device=rows.device).masked_fill_(~visible, float("-inf"))
    return _Block(rows, first[:, None] + offsets, real, row_prompts, bias[:, None], real.flatten().nonzero()[:, 0])


def _attended(
    unit: torch.Tensor, layer: LayerWeights, weights: QwenWeights, rotation: torch.Tensor, blocks: Sequence[_Block]
) -> torch.Tensor:
    """Attention of one layer, before its output matrix, (N, query heads * head dimension)."""
    product = unit @ layer.qkv if layer.qkv_bias is None else torch.addmm(layer.qkv_bias, unit, layer.qkv)
    values_wide = weights.key_heads * weights.head_dimension
    queries_keys, values = product.split([product.shape[1] - values_wide, values_wide], 1)
    heads = queries_keys.unflatten(1, (weights.key_heads, -1, weights.head_dimension))
    if layer.head_gain is not None:
        heads = _RmsNorm.apply(heads, weights.epsilon) * layer.head_gain
    rotated = torch.view_as_real(torch.view_as_complex(heads.unflatten(-1, (-1, 2))) * rotation).flatten(-2)
    queries, keys = rotated.split([rotated.shape[2] - 1, 1], 2)
    return _attention(queries, keys[:, :, 0], values.unflatten(1, (weights.key_heads, -1)), blocks)


def _attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, blocks: Sequence[_Block]
) -> torch.Tensor:
    """`queries` (N, key heads, queries per key, d), `keys` and `values` (N, key heads, d) -> (N, query heads * d).

    The queries that share a key head are stacked along the token dimension, so that no key is repeated.
    """
    sizes = [len(block.places) for block in blocks]
    queries_per_key = queries.shape[2]
    outputs: list[torch.Tensor] = []
    prompt_keys_values: list[torch.Tensor] = []
    for block, *block_tensors in zip(blocks, queries.split(sizes), keys.split(sizes), values.split(sizes), strict=True):
        rows, tokens = block.real.shape
        own_queries, *keys_values = (
            _Spread.apply(part, block.places, rows * tokens).unflatten(0, (rows, tokens)) for part in block_tensors
        )
        keys_values = [part.transpose(1, 2) for part in keys_values]
        if block.prompts is not None:
            keys_values = [
                torch.cat([from_prompts.index_select(0, block.prompts), part], 2)
                for from_prompts, part in zip(prompt_keys_values, keys_values, strict=True)
            ]
        stacked = own_queries.transpose(1, 2).flatten(2, 3)
        bias = block.bias.repeat_interleave(queries_per_key, 2)
        attended = functional.scaled_dot_product_attention(
            stacked, keys_values[0], keys_values[1], attn_mask=bias, scale=1.0
        )
        outputs.append(
            _Gather.apply(attended.unflatten(2, (tokens, queries_per_key)).transpose(1, 2).flatten(0, 1), block.places)
        )
        # Where prompts are shared, theirs is the first block: the others see its keys and values.
        prompt_keys_values = prompt_keys_values or keys_values
    return torch.cat(outputs).flatten(1)


class _Spread(torch.autograd.Function):
    """Put rows at `places` of `count` rows; the others are zeros."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, places: torch.Tensor, count: int) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(places)
        return rows.new_zeros(count, *rows.shape[1:]).index_copy_(0, places, rows)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None


class _Gather(torch.autograd.Function):
    """Take the rows at `places`, the opposite of `_Spread`. No place occurs twice, so the gradient needs no sums."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(places)
        ctx.count = len(rows)
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        places = ctx.saved_tensors[0]
        return gradient.new_zeros(ctx.count, *gradient.shape[1:]).index_copy_(0, places, gradient), None


class _RmsNorm(torch.autograd.Function):
    """Root-mean-square norm without its gain: x over the root of (mean square of its last dimension + epsilon)."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        length = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
        inverse = torch.addcmul(epsilon, length, length, value=1 / values.shape[-1]).rsqrt_()
        unit = values * inverse
        ctx.save_for_backward(unit, inverse)
        return unit

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        unit, inverse = ctx.saved_tensors
        projection = (gradient * unit).mean(-1, keepdim=True)
        return torch.addcmul(gradient, unit, projection, value=-1).mul_(inverse), None


class _SwiGlu(torch.autograd.Function):
    """silu(gate) * up of (N, 2 * intermediate), the gate first."""

    @staticmethod
    def forward(ctx: Any, gates: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        gate, up = gates.chunk(2, -1)
        activated = functional.silu(gate)
        ctx.save_for_backward(gates, activated)
        return activated * up

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        gates, activated = ctx.saved_tensors
        gate, up = gates.chunk(2, -1)
        gates_gradient = torch.empty_like(gates)
        to_gate, to_up = gates_gradient.chunk(2, -1)
        torch.mul(gradient, activated, out=to_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=to_gate)
        return gates_gradient
