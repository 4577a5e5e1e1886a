"""Qwen3 models of random weights, of the sizes that the benchmarks measure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from qwq_rl.data.tiny.model import build_tokenizer


@dataclass(frozen=True)
class Shape:
    """Of a Qwen3 with half as many heads for keys and values as for queries."""

    hidden: int
    layers: int
    heads: int
    head_dimension: int
    intermediate: int


TINY = Shape(64, 2, 4, 32, 192)
"""That of the model in recipes/tiny."""
MIDDLE = Shape(256, 4, 4, 64, 768)
"""3 M parameters."""
QWEN3_600M = Shape(1024, 28, 16, 128, 3072)
"""That of Qwen3-0.6B."""


def random_qwen(
    shape: Shape, vocabulary: int, *, end: int | None, pad: int | None, tied: bool = True, spread: float = 0.05
) -> Qwen3ForCausalLM:
    """A model in float32, the same at each call; `spread`: the standard deviation of its weights."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.heads // 2,
        head_dim=shape.head_dimension, max_position_embeddings=4096, tie_word_embeddings=tied,
        initializer_range=spread, bos_token_id=None, eos_token_id=end, pad_token_id=pad, dtype="float32",
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def save_random_qwen(folder: Path, shape: Shape, vocabulary: int, mean_length: float) -> None:
    """A model with the tiny tokenizer whose completions end after `mean_length` tokens on average, each one as likely.

    The first dimension of every embedding is 1, so it is large and nearly the same in every final state; in the row of
    the end token, which the head shares, it is larger by what gives that token its probability.
    """
    tokenizer = build_tokenizer()
    end = int(tokenizer.eos_token_id)
    model = random_qwen(shape, vocabulary, end=end, pad=tokenizer.pad_token_id, spread=0.02).eval()
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table[:, 0] = 1.0
        output = model.model(torch.randint(vocabulary, (8, 32))).last_hidden_state
        logits = output.flatten(0, 1) @ table.T
        wanted = logits.logsumexp(-1) - math.log(mean_length) - logits[:, end]
        table[end, 0] += (wanted / output.flatten(0, 1)[:, 0]).mean()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
