"""Sampling from a tiny random model, against transformers' own generate and against the model's own probabilities."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from qwq_rl.inference.local import generate
from qwq_rl.inference.sampler import Completion

PAD, EOS, VOCABULARY = 0, 1, 40
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [3, 3], [20, 21, 22, 23]]


def qwen3() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)
    ).eval()


def sampled(model: PreTrainedModel, prompts: list[list[int]], **changes: object) -> list[list[Completion]]:
    settings = dict(samples=4, max_tokens=12, temperature=1.0, eos_token_id=EOS, pad_token_id=PAD, seed=3)
    return generate(model, prompts, **{**settings, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("build", [qwen3, gpt2])
def test_greedy_equals_transformers_generate(build) -> None:  # type: ignore[no-untyped-def]
    model = build()
    for prompt, (completion,) in zip(
        PROMPTS, sampled(model, PROMPTS, samples=1, temperature=0.0, batch_rows=3), strict=True
    ):
        expected = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=12, eos_token_id=EOS, pad_token_id=PAD,
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert list(completion.token_ids) == expected


def test_logprobs_are_the_models_own() -> None:
    model = qwen3()
    for prompt, completions in zip(PROMPTS, sampled(model, PROMPTS, temperature=0.7), strict=True):
        for completion in completions:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *completion.token_ids]])).logits[0, len(prompt) - 1 : -1]
            expected = torch.log_softmax(logits / 0.7, -1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=1e-5)


def test_samples_do_not_depend_on_the_batch() -> None:
    model = qwen3()
    whole = tokens(sampled(model, PROMPTS))
    assert tokens(sampled(model, PROMPTS, batch_rows=4)) == whole
    assert tokens(sampled(model, PROMPTS[3:], keys=[3, 4])) == whole[3:]


def test_another_seed_gives_other_samples_and_samples_differ() -> None:
    model = qwen3()
    first, second = tokens(sampled(model, PROMPTS)), tokens(sampled(model, PROMPTS, seed=4))
    assert first != second
    assert len(set(first[0])) > 1


def test_sampled_shares_match_the_probabilities() -> None:
    """Chi-square of 20000 first tokens: its mean is the degrees of freedom, its deviation sqrt(2 x degrees)."""
    model, draws = qwen3(), 20000
    with torch.no_grad():
        probabilities = torch.softmax(model(torch.tensor([PROMPTS[0]])).logits[0, -1], -1)
    (completions,) = sampled(model, PROMPTS[:1], samples=draws, max_tokens=1)
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in completions]), minlength=VOCABULARY)
    frequent = probabilities * draws > 5
    expected = probabilities[frequent] * draws
    chi_square = float(((counts[frequent] - expected) ** 2 / expected).sum())
    degrees = int(frequent.sum()) - 1
    assert abs(chi_square - degrees) < 4 * (2 * degrees) ** 0.5
    assert degrees > 10


def test_finish_says_how_it_ended_and_nothing_follows_the_end() -> None:
    completions = [c for row in sampled(qwen3(), PROMPTS, samples=64) for c in row]
    for completion in completions:
        assert len(completion.token_ids) == len(completion.logprobs) <= 12
        assert EOS not in completion.token_ids[:-1]
        assert (completion.finish == "stop") == (completion.token_ids[-1] == EOS)
    assert {completion.finish for completion in completions} == {"stop", "length"}
    assert all(len(c.token_ids) == 12 for c in completions if c.finish == "length")


def test_training_mode_is_given_back() -> None:
    model = qwen3().train()
    sampled(model, PROMPTS[:1])
    assert model.training


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"max_tokens": 0}, {"temperature": -1.0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="samples >= 1"):
        sampled(qwen3(), PROMPTS, **wrong)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="empty prompt"):
        sampled(qwen3(), [[4], []])


def tokens(results: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in completions] for completions in results]
