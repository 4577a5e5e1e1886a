"""Pure functions of the objective, on tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch

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
    kept = {
        name: value[keep] if torch.is_tensor(value) and value.dim() > 0 and value.shape[0] == rows else value
        for name, value in batch.items()
    }
    if loss_type in MEAN_OVER_ROWS:
        kept["advantages"] = kept["advantages"] * (int(keep.sum()) / rows)
    prompt = max(1, int(kept["prompt_mask"].sum(-1).max()))
    completion = max(1, int(kept["completion_mask"].sum(-1).max()))
    for name, value in kept.items():
        if not torch.is_tensor(value) or value.dim() != 2:
            continue
        if name in ("prompt_ids", "prompt_mask"):
            kept[name] = value[:, -prompt:]
        elif value.shape[1] == batch["completion_ids"].shape[1]:
            kept[name] = value[:, :completion]
    return kept
