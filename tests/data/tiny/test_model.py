"""The model of recipes/tiny."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from qwq_rl.data.tiny import sets
from qwq_rl.data.tiny.model import build_model, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    return build_model(tokenizer, seed=0)


def same(one: Qwen3ForCausalLM, other: Qwen3ForCausalLM) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_it_has_between_a_tenth_and_half_a_million_parameters(model: Qwen3ForCausalLM) -> None:
    assert 100_000 <= model.num_parameters() <= 500_000


def test_the_same_seed_gives_the_same_weights(tokenizer: PreTrainedTokenizerFast, model: Qwen3ForCausalLM) -> None:
    torch.rand(3)  # whatever was drawn before plays no part

    assert same(build_model(tokenizer, seed=0), model)
    assert not same(build_model(tokenizer, seed=1), model)


def test_building_it_leaves_the_random_state_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    before = torch.get_rng_state()

    build_model(tokenizer, seed=5)

    assert torch.equal(torch.get_rng_state(), before)


def test_it_knows_the_tokens_that_end_and_pad(tokenizer: PreTrainedTokenizerFast, model: Qwen3ForCausalLM) -> None:
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.vocab_size == len(tokenizer)
    assert model.dtype == torch.float32


def test_every_row_fits_into_its_context(tokenizer: PreTrainedTokenizerFast, model: Qwen3ForCausalLM) -> None:
    rows = [row for name in ("harder", "final") for row in sets.rows(name)]
    texts = [
        tokenizer.apply_chat_template(row["prompt"], tools=row["tools"], tokenize=False, add_generation_prompt=True)
        + row["solution"]
        for row in rows
    ]

    assert max(map(len, tokenizer(texts)["input_ids"])) < model.config.max_position_embeddings
