"""Samples of a prompt share what they have in common, in any model; where they part, each goes its own way."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from qwq_rl.inference.local import generate
from qwq_rl.inference.sampler import Completion

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [3, 3], [20, 21, 22, 23]]
NO_END = 39


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)
    return GPT2LMHeadModel(shape).eval()


def qwen3() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def sampled(model: PreTrainedModel, samples: int, max_tokens: int, temperature: float) -> list[list[Completion]]:
    return generate(
        model, PROMPTS, samples=samples, max_tokens=max_tokens, temperature=temperature, eos_token_id=NO_END,
        pad_token_id=0, seed=3,
    )  # fmt: skip


def test_a_text_is_computed_once_for_all_samples_that_begin_with_it() -> None:
    model, rows = gpt2(), list[int]()
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))

    results = sampled(model, samples=16, max_tokens=8, temperature=0.3)

    for step, counted in enumerate(rows):
        beginnings = {
            (prompt, completion.token_ids[:step])
            for prompt, completions in enumerate(results)
            for completion in completions
            if len(completion.token_ids) > step
        }
        assert len(beginnings) <= counted <= len(beginnings) / 0.9
    assert rows[0] == len(PROMPTS) < rows[-1] < 16 * len(PROMPTS)


@pytest.mark.parametrize("build", [gpt2, qwen3])
def test_each_way_has_the_logprobs_of_the_models_own_forward(build) -> None:  # type: ignore[no-untyped-def]
    """Late parting, and more tokens than there is room for at first."""
    model = build()

    results = sampled(model, samples=12, max_tokens=100, temperature=0.3)

    assert len({completion.token_ids[:4] for completion in results[0]}) < 12
    assert max(len(completion.token_ids) for completion in results[0]) == 100
    for prompt, completions in zip(PROMPTS, results, strict=True):
        for completion in completions:
            ids = torch.tensor([[*prompt, *completion.token_ids]])
            with torch.no_grad():
                logits = model(ids).logits[0, len(prompt) - 1 : -1]
            expected = torch.log_softmax(logits / 0.3, -1).gather(1, ids[0, len(prompt) :, None])[:, 0]
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


def test_a_small_model_computes_in_one_thread_and_gives_the_others_back() -> None:
    model, seen, before = gpt2(), set[int](), torch.get_num_threads()
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: seen.add(torch.get_num_threads()))
    try:
        torch.set_num_threads(2)
        sampled(model, samples=2, max_tokens=3, temperature=1.0)

        assert seen == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
