"""The hidden states of a dense Qwen in training on a CPU: shared prompts are read once, padding not at all.

A model's own forward reads the prompt of a group again for every completion of it, reads the padding of the shorter
ones, and takes a dozen passes over its tensors where two do. Here the tokens of a micro-batch are the rows of one
matrix for all that treats tokens alike; only attention puts them side by side again, rows of like length together, and
a completion sees the keys of its prompt before its own. The weights are the model's, laid out as for decoding
(`generation.qwen_weights`), so that their gradients arrive where they belong.
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
    """The prompts of a batch, each named once."""

    rows: torch.Tensor
    """(P,) int64: a row that begins with it."""
    lengths: torch.Tensor
    """(P,) int64: its tokens."""
    of: torch.Tensor
    """(B,) int64: which of them a row begins with."""


def has_qwen_states(model: Any) -> bool:
    """Whether `states` computes what the forward of `model` does, as it stands now."""
    checkpointing = getattr(model, "is_activation_checkpointing", False)
    dropout = model.training and getattr(model.config, "attention_dropout", 0.0) > 0
    return fits_qwen_decoder(model) and model.dtype == torch.float32 and not checkpointing and not dropout


def states(model: Any, ids: torch.Tensor, wanted: torch.Tensor, prompts: Prompts | None = None) -> torch.Tensor:
    """Final hidden states at the `wanted` places of `ids`, (places, hidden), row by row.

    `ids` (B, L) are padded on the right; `wanted` (B, L - 1) is True where the state after a token is asked for, with
    `prompts` nowhere before the last token of the row's own. Raises nothing of its own: ask `has_qwen_states` first.
    """
    layout = _layout(ids, wanted, prompts)
    weights = read_weights(model)
    turns = rotations(model, weights, int(layout.positions.max()) + 1)[layout.positions]
    hidden = functional.embedding(layout.tokens, weights.embedding)
    for layer in weights.layers:
        unit = _Unit.apply(hidden, weights.epsilon)
        hidden = torch.addmm(hidden, _attended(unit, layer, weights, turns, layout.blocks), layer.attention_out)
        gates = _Unit.apply(hidden, weights.epsilon) @ layer.gate_up
        hidden = torch.addmm(hidden, _SwiGlu.apply(gates), layer.mlp_out)
    return _Unit.apply(hidden.index_select(0, layout.places), weights.epsilon) * weights.final_gain


@dataclass(frozen=True)
class _Block:
    """Rows of like length, R of them and the longest of W tokens, that attend side by side."""

    rows: torch.Tensor
    """(R,): which rows of the batch."""
    positions: torch.Tensor
    """(R, W): in its row, of each token."""
    real: torch.Tensor
    """(R, W) bool: what is no padding."""
    prompts: torch.Tensor | None
    """(R,): the prompt whose keys a row sees before its own; None for prompts, and where none are shared."""
    bias: torch.Tensor
    """(R, 1, W, keys): what is added to attention scores, of the prompt's keys first."""
    places: torch.Tensor
    """Where the real tokens are among R * W."""


@dataclass(frozen=True)
class _Layout:
    """The tokens that are read, N in all, those of one block after those of another."""

    tokens: torch.Tensor
    """(N,)."""
    positions: torch.Tensor
    """(N,) int64: in the row that a token is of."""
    blocks: tuple[_Block, ...]
    places: torch.Tensor
    """Where the wanted tokens are among N."""


def _layout(ids: torch.Tensor, wanted: torch.Tensor, prompts: Prompts | None) -> _Layout:
    """Nothing behind the last wanted place of a row is read; something is, where no place is wanted."""
    ends = (wanted * torch.arange(1, ids.shape[1], device=ids.device)).amax(1).clamp(min=1)
    before, blocks = torch.zeros_like(ends), []
    if prompts is not None:
        blocks.append(_block(prompts.rows, torch.zeros_like(prompts.lengths), prompts.lengths))
        before = prompts.lengths[prompts.of]
    for rows in _alike(ends - before):
        blocks.append(_block(rows, before[rows], (ends - before)[rows], prompts))
    places = torch.zeros_like(ids[:, 1:])
    tokens, positions, read = [], [], 0
    for block in blocks:
        row = block.rows[:, None].expand_as(block.real)[block.real]
        positions.append(block.positions[block.real])
        tokens.append(ids[row, positions[-1]])
        places[row, positions[-1]] = torch.arange(read, read + len(row), device=ids.device)
        read += len(row)
    if prompts is not None:  # whose last token is where a row's first own token is foreseen
        every = torch.arange(len(ids), device=ids.device)
        places[every, before - 1] = (prompts.lengths.cumsum(0) - 1)[prompts.of]
    return _Layout(torch.cat(tokens), torch.cat(positions), tuple(blocks), places[wanted])


def _alike(lengths: torch.Tensor) -> list[torch.Tensor]:
    """The rows that have tokens, longest first, in parts whose shortest is more than half as long as their longest."""
    order = lengths.argsort(descending=True, stable=True)
    parts: list[list[int]] = []
    longest = 0
    for row, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        if length <= 0:
            break
        if 2 * length <= longest or not parts:
            parts.append([])
            longest = length
        parts[-1].append(row)
    return [torch.tensor(part, device=lengths.device) for part in parts]


