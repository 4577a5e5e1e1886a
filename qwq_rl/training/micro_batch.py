"""Completions as an update needs them, in micro-batches of as many as fit, and their log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

if TYPE_CHECKING:
    from qwq_rl.inference.fast_qwen.training_states import Prompts
    from qwq_rl.rollouts.rollout import Sampled


@dataclass(frozen=True)
class TrainingSample:
    """One completion after its prompt, L tokens in all, and what an update is to make of it.

    Position t of a tensor (L - 1,) is about token t + 1.
    """

    ids: torch.Tensor
    """(L,) int64."""
    mask: torch.Tensor
    """(L - 1,) bool: whether token t + 1 is trained on: the model wrote it, and the response counts."""
    sampled: torch.Tensor
    """(L - 1,) float32: log-probability of token t + 1 under the sampler; NaN where it gave none, 0 in the prompt."""
    domain: int
    """Index among the recipe's domains, in the order of their names."""
    advantage: torch.Tensor = field(default_factory=lambda: torch.zeros(1))
    """(1,), or (L - 1,) where a critic gave each token its own; 0 until it is known."""
    reference: torch.Tensor | None = None
    """(L - 1,) log-probabilities under the reference; None without a KL term."""
    old: torch.Tensor | None = None
    """(L - 1,) log-probabilities before the round's first update; None in that update itself."""

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

    @property
    def teaches(self) -> bool:
        """Whether the policy loss has a gradient here."""
        return bool(self.mask.any()) and bool((self.advantage != 0).any())


BLANK = TrainingSample(torch.zeros(2, dtype=torch.int64), torch.zeros(1, dtype=torch.bool), torch.zeros(1), 0)
"""Two made-up tokens of which none is trained on: for a process that has nothing while others have, and must wait."""


@dataclass(frozen=True)
class MicroBatch:
    """Samples side by side, B of them and the longest of L tokens. Padded on the right: no attention mask is needed."""

    ids: torch.Tensor
    """(B, L) int64."""
    mask: torch.Tensor
    """(B, L - 1) bool."""
    sampled: torch.Tensor
    """(B, L - 1) float32."""
    prompts: Prompts | None = None
    """Set where the model is to read each prompt once."""


def training_sample(rollout: Sampled, domain: int, counts: bool) -> TrainingSample:
    """The tokens of a rollout, in order; nothing of it is trained on unless it `counts`."""
    ids: list[int] = []
    mask: list[bool] = []
    logprobs: list[float] = []
    for segment in rollout.segments:
        ids += segment.token_ids
        mask += [counts and segment.role == "model"] * len(segment.token_ids)
        logprobs += segment.logprobs
    before = len(rollout.prompt_ids) - 1
    return TrainingSample(
        torch.tensor([*rollout.prompt_ids, *ids]),
        torch.tensor([False] * before + mask),
        torch.tensor([0.0] * before + logprobs, dtype=torch.float32),
        domain,
    )


def collate(samples: Sequence[TrainingSample], device: torch.device, share: bool = False) -> MicroBatch:
    """The samples as one batch on `device`; with `share`, for a model that reads each prompt once."""
    return MicroBatch(
        padded([sample.ids for sample in samples], device),
        padded([sample.mask for sample in samples], device),
        padded([sample.sampled for sample in samples], device),
        _prompts(samples, device) if share else None,
    )


def _prompts(samples: Sequence[TrainingSample], device: torch.device) -> Prompts:
    """Which sample begins with which prompt; samples with the same prompt share its first occurrence."""
    from qwq_rl.inference.fast_qwen.training_states import Prompts

    first_row: dict[Extent, int] = {}
    keys = [replace(sample.extent, own=0) for sample in samples]
    for row, key in enumerate(keys):
        first_row.setdefault(key, row)
    places = {key: place for place, key in enumerate(first_row)}
    return Prompts(
        torch.tensor(list(first_row.values()), device=device),
        torch.tensor([key.prompt for key in first_row], device=device),
        torch.tensor([places[key] for key in keys], device=device),
    )


