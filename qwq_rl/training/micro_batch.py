"""Training samples, how they are packed into micro-batches, and their log-probabilities."""

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
    """One prompt with its completion, L tokens together, and what an update needs to train on it.

    Position t of a tensor (L - 1,) belongs to token t + 1, which the model predicts from tokens 0 to t.
    """

    ids: torch.Tensor
    """(L,) int64."""
    mask: torch.Tensor
    """(L - 1,) bool: whether token t + 1 is trained on, because the model wrote it and the response counts."""
    sampled: torch.Tensor
    """(L - 1,) float32: log-probability of token t + 1 under the sampler; NaN where it gave none, 0 in the prompt."""
    domain: int
    """Index among the recipe's domains, in the order of their names."""
    advantage: torch.Tensor = field(default_factory=lambda: torch.zeros(1))
    """(1,), or (L - 1,) where a critic gave one per token; 0 until it is computed."""
    reference: torch.Tensor | None = None
    """(L - 1,) log-probabilities under the reference; None without a KL term."""
    old: torch.Tensor | None = None
    """(L - 1,) log-probabilities before the round's first update; None in that update itself."""

    @cached_property
    def tokens(self) -> int:
        """Number of tokens that are trained on."""
        return int(self.mask.sum())

    @cached_property
    def prompt(self) -> int:
        """Number of tokens before the first that is trained on; all but the last where there is none."""
        return int(self.mask.int().argmax()) + 1 if self.tokens else len(self.mask)

    @cached_property
    def extent(self) -> Extent:
        """The size of the sample, for planning micro-batches."""
        # Python's `hash` differs between processes. The key orders micro-batches, and their order decides rounding.
        key = blake2b(self.ids[: self.prompt].numpy().tobytes(), digest_size=8)
        return Extent(self.prompt, len(self.ids) - self.prompt, int.from_bytes(key.digest()))

    @property
    def teaches(self) -> bool:
        """Whether the policy loss has a gradient here."""
        return bool(self.mask.any()) and bool((self.advantage != 0).any())


BLANK = TrainingSample(torch.zeros(2, dtype=torch.int64), torch.zeros(1, dtype=torch.bool), torch.zeros(1), 0)
"""Two made-up tokens, not trained on: for a process that must run a pass with the others but has no sample left."""


@dataclass(frozen=True)
class MicroBatch:
    """B samples, the longest of L tokens. They are padded on the right, so no attention mask is needed."""

    ids: torch.Tensor
    """(B, L) int64."""
    mask: torch.Tensor
    """(B, L - 1) bool."""
    sampled: torch.Tensor
    """(B, L - 1) float32."""
    prompts: Prompts | None = None
    """Set where the model computes each prompt only once."""


def training_sample(rollout: Sampled, domain: int, counts: bool) -> TrainingSample:
    """The training sample of a rollout. Without `counts` none of its tokens is trained on."""
    ids: list[int] = []
    mask: list[bool] = []
    logprobs: list[float] = []
    for segment in rollout.segments:
        ids += segment.token_ids
        mask += [counts and segment.role == "model"] * len(segment.token_ids)
        logprobs += segment.logprobs
    prompt_targets = len(rollout.prompt_ids) - 1
    return TrainingSample(
        torch.tensor([*rollout.prompt_ids, *ids]),
        torch.tensor([False] * prompt_targets + mask),
        torch.tensor([0.0] * prompt_targets + logprobs, dtype=torch.float32),
        domain,
    )


def collate(samples: Sequence[TrainingSample], device: torch.device, share: bool = False) -> MicroBatch:
    """The samples as one batch on `device`. With `share` the batch names its prompts, for a model that uses them."""
    return MicroBatch(
        padded([sample.ids for sample in samples], device),
        padded([sample.mask for sample in samples], device),
        padded([sample.sampled for sample in samples], device),
        _prompts(samples, device) if share else None,
    )


def _prompts(samples: Sequence[TrainingSample], device: torch.device) -> Prompts:
    """The prompts of a batch. Samples with the same prompt refer to the first sample that has it."""
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
    """Tensors (n_i,) of one type as (B, longest) on `device`, with zeros on the right. No tensors give (0, 1)."""
    if not rows:
        return torch.zeros(0, 1, device=device)
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(device)