def _block(rows: torch.Tensor, first: torch.Tensor, lengths: torch.Tensor, prompts: Prompts | None = None) -> _Block:
    """`lengths` (R,) tokens of each of `rows` (R,) from its position `first` (R,) on."""
    along = torch.arange(int(lengths.max()), device=rows.device)
    real = along < lengths[:, None]
    seen = torch.ones(len(along), len(along), dtype=torch.bool, device=rows.device).tril()
    seen = seen.expand(len(rows), -1, -1)
    before = None
    if prompts is not None:
        before = prompts.of[rows]
        known = torch.arange(int(prompts.lengths.max()), device=rows.device) < first[:, None]
        seen = torch.cat([known[:, None].expand(-1, len(along), -1), seen], -1)
    bias = torch.zeros(seen.shape, device=rows.device).masked_fill_(~seen, float("-inf"))
    return _Block(rows, first[:, None] + along, real, before, bias[:, None], real.flatten().nonzero()[:, 0])


def _attended(
    unit: torch.Tensor, layer: LayerWeights, weights: QwenWeights, turns: torch.Tensor, blocks: Sequence[_Block]
) -> torch.Tensor:
    """(N, query heads * head dimension)."""
    product = unit @ layer.qkv if layer.qkv_bias is None else torch.addmm(layer.qkv_bias, unit, layer.qkv)
    values_wide = weights.key_heads * weights.head_dimension
    turning, values = product.split([product.shape[1] - values_wide, values_wide], 1)
    heads = turning.unflatten(1, (weights.key_heads, -1, weights.head_dimension))
    if layer.head_gain is not None:
        heads = _Unit.apply(heads, weights.epsilon) * layer.head_gain
    turned = torch.view_as_real(torch.view_as_complex(heads.unflatten(-1, (-1, 2))) * turns).flatten(-2)
    queries, keys = turned.split([turned.shape[2] - 1, 1], 2)
    return _attention(queries, keys[:, :, 0], values.unflatten(1, (weights.key_heads, -1)), blocks)


def _attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, blocks: Sequence[_Block]
) -> torch.Tensor:
    """`queries` (N, key heads, queries a key, d), `keys` and `values` (N, key heads, d) -> (N, query heads * d).

    The queries that share a key head stand below each other, so that no key is repeated.
    """
    sizes = [len(block.places) for block in blocks]
    a_key = queries.shape[2]
    parts: list[torch.Tensor] = []
    prompt: list[torch.Tensor] = []
    for block, *read in zip(blocks, queries.split(sizes), keys.split(sizes), values.split(sizes), strict=True):
        rows, tokens = block.real.shape
        asking, *own = (_Spread.apply(part, block.places, rows * tokens).unflatten(0, (rows, tokens)) for part in read)
        own = [part.transpose(1, 2) for part in own]
        if block.prompts is not None:
            own = [
                torch.cat([before.index_select(0, block.prompts), part], 2)
                for before, part in zip(prompt, own, strict=True)
            ]
        below = asking.transpose(1, 2).flatten(2, 3)
        bias = block.bias.repeat_interleave(a_key, 2)
        found = functional.scaled_dot_product_attention(below, own[0], own[1], attn_mask=bias, scale=1.0)
        parts.append(_Gather.apply(found.unflatten(2, (tokens, a_key)).transpose(1, 2).flatten(0, 1), block.places))
        prompt = prompt or own
    return torch.cat(parts).flatten(1)


class _Spread(torch.autograd.Function):
    """Rows to `places` among `count`, zeros elsewhere."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, places: torch.Tensor, count: int) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(places)
        return rows.new_zeros(count, *rows.shape[1:]).index_copy_(0, places, rows)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None


class _Gather(torch.autograd.Function):
    """The rows at `places`, none of them twice: the opposite of `_Spread`, whose gradient need not add."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(places)
        ctx.count = len(rows)
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        places = ctx.saved_tensors[0]
        return gradient.new_zeros(ctx.count, *gradient.shape[1:]).index_copy_(0, places, gradient), None


class _Unit(torch.autograd.Function):
    """x over the root of (mean square of its last dimension + epsilon): a root-mean-square norm without its gain."""

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
        along = (gradient * unit).mean(-1, keepdim=True)
        return torch.addcmul(gradient, unit, along, value=-1).mul_(inverse), None


class _SwiGlu(torch.autograd.Function):
    """silu(gate) * up of (N, 2 * intermediate), the gate first."""

    @staticmethod
    def forward(ctx: Any, gates: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        gate, up = gates.chunk(2, -1)
        opened = functional.silu(gate)
        ctx.save_for_backward(gates, opened)
        return opened * up

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        gates, opened = ctx.saved_tensors
        gate, up = gates.chunk(2, -1)
        found = torch.empty_like(gates)
        to_gate, to_up = found.chunk(2, -1)
        torch.mul(gradient, opened, out=to_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=to_gate)
        return found