def padded(rows: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Tensors (n_i,) of one type as (B, longest) on `device`, zeros on the right; (0, 1) where there are none."""
    if not rows:
        return torch.zeros(0, 1, device=device)
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(device)


def token_logprobs(model: Any, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities and, where the head works them out, entropies of the trained tokens; (B, L - 1), 0 elsewhere.

    `model` is wrapped as it trains. Its head, TRL's fused one or that of `fast_qwen.training_head`, divides the logits
    by the temperature.
    """
    labels = torch.full_like(batch.ids, -100)
    labels[:, 1:] = torch.where(batch.mask, batch.ids[:, 1:], -100)
    shared = {} if batch.prompts is None else {"prompts": batch.prompts}
    output = model(input_ids=batch.ids, labels=labels, fused_lm_head=True, **shared)
    return output.log_probs, output.entropy


def logprobs_of(
    model: Any, samples: Sequence[TrainingSample], tokens: int, accelerator: Any, share: bool
) -> list[torch.Tensor]:
    """Log-probabilities (L_i - 1,) on the CPU of each sample's trained tokens, `tokens` padded tokens at a time.

    `share`: whether the model reads the prompts that a batch names only once each.
    """

    def logprobs(batch: MicroBatch) -> torch.Tensor:
        with accelerator.autocast():
            return token_logprobs(model, batch)[0]

    return by_micro_batch(logprobs, samples, tokens, accelerator, share)


@torch.no_grad()
def by_micro_batch(
    compute: Callable[[MicroBatch], torch.Tensor],
    samples: Sequence[TrainingSample],
    tokens: int,
    accelerator: Any,
    share: bool,
) -> list[torch.Tensor]:
    """What `compute` makes of each sample's tokens, from (B, L - 1) a micro-batch to (L_i - 1,) float32 on the CPU.

    All processes take part, those without samples too, and call `compute` as often as the one that needs most.
    """
    plans = plan([sample.extent for sample in samples], [True] * len(samples), tokens, share) if samples else []
    results: list[torch.Tensor] = [torch.empty(0)] * len(samples)
    for number in range(max(gather_object([len(plans)]))):
        places = plans[number] if number < len(plans) else []
        batch = collate([samples[place] for place in places] or [BLANK], accelerator.device, share)
        rows = compute(batch).float().cpu()
        for place, row in zip(places, rows, strict=False):  # without places, the row is of no sample
            results[place] = row[: len(samples[place].mask)].clone()
    return results


@dataclass(frozen=True)
class Extent:
    """Tokens of a row: those of its prompt, which other rows may begin with too, and its own after them."""

    prompt: int
    own: int
    key: int = 0
    """Which prompt it is."""

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.prompt + self.own


def plan(extents: Sequence[Extent], live: Sequence[bool], tokens: int, share: bool = False) -> list[list[int]]:
    """The live rows in micro-batches, the longest first: indices into `extents`.

    A micro-batch takes at most `tokens` tokens: rows times its longest row, for padding is read too; with `share`, for
    a model that reads no padding and each prompt once, the rows' own tokens and each prompt's. What is more than that
    by itself stands alone. There is always one micro-batch, for a process without one would leave the others waiting:
    with no live row it is the shortest, whose loss the caller weights by 0; so are the further ones that a caller adds
    where processes must run equally many. Raises ValueError without any row, or if `tokens` is not positive.
    """
    if not extents or len(extents) != len(live) or tokens < 1:
        raise ValueError(f"{len(extents)} rows, {len(live)} marks and {tokens} tokens: no plan can be made")
    rows = [row for row, alive in enumerate(live) if alive]
    rows = rows or [min(range(len(extents)), key=lambda row: extents[row].tokens)]
    return _by_prompt(rows, extents, tokens) if share else _by_length(rows, extents, tokens)


def _by_length(rows: Sequence[int], extents: Sequence[Extent], tokens: int) -> list[list[int]]:
    left = sorted(rows, key=lambda row: -extents[row].tokens)
    batches = []
    while left:
        size = max(1, tokens // max(1, extents[left[0]].tokens))
        batches.append(left[:size])
        left = left[size:]
    return batches


def _by_prompt(rows: Sequence[int], extents: Sequence[Extent], tokens: int) -> list[list[int]]:
    """The rows of a prompt in a row, the prompt of the longest row first."""
    longest: dict[int, int] = {}
    for row in rows:
        longest[extents[row].key] = max(extents[row].own, longest.get(extents[row].key, 0))
    left = sorted(rows, key=lambda row: (-longest[extents[row].key], extents[row].key, -extents[row].own))
    batches: list[list[int]] = []
    used, keys = 0, set[int]()
    for row in left:
        extent = extents[row]
        used += extent.own + (0 if extent.key in keys else extent.prompt)
        if not batches or used > tokens:
            batches.append([])
            used, keys = extent.tokens, set()
        batches[-1].append(row)
        keys.add(extent.key)
    return batches
