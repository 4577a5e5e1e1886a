"""A policy, samples and returns for the tests of the critic, the same in every process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Qwen3Config

from qwq_rl.training.critic import CriticPlan
from qwq_rl.training.micro_batch import TrainingSample

WORDS = 20
PLAN = CriticPlan(lr=3e-3, warmup=2, epochs=1, minibatches=4, clip=None, gradient_clip=1.0, tokens=256)


def config(**settings: Any) -> Qwen3Config:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    return Qwen3Config(vocab_size=WORDS, tie_word_embeddings=True, initializer_range=0.2, **sizes, **heads, **settings)


def samples(count: int, seed: int = 0) -> list[TrainingSample]:
    """Prompts of 3 tokens and answers of 2 to 20, every fifth token of them not the model's own."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        length = 3 + int(torch.randint(2, 21, (), generator=generator))
        ids = torch.randint(1, WORDS, (length,), generator=generator)
        places = torch.arange(1, length)
        mask = (places >= 3) & (places % 5 != 0)
        found.append(TrainingSample(ids, mask, torch.zeros(length - 1), 0))
    return found


def returns_of(found: Sequence[TrainingSample]) -> list[torch.Tensor]:
    """What a critic can know: whether the first token is high, and a little of the token just read."""
    high = [(sample.ids[:-1] > WORDS / 2).float() for sample in found]
    return [part[0] + 0.2 * part for part in high]
