"""From a row to the prompt, and from tokens to a response."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qwq_rl.data.chat import (
    CLOSE,
    OPEN,
    opens_thinking,
    prompt_messages,
    read_response,
    render_answered,
    render_demonstration,
    render_prompt,
    split_thinking,
)
from qwq_rl.data.tiny import sets
from qwq_rl.data.tiny.model import build_tokenizer

# As the templates of QwQ-32B and DeepSeek-R1 do: past turns lose their thinking, and generation starts inside it.
QWQ_TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.role == 'assistant' %}{{ message.content.split('</think>')[-1].lstrip('\\n') }}\
{% else %}{{ message.content }}{% endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""
PLAIN_TEMPLATE = """\
{%- for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}
{%- if add_generation_prompt %}assistant: {% endif %}"""

ROW: dict[str, Any] = {"id": "r", "prompt": "1 + 1 ?"}
DEMONSTRATION: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "1 + 1 ?"},
        {"role": "assistant", "content": "<think>\n1 and 1 make 2\n</think>\n\\boxed{2}"},
    ]
}


@pytest.fixture(scope="module")
def tiny() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def byte_tokenizer(template: str, special_markers: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte, and the thinking markers as ordinary or as special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={piece: place for place, piece in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    bpe.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    bpe.add_tokens([AddedToken(marker, special=special_markers, normalized=False) for marker in (OPEN, CLOSE)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", chat_template=template)


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_a_bare_string_is_one_user_message(tiny: PreTrainedTokenizerFast) -> None:
    as_messages = {"id": "r", "prompt": [{"role": "user", "content": "1 + 1 ?"}]}

    assert prompt_messages(ROW) == as_messages["prompt"]
    assert render_prompt(tiny, ROW) == render_prompt(tiny, as_messages)


def test_the_template_opens_the_thinking(tiny: PreTrainedTokenizerFast) -> None:
    prompt = render_prompt(tiny, ROW)

    assert prompt == "<|im_start|>user\n1 + 1 ?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert opens_thinking(prompt)
    assert not opens_thinking(render_prompt(byte_tokenizer(PLAIN_TEMPLATE), ROW))


def test_a_prompt_that_only_speaks_of_thinking_opens_none() -> None:
    assert not opens_thinking("what does <think> mean?<|im_start|>assistant\n")


def test_the_functions_on_offer_are_in_the_prompt(tiny: PreTrainedTokenizerFast) -> None:
    row = next(row for row in sets.rows("tuning") if row["family"] == "call")

    prompt = render_prompt(tiny, row)

    for tool in row["tools"]:
        function = tool["function"]
        assert f"{function['name']}: {', '.join(function['parameters']['properties'])}\n" in prompt
    assert prompt.startswith("<|im_start|>system\n")
    assert "system" not in render_prompt(tiny, {**row, "tools": None})


# --- demonstrations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [None, QWQ_TEMPLATE])
def test_a_demonstration_goes_on_where_generation_starts(tiny: PreTrainedTokenizerFast, template: str | None) -> None:
    tokenizer = byte_tokenizer(template) if template else tiny

    prompt, completion = render_demonstration(tokenizer, DEMONSTRATION)

    assert prompt == render_prompt(tokenizer, ROW)
    assert completion == "1 and 1 make 2\n</think>\n\\boxed{2}<|im_end|>"


def test_a_template_that_drops_past_thinking_does_not_drop_a_demonstrations() -> None:
    tokenizer = byte_tokenizer(QWQ_TEMPLATE)
    dropped = tokenizer.apply_chat_template(DEMONSTRATION["messages"], tokenize=False)

    assert "make 2" not in str(dropped)
    assert "make 2" in "".join(render_demonstration(tokenizer, DEMONSTRATION))


def test_where_the_template_does_not_open_thinking_the_demonstration_does() -> None:
    _, completion = render_demonstration(byte_tokenizer(PLAIN_TEMPLATE), DEMONSTRATION)

    assert completion.startswith("<think>\n1 and")


def test_an_earlier_turn_is_part_of_the_prompt(tiny: PreTrainedTokenizerFast) -> None:
    earlier = [{"role": "user", "content": "0 + 1 ?"}, {"role": "assistant", "content": "\\boxed{1}"}]

    prompt, completion = render_demonstration(tiny, {"messages": earlier + DEMONSTRATION["messages"]})

    assert "0 + 1 ?" in prompt
    assert "\\boxed{1}" in prompt
    assert "1 + 1 ?" in prompt
    assert "0 + 1" not in completion


@pytest.mark.parametrize("name", ["math_demonstrations", "general_demonstrations"])
def test_a_demonstration_reads_back_as_the_response_it_is(tiny: PreTrainedTokenizerFast, name: str) -> None:
    for row in sets.rows(name)[::50]:
        prompt, completion = render_demonstration(tiny, row)
        response = read_response(tiny, prompt, ids_of(tiny, completion), "stop")
        reasoning, _, answer = row["messages"][-1]["content"].removeprefix("<think>\n").partition("</think>\n")
        assert (response.reasoning, response.answer) == (reasoning.strip(), answer)


def test_a_reward_model_reads_the_answer_and_no_thinking(tiny: PreTrainedTokenizerFast) -> None:
    text = render_answered(tiny, ROW, "\\boxed{2}")

    assert text == "<|im_start|>user\n1 + 1 ?<|im_end|>\n<|im_start|>assistant\n\\boxed{2}<|im_end|>\n"


def test_a_reward_model_reads_the_functions_on_offer_too(tiny: PreTrainedTokenizerFast) -> None:
    row = next(row for row in sets.rows("tuning") if row["family"] == "call")

    assert row["tools"][0]["function"]["name"] in render_answered(tiny, row, "none").split("<|im_end|>")[0]


# --- responses --------------------------------------------------------------------------------------------------------

WORDS = st.text(alphabet="ab <>/\n", max_size=12).filter(lambda text: OPEN not in text and CLOSE not in text)


@given(WORDS, WORDS)
def test_a_closed_thinking_block_splits_in_two(reasoning: str, answer: str) -> None:
    assert split_thinking(reasoning + CLOSE + answer, opened=True) == (reasoning, answer)
    assert split_thinking(OPEN + reasoning + CLOSE + answer, opened=False) == (reasoning, answer)


@given(WORDS)
def test_thinking_that_never_closes_leaves_no_answer(text: str) -> None:
    assert split_thinking(text, opened=True) == (text, "")
    assert split_thinking(OPEN + text, opened=False)[1] == ""


@given(WORDS, WORDS, WORDS, st.booleans())
def test_thinking_that_opens_again_and_never_closes_leaves_no_answer(
    first: str, between: str, last: str, opened: bool
) -> None:
    text = first + CLOSE + between + OPEN + last

    assert split_thinking(text if opened else OPEN + text, opened) == (text, "")


@given(WORDS)
def test_a_response_that_never_thinks_is_all_answer(text: str) -> None:
    assert split_thinking(text, opened=False) == ("", text)


@given(st.lists(WORDS, min_size=2, max_size=5), st.booleans())
def test_only_what_follows_the_last_close_is_the_answer(parts: list[str], opened: bool) -> None:
    reasoning, answer = split_thinking(CLOSE.join(parts), opened)

    assert answer == parts[-1]
    assert reasoning == CLOSE.join(parts[:-1])


@given(st.text(max_size=30), st.booleans())
def test_no_text_is_in_both_parts_or_made_up(text: str, opened: bool) -> None:
    reasoning, answer = split_thinking(text, opened)

    assert text.endswith(answer)
    assert len(reasoning) + len(answer) <= len(text)


@pytest.mark.parametrize("special", [True, False])
def test_a_closing_marker_that_is_a_special_token_is_kept(special: bool) -> None:
    tokenizer = byte_tokenizer(QWQ_TEMPLATE, special_markers=special)
    ids = ids_of(tokenizer, "1 and 1\n</think>\n\\boxed{2}<|im_end|>")
    assert (CLOSE in tokenizer.decode(ids, skip_special_tokens=True)) is not special

    response = read_response(tokenizer, render_prompt(tokenizer, ROW), ids, "stop")

    assert response.text == "1 and 1\n</think>\n\\boxed{2}<|im_end|>"
    assert (response.reasoning, response.answer) == ("1 and 1", "\\boxed{2}")
    assert response.token_ids == tuple(ids)
    assert response.messages == ({"role": "assistant", "content": "1 and 1\n</think>\n\\boxed{2}"},)


def test_a_truncated_response_says_so_and_has_no_answer(tiny: PreTrainedTokenizerFast) -> None:
    response = read_response(tiny, render_prompt(tiny, ROW), ids_of(tiny, "1 and 1"), "length")

    assert (response.finish, response.reasoning, response.answer) == ("length", "1 and 1", "")


def test_an_end_marker_in_the_middle_is_part_of_the_answer(tiny: PreTrainedTokenizerFast) -> None:
    ids = ids_of(tiny, "x</think>a<|im_end|>b<|im_end|>")

    assert read_response(tiny, render_prompt(tiny, ROW), ids, "stop").answer == "a<|im_end|>b"
