"""What every sampler is asked for and gives: prompts of token ids in, completions out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Completion:
    """One sampled continuation of one prompt."""

    token_ids: tuple[int, ...]
    """The sampled tokens; the last one is the end-of-sequence token where `finish` is "stop"."""
    finish: Literal["stop", "length"]
    """"stop": the model ended it; "length": `max_tokens` did."""
    logprobs: tuple[float, ...]
    """Of each token under the distribution it was drawn from (at the temperature; at temperature 1 where greedy)."""


@dataclass(frozen=True)
class SamplingRequest:
    """What to sample: each prompt `samples` times, at most `max_tokens` tokens each."""

    prompt_ids: Sequence[Sequence[int]]
    keys: Sequence[int]
    """One a prompt: with `seed` and the sample's number it fixes the noise, whichever process samples it."""
    samples: int
    max_tokens: int
    temperature: float
    seed: int


class Sampler(Protocol):
    """Samples for one process; all processes call it together."""

    def __call__(self, request: SamplingRequest) -> list[list[Completion]]:
        """One list a prompt."""
        ...
