"""The request and the result of every sampler: prompts of token ids in, completions out."""

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
    """"stop": the model ended it; "length": it was cut off at `max_tokens`."""
    logprobs: tuple[float, ...]
    """One per token, under the distribution that the token was drawn from: at the request's temperature, but at
    temperature 1 where sampling is greedy."""


@dataclass(frozen=True)
class SamplingRequest:
    """What to sample: each prompt `samples` times, at most `max_tokens` tokens each."""

    prompt_ids: Sequence[Sequence[int]]
    keys: Sequence[int]
    """One per prompt. The key, `seed` and the sample's number fix the noise, so any process samples the same."""
    samples: int
    max_tokens: int
    temperature: float
    seed: int


class Sampler(Protocol):
    """Samples the prompts of one process. All processes must call it together."""

    def __call__(self, request: SamplingRequest) -> list[list[Completion]]:
        """One list of completions per prompt."""
        ...