def token_logprobs(model: Any, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities of the trained tokens and, where the head computes them, entropies; (B, L - 1), 0 elsewhere.

    `model` is wrapped as in training. Its head, TRL's fused one or that of `fast_qwen.training_head`, divides the
    logits by the temperature.
    """
    labels = torch.full_like(batch.ids, -100)
    labels[:, 1:] = torch.where(batch.mask, batch.ids[:, 1:], -100)
    prompt_kwargs = {} if batch.prompts is None else {"prompts": batch.prompts}
    output = model(input_ids=batch.ids, labels=labels, fused_lm_head=True, **prompt_kwargs)
    return output.log_probs, output.entropy


def logprobs_of(
    model: Any, samples: Sequence[TrainingSample], tokens: int, accelerator: Any, share: bool
) -> list[torch.Tensor]:
    """Log-probabilities of each sample's trained tokens, (L_i - 1,) on the CPU, in micro-batches of `tokens` tokens.

    `share`: whether the model computes each prompt of a batch only once.
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
    """Apply `compute` to micro-batches. Its results, (B, L - 1), become (L_i - 1,) float32 on the CPU for each sample.

    All processes must take part, also those without samples. All call `compute` equally often.
    """
    batches = plan([sample.extent for sample in samples], [True] * len(samples), tokens, share) if samples else []
    results: list[torch.Tensor] = [torch.empty(0)] * len(samples)
    for number in range(max(gather_object([len(batches)]))):
        indices = batches[number] if number < len(batches) else []
        batch = collate([samples[index] for index in indices] or [BLANK], accelerator.device, share)
        rows = compute(batch).float().cpu()
        for index, row in zip(indices, rows, strict=False):  # a blank batch has one row and no index
            results[index] = row[: len(samples[index].mask)].clone()
    return results


@dataclass(frozen=True)
class Extent:
    """Numbers of tokens of a row: in its prompt, which other rows may share, and after it (`own`)."""

    prompt: int
    own: int
    key: int = 0
    """Identifies the prompt."""

    @property
    def tokens(self) -> int:
        """All tokens of the row."""
        return self.prompt + self.own


def plan(extents: Sequence[Extent], live: Sequence[bool], tokens: int, share: bool = False) -> list[list[int]]:
    """Pack the live rows into micro-batches, the longest rows first. Returns indices into `extents`.

    A micro-batch has at most `tokens` tokens. They are its rows times its longest row, since padding is computed too.
    With `share`, for a model that computes no padding and each prompt once, they are the rows' own tokens plus each
    prompt once. A row that is larger than `tokens` gets a micro-batch of its own. There is always at least one
    micro-batch, since a process without one would leave the others waiting; without live rows it has the shortest row,
    and the caller weights its loss by 0. Raises ValueError without any row, or if `tokens` is not positive.
    """
    if not extents or len(extents) != len(live) or tokens < 1:
        raise ValueError(f"{len(extents)} rows, {len(live)} marks and {tokens} tokens: no plan can be made")
    rows = [row for row, is_live in enumerate(live) if is_live]
    rows = rows or [min(range(len(extents)), key=lambda row: extents[row].tokens)]
    return _by_prompt(rows, extents, tokens) if share else _by_length(rows, extents, tokens)


def _by_length(rows: Sequence[int], extents: Sequence[Extent], tokens: int) -> list[list[int]]:
    remaining = sorted(rows, key=lambda row: -extents[row].tokens)
    batches = []
    while remaining:
        size = max(1, tokens // max(1, extents[remaining[0]].tokens))
        batches.append(remaining[:size])
        remaining = remaining[size:]
    return batches


def _by_prompt(rows: Sequence[int], extents: Sequence[Extent], tokens: int) -> list[list[int]]:
    """Rows with the same prompt one after the other, so that they share it; the prompt with the longest row first."""
    longest_own: dict[int, int] = {}
    for row in rows:
        longest_own[extents[row].key] = max(extents[row].own, longest_own.get(extents[row].key, 0))
    ordered = sorted(rows, key=lambda row: (-longest_own[extents[row].key], extents[row].key, -extents[row].own))
    batches: list[list[int]] = []
    batch_tokens, prompts_in_batch = 0, set[int]()
    for row in ordered:
        extent = extents[row]
        batch_tokens += extent.own + (0 if extent.key in prompts_in_batch else extent.prompt)
        if not batches or batch_tokens > tokens:
            batches.append([])
            batch_tokens, prompts_in_batch = extent.tokens, set()
        batches[-1].append(row)
        prompts_in_batch.add(extent.key)
    return batches
