"""One token for each row of logits, from random numbers that no batch changes.

The randomness of a token depends on (seed, prompt, sample, position) alone, never on the batch it was in, so that two
runs over different batches, or two checkpoints on the same prompts, see the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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


def choose(
    logits: torch.Tensor, temperature: float, noise: torch.Tensor, of: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token and its log-probability for each row, by inverting the cumulated sum of probabilities.

    `of`, (rows,), says which of `logits`, (texts, vocabulary), a row draws from, and `noise`, (rows,), lies in [0, 1);
    temperature 0 takes the likeliest token, and its log-probability at temperature 1.
    """
    if temperature == 0.0:
        best = logits.argmax(-1)
        return best[of], torch.log_softmax(logits.float(), -1).gather(1, best[:, None])[of, 0]
    scaled = logits.float() if temperature == 1.0 else logits.float() / temperature
    probabilities = torch.softmax(scaled, -1)
    cumulated = probabilities.cumsum(-1)[of]
    # The last sum is 1 but for rounding; scaled by it, the noise never points past the last possible token.
    threshold = noise[:, None] * cumulated[:, -1:]
    chosen = torch.searchsorted(cumulated, threshold, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
    return chosen, probabilities[of, chosen].log_()


def streams(seed: int, keys: Sequence[int], samples: int) -> np.ndarray:
    """The start of each row's stream of random numbers, (prompts * samples,), from (seed, key, sample)."""
    state = _mixed(np.array([seed % 2**64], dtype=np.uint64) + _GOLDEN)
    state = _mixed(state ^ np.array([key % 2**64 for key in keys], dtype=np.uint64) + _GOLDEN)
    return _mixed((state[:, None] ^ np.arange(samples, dtype=np.uint64)) + _GOLDEN).reshape(-1)


def uniform(streams: np.ndarray, first: int, count: int) -> np.ndarray:
    """Numbers `first` to `first + count - 1` of every stream, (count, rows): float32 in [0, 1)."""
    steps = np.array([(int(_GOLDEN) * (step + 1)) % 2**64 for step in range(first, first + count)], dtype=np.uint64)
    bits = _mixed(streams + steps[:, None])
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): 64 bits in, 64 well-mixed bits out."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
