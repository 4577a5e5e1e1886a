"""What an update needs of a completion: its tokens, which are trained on, and what the sampler thought of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b

import torch

from qwq_rl.rollouts.rollout import Sampled
from qwq_rl.training.batches import Extent


@dataclass(frozen=True)
class Trace:
    """One completion after its prompt, L tokens in all. Position t of the last two tensors is about token t + 1."""

    ids: torch.Tensor
    """(L,) int64."""
    mask: torch.Tensor
    """(L - 1,) bool: whether token t + 1 is trained on: the model wrote it, and the response counts."""
    sampled: torch.Tensor
    """(L - 1,) float32: log-probability of token t + 1 under the sampler; NaN where it gave none, 0 in the prompt."""
    domain: int
    """Index among the recipe's domains, in the order of their names."""

    @cached_property
    def tokens(self) -> int:
        """How many tokens are trained on."""
        return int(self.mask.sum())

    @cached_property
    def prompt(self) -> int:
        """How many tokens come before the first that is trained on; all but the last where none is."""
        return int(self.mask.int().argmax()) + 1 if self.tokens else len(self.mask)

    @cached_property
    def extent(self) -> Extent:
        """What it costs to read."""
        # Not `hash`, which differs from process to process: it orders micro-batches, and with them rounding.
        key = blake2b(self.ids[: self.prompt].numpy().tobytes(), digest_size=8)
        return Extent(self.prompt, len(self.ids) - self.prompt, int.from_bytes(key.digest()))


BLANK = Trace(torch.zeros(2, dtype=torch.int64), torch.zeros(1, dtype=torch.bool), torch.zeros(1), 0)
"""Two made-up tokens of which none is trained on: for a process that has nothing while others have, and must wait."""


@dataclass(frozen=True)
class Prompts:
    """The prompts of a batch, each named once."""

    rows: torch.Tensor
    """(P,) int64: a row that begins with it."""
    lengths: torch.Tensor
    """(P,) int64: its tokens."""
    of: torch.Tensor
    """(B,) int64: which of them a row begins with."""


@dataclass(frozen=True)
class Batch:
    """Some traces side by side, padded on the right: a causal model then needs no attention mask."""

    ids: torch.Tensor
    """(B, L) int64."""
    mask: torch.Tensor
    """(B, L - 1) bool."""
    sampled: torch.Tensor
    """(B, L - 1) float32."""
    prompts: Prompts | None = None
    """Set where the model is to read each prompt once."""


def trace_of(rollout: Sampled, domain: int, counts: bool) -> Trace:
    """The trace of a rollout; nothing of it is trained on unless it `counts`."""
    ids: list[int] = []
    trained: list[bool] = []
    sampled: list[float] = []
    for segment in rollout.segments:
        ids += segment.token_ids
        trained += [counts and segment.role == "model"] * len(segment.token_ids)
        sampled += segment.logprobs
    before = len(rollout.prompt_ids) - 1
    return Trace(
        torch.tensor([*rollout.prompt_ids, *ids]),
        torch.tensor([False] * before + trained),
        torch.tensor([0.0] * before + sampled, dtype=torch.float32),
        domain,
    )


def collate(traces: Sequence[Trace], device: torch.device, share: bool = False) -> Batch:
    """The traces as one batch on `device`; with `share`, for a model that reads each prompt once."""
    return Batch(
        padded([trace.ids for trace in traces], device),
        padded([trace.mask for trace in traces], device),
        padded([trace.sampled for trace in traces], device),
        _prompts(traces, device) if share else None,
    )


def _prompts(traces: Sequence[Trace], device: torch.device) -> Prompts:
    rows: dict[Extent, int] = {}
    keys = [replace(trace.extent, own=0) for trace in traces]
    for row, key in enumerate(keys):
        rows.setdefault(key, row)
    places = {key: place for place, key in enumerate(rows)}
    return Prompts(
        torch.tensor(list(rows.values()), device=device),
        torch.tensor([key.prompt for key in rows], device=device),
        torch.tensor([places[key] for key in keys], device=device),
    )


def padded(rows: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Tensors (n_i,) of one type as (B, longest) on `device`, zeros on the right; (0, 1) where there are none."""
    if not rows:
        return torch.zeros(0, 1, device=device)
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(device)
