"""Samples from a causal language model: many prompts, several samples each, in large batches.

`transformers.generate` pays for its generality at every token, which on a small model is most of the time. This loop
drives the model's own forward and keeps to what sampling needs: a prompt is read once and its cache copied to its
samples, prompts of like length share a batch, and rows that have finished leave it. It works with any causal model of
`transformers` that takes an attention mask, position ids and a cache.

The randomness of a token depends on (seed, prompt, sample, position) alone, never on the batch it was in, so that two
runs over different batches, or two checkpoints on the same prompts, see the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Completion:
    """One sampled continuation of one prompt."""

    token_ids: tuple[int, ...]
    """The sampled tokens; the last one is the end-of-sequence token where `finish` is "stop"."""
    finish: Literal["stop", "length"]
    """"stop": the model ended it; "length": `max_tokens` did."""
    logprobs: tuple[float, ...]
    """Of each token under the distribution it was drawn from (at the temperature; at temperature 1 where greedy)."""


def generate(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    *,
    samples: int,
    max_tokens: int,
    temperature: float,
    eos_token_id: int,
    pad_token_id: int,
    seed: int,
    batch_rows: int = 1024,
    keys: Sequence[int] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[Completion]]:
    """Sample `samples` continuations of at most `max_tokens` tokens of every prompt.

    Returns a list a prompt, in the order of `prompt_ids`, each with its samples in order. `temperature` 0 takes the
    likeliest token. A batch holds at most `batch_rows` sequences (or one prompt's samples). `keys` names each prompt
    in the random numbers, so that a prompt keeps its noise wherever it stands; its position where None. `on_batch` is
    told after each batch how many prompts are finished.
    Raises ValueError on an empty prompt or on numbers out of range.
    """
    if samples < 1 or max_tokens < 1 or temperature < 0.0 or not all(len(prompt) for prompt in prompt_ids):
        raise ValueError("generate needs samples >= 1, max_tokens >= 1, temperature >= 0 and no empty prompt")
    keys = range(len(prompt_ids)) if keys is None else keys
    order = sorted(range(len(prompt_ids)), key=lambda index: len(prompt_ids[index]))
    prompts_a_batch = max(1, batch_rows // samples)
    results: list[list[Completion]] = [[] for _ in prompt_ids]
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), prompts_a_batch):
            chosen = order[start : start + prompts_a_batch]
            streams = _streams(seed, [keys[index] for index in chosen], samples)
            prompts = _left_padded([prompt_ids[index] for index in chosen], pad_token_id, model.device)
            rows = _decode(model, *prompts, samples, max_tokens, temperature, eos_token_id, streams)
            for place, index in enumerate(chosen):
                results[index] = rows[place * samples : (place + 1) * samples]
            if on_batch:
                on_batch(start + len(chosen))
    finally:
        model.train(was_training)
    return results


def _left_padded(
    prompts: Sequence[Sequence[int]], pad_token_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (prompts, longest), padded on the left."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.full((len(prompts), longest), pad_token_id, dtype=torch.long)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, longest - len(prompt) :] = 1
    return tokens.to(device), mask.to(device)


@torch.no_grad()
def _decode(
    model: Any,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    samples: int,
    max_tokens: int,
    temperature: float,
    eos_token_id: int,
    streams: np.ndarray,
) -> list[Completion]:
    """Continue one batch of prompts, (prompts, longest), to prompts x samples completions."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    output = model(tokens, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    spread = torch.arange(len(tokens), device=tokens.device).repeat_interleave(samples)
    cache, logits = output.past_key_values, output.logits[spread, -1]
    cache.reorder_cache(spread)
    mask = torch.cat([mask[spread], mask.new_ones(len(spread), max_tokens)], 1)
    position = positions[spread, -1:]
    prompt_length = tokens.shape[1]
    written = torch.zeros(len(spread), max_tokens, dtype=torch.long, device=tokens.device)
    logprobs = torch.zeros(len(spread), max_tokens, device=tokens.device)
    lengths = torch.full((len(spread),), max_tokens, device=tokens.device)
    alive = torch.arange(len(spread), device=tokens.device)
    running = torch.ones(len(spread), dtype=torch.bool, device=tokens.device)
    for step in range(max_tokens):
        chosen, chosen_logprobs = _choose(logits, temperature, streams, step)
        written[alive, step], logprobs[alive, step] = chosen, chosen_logprobs
        ended = running & (chosen == eos_token_id)
        lengths[alive[ended]] = step + 1
        running = running & ~ended
        left = int(running.sum())
        if left == 0 or step + 1 == max_tokens:
            break
        if left <= 0.85 * len(alive):
            keep = running.nonzero()[:, 0]
            cache.reorder_cache(keep)
            chosen, alive, mask, position, running = (x[keep] for x in (chosen, alive, mask, position, running))
            streams = streams[keep.cpu().numpy()]
        position = position + 1
        seen = mask[:, : prompt_length + step + 1]
        output = model(
            chosen[:, None], attention_mask=seen, position_ids=position, past_key_values=cache, use_cache=True
        )
        logits = output.logits[:, -1]
    return _completions(written, logprobs, lengths, eos_token_id)


def _choose(
    logits: torch.Tensor, temperature: float, streams: np.ndarray, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token and its log-probability for each row of `logits`, (rows, vocabulary), by inverting the cumulated sum."""
    if temperature == 0.0:
        best = logits.argmax(-1)
        return best, torch.log_softmax(logits.float(), -1).gather(1, best[:, None])[:, 0]
    probabilities = torch.softmax(logits.float() / temperature, -1)
    cumulated = probabilities.cumsum(-1)
    noise = torch.from_numpy(_uniform(streams, step)).to(logits.device)
    # The last sum is 1 but for rounding; scaled by it, the noise never points past the last possible token.
    threshold = noise[:, None] * cumulated[:, -1:]
    chosen = torch.searchsorted(cumulated, threshold, right=True).clamp(max=logits.shape[-1] - 1)
    return chosen[:, 0], probabilities.gather(1, chosen)[:, 0].log()


def _completions(
    written: torch.Tensor, logprobs: torch.Tensor, lengths: torch.Tensor, eos_token_id: int
) -> list[Completion]:
    completions = []
    for ids, probabilities, length in zip(written.tolist(), logprobs.tolist(), lengths.tolist(), strict=True):
        finish: Literal["stop", "length"] = "stop" if ids[length - 1] == eos_token_id else "length"
        completions.append(Completion(tuple(ids[:length]), finish, tuple(probabilities[:length])))
    return completions


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): 64 bits in, 64 well-mixed bits out."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _streams(seed: int, keys: Sequence[int], samples: int) -> np.ndarray:
    """The start of each row's stream of random numbers, (prompts * samples,), from (seed, key, sample)."""
    state = _mixed(np.array([seed % 2**64], dtype=np.uint64) + _GOLDEN)
    state = _mixed(state ^ np.array([key % 2**64 for key in keys], dtype=np.uint64) + _GOLDEN)
    return _mixed((state[:, None] ^ np.arange(samples, dtype=np.uint64)) + _GOLDEN).reshape(-1)


def _uniform(streams: np.ndarray, step: int) -> np.ndarray:
    """Number `step` of every stream: float32 in [0, 1)."""
    bits = _mixed(streams + np.uint64((int(_GOLDEN) * (step + 1)) % 2**64))
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
