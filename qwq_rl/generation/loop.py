"""The loop over batches and tokens that turns prompts into samples.

`transformers.generate` pays for its generality at every token, which on a small model is most of the time. This loop
keeps to what sampling needs: a prompt is read once and its cache copied to its samples, prompts of like length share a
batch, and rows that have finished leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch

from qwq_rl.generation.model_decoder import ModelDecoder
from qwq_rl.generation.qwen_decoder import QwenDecoder
from qwq_rl.generation.qwen_fit import fits_qwen_decoder
from qwq_rl.generation.qwen_weights import read_weights
from qwq_rl.generation.sampling import Completion, choose, streams, uniform

_NOISE_STEPS = 16
"""Random numbers are made for this many steps at once: a batch of a few rows spends its time in calls."""


class _Decoder(Protocol):
    """A batch that has been read to some token: its next logits, a step, and leaving rows behind."""

    logits: torch.Tensor

    def advance(self, chosen: torch.Tensor) -> None: ...

    def keep(self, rows: torch.Tensor) -> None: ...


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
    fused: bool = True,
) -> list[list[Completion]]:
    """Sample `samples` continuations of at most `max_tokens` tokens of every prompt.

    Returns a list a prompt, in the order of `prompt_ids`, each with its samples in order. `temperature` 0 takes the
    likeliest token. A batch holds at most `batch_rows` sequences (or one prompt's samples). `keys` names each prompt
    in the random numbers, so that a prompt keeps its noise wherever it stands; its position where None. `on_batch` is
    told after each batch how many prompts are finished. `fused` False keeps a model to its own forward where the
    faster decoder would take it; the tokens are the same but where rounding decides.
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
        fused = fused and fits_qwen_decoder(model)
        # What a model of any kind keeps from its forward may be needed in training, so there no inference tensors.
        with torch.inference_mode() if fused else torch.no_grad():
            read = _reader(model, fused)
            for start in range(0, len(order), prompts_a_batch):
                chosen = order[start : start + prompts_a_batch]
                tokens, mask = _left_padded([prompt_ids[index] for index in chosen], pad_token_id, model.device)
                noise = _noise(streams(seed, [keys[index] for index in chosen], samples), max_tokens, model.device)
                rows = _decode(read(tokens, mask, samples, max_tokens), noise, max_tokens, temperature, eos_token_id)
                for place, index in enumerate(chosen):
                    results[index] = rows[place * samples : (place + 1) * samples]
                if on_batch:
                    on_batch(start + len(chosen))
    finally:
        model.train(was_training)
    return results


def _reader(model: Any, fused: bool) -> Callable[[torch.Tensor, torch.Tensor, int, int], _Decoder]:
    """What reads a batch of prompts; the weights are read here, once for all batches."""
    if not fused:
        return lambda *batch: ModelDecoder(model, *batch)
    weights = read_weights(model)
    return lambda *batch: QwenDecoder(model, weights, *batch)


def _left_padded(
    prompts: Sequence[Sequence[int]], pad_token_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (prompts, longest), padded on the left."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = [[pad_token_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)


def _noise(row_streams: np.ndarray, max_tokens: int, device: torch.device) -> Iterator[torch.Tensor]:
    """The random number of each row of the whole batch, (rows,), step by step."""
    for first in range(0, max_tokens, _NOISE_STEPS):
        count = min(_NOISE_STEPS, max_tokens - first)
        yield from torch.from_numpy(uniform(row_streams, first, count)).to(device)


def _decode(
    decoder: _Decoder, noise: Iterator[torch.Tensor], max_tokens: int, temperature: float, eos_token_id: int
) -> list[Completion]:
    """Continue a batch of sequences, (rows,), to a completion each."""
    rows, device = len(decoder.logits), decoder.logits.device
    written = torch.zeros(max_tokens, rows, dtype=torch.long, device=device)
    logprobs = torch.zeros(max_tokens, rows, device=device)
    lengths = torch.full((rows,), max_tokens, device=device)
    alive = torch.arange(rows, device=device)
    running = torch.ones(rows, dtype=torch.bool, device=device)
    for step, numbers in enumerate(noise):
        chosen, chosen_logprobs = choose(decoder.logits, temperature, numbers[alive])
        written[step, alive], logprobs[step, alive] = chosen, chosen_logprobs
        ended = running & (chosen == eos_token_id)
        lengths[alive[ended]] = step + 1
        running = running & ~ended
        left = int(running.count_nonzero())
        if left == 0 or step + 1 == max_tokens:
            break
        if left <= 0.9 * len(alive):
            keep = _packed(running, left)
            decoder.keep(keep)
            chosen, alive, running = chosen[keep], alive[keep], running[keep]
        decoder.advance(chosen)
    return _completions(written.T, logprobs.T, lengths, eos_token_id)


def _packed(running: torch.Tensor, left: int) -> torch.Tensor:
    """The `left` rows that still run, where as many as can stay in their place: the last ones fill the holes."""
    keep = torch.arange(left, device=running.device)
    keep[~running[:left]] = running[left:].nonzero()[:, 0] + left
    return keep


def _completions(
    written: torch.Tensor, logprobs: torch.Tensor, lengths: torch.Tensor, eos_token_id: int
) -> list[Completion]:
    completions = []
    for ids, probabilities, length in zip(written.tolist(), logprobs.tolist(), lengths.tolist(), strict=True):
        finish: Literal["stop", "length"] = "stop" if ids[length - 1] == eos_token_id else "length"
        completions.append(Completion(tuple(ids[:length]), finish, tuple(probabilities[:length])))
    return completions
