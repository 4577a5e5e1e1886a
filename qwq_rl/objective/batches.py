"""Which rows of a batch go through the model together, and which need not go through it at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

PARTS = 8
"""Into how many batches of like length a micro-batch is cut: more save little padding and cost calls."""

MEAN_OVER_ROWS = ("grpo", "dr_grpo")
"""TRL loss types whose normaliser counts the rows of the micro-batch, so that dropping rows must be made up for."""


def live_rows(batch: Mapping[str, torch.Tensor], loss_type: str) -> dict[str, torch.Tensor]:
    """The rows of a micro-batch that have an advantage, trimmed to their longest prompt and completion.

    A row whose advantage is 0 adds nothing to the policy loss, so the loss and its gradient stay what they were; this
    holds only without a KL or entropy term. `batch` is TRL's: `prompt_ids` (B, P) padded on the left, `completion_ids`
    (B, T) on the right, their masks, `advantages` (B,). At least one row is kept.
    """
    advantages, rows = batch["advantages"], batch["prompt_ids"].shape[0]
    keep = advantages != 0
    if not bool(keep.any()):
        keep[0] = True
    kept = {name: value[keep] if _of_rows(value, rows) else value for name, value in batch.items()}
    if loss_type in MEAN_OVER_ROWS:
        kept["advantages"] = kept["advantages"] * (int(keep.sum()) / rows)
    return _trimmed(kept, batch["completion_ids"].shape[1])


def by_length(
    batch: Mapping[str, torch.Tensor], loss_type: str, parts: int
) -> list[tuple[float, dict[str, torch.Tensor]]]:
    """The rows of a micro-batch in `parts` batches of like length, each trimmed, with the weight of its loss.

    The weighted losses add up to the loss of the whole, for loss types that sum over rows or take their mean; padding,
    most of a batch whose prompts differ in length, then costs little. `batch` is as for `live_rows`.
    """
    rows, width = batch["prompt_ids"].shape[0], batch["completion_ids"].shape[1]
    order = (batch["prompt_mask"].sum(-1) + batch["completion_mask"].sum(-1)).argsort(stable=True)
    found = []
    for chosen in order.chunk(parts):
        part = {name: value[chosen] if _of_rows(value, rows) else value for name, value in batch.items()}
        share = len(chosen) / rows if loss_type in MEAN_OVER_ROWS else 1.0
        found.append((share, _trimmed(part, width)))
    return found


def plan(lengths: Sequence[int], live: Sequence[bool], tokens: int) -> list[list[int]]:
    """The live rows in micro-batches of like length, the longest first: indices into `lengths`.

    A micro-batch takes at most `tokens` tokens, its padding counted: rows times its longest row. A row longer than that
    stands alone. There is always one micro-batch, for a process without one would leave the others waiting: with no
    live row it is the shortest, whose loss the caller weights by 0; so are the further ones that a caller adds where
    processes must run equally many. Raises ValueError without any row, or if `tokens` is not positive.
    """
    if not lengths or len(lengths) != len(live) or tokens < 1:
        raise ValueError(f"{len(lengths)} lengths, {len(live)} marks and {tokens} tokens: no plan can be made")
    rows = [row for row, alive in enumerate(live) if alive] or [min(range(len(lengths)), key=lengths.__getitem__)]
    rows.sort(key=lambda row: -lengths[row])
    found = []
    while rows:
        size = max(1, tokens // max(1, lengths[rows[0]]))
        found.append(rows[:size])
        rows = rows[size:]
    return found


def _of_rows(value: Any, rows: int) -> bool:
    return torch.is_tensor(value) and value.dim() > 0 and value.shape[0] == rows


def _trimmed(batch: dict[str, torch.Tensor], width: int) -> dict[str, torch.Tensor]:
    """`batch` without the columns that only padding fills; `width` is that of its completions."""
    prompt = max(1, int(batch["prompt_mask"].sum(-1).max()))
    completion = max(1, int(batch["completion_mask"].sum(-1).max()))
    trimmed = dict(batch)
    for name, value in batch.items():
        if not torch.is_tensor(value) or value.dim() != 2:
            continue
        if name in ("prompt_ids", "prompt_mask"):
            trimmed[name] = value[:, -prompt:]
        elif value.shape[1] == width:
            trimmed[name] = value[:, :completion]
    return trimmed
