"""Turn a row into the text that the model sees, and the tokens of a completion into a `Response`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwq_rl.data.row import prompt_messages
from qwq_rl.verifiers import Response
from qwq_rl.verifiers.contract import Finish

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "<think>", "</think>"


def render_prompt(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any]) -> str:
    """Return the prompt as text, by the tokenizer's chat template. It ends where the assistant starts to write."""
    text = tokenizer.apply_chat_template(
        prompt_messages(row), tools=row.get("tools"), tokenize=False, add_generation_prompt=True
    )
    return str(text)


def opens_thinking(prompt: str) -> bool:
    """Whether the chat template already opened the thinking block, so that the completion must close it."""
    return prompt.rstrip().endswith(OPEN)


def render_demonstration(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the prompt and the completion of an `sft` row; joined, they are a text as generation sees it.

    The assistant's text does not go through the template: templates such as QwQ's remove the thinking of past turns.
    """
    prompt = render_prompt(tokenizer, {**row, "prompt": row["messages"][:-1]})
    content = row["messages"][-1]["content"]
    if opens_thinking(prompt):
        # The prompt ends with the opening tag already; the completion must not repeat it.
        content = content.removeprefix(OPEN).removeprefix("\n")
    return prompt, f"{content}{tokenizer.eos_token}"


def render_answered(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], answer: str) -> str:
    """Return prompt and final answer as one text, without thinking: the input of a reward model."""
    messages = [*prompt_messages(row), {"role": "assistant", "content": answer}]
    return str(tokenizer.apply_chat_template(messages, tools=row.get("tools"), tokenize=False))


def split_thinking(text: str, opened: bool) -> tuple[str, str]:
    """Split a completion into (reasoning, answer); `opened` says whether the prompt opened the thinking block.

    The answer is empty if the thinking was never closed, or if it was opened again and not closed. If neither prompt
    nor completion opened a thinking block, all of the text is the answer.
    """
    if CLOSE not in text:
        return (text, "") if opened or OPEN in text else ("", text)
    # The last tag counts: what stands before it is reasoning, even if the block was closed more than once.
    reasoning, _, answer = text.rpartition(CLOSE)
    if OPEN in answer:
        return text.removeprefix(OPEN), ""
    return reasoning.removeprefix(OPEN), answer


def read_response(
    tokenizer: PreTrainedTokenizerBase, prompt: str, token_ids: Sequence[int], finish: Finish
) -> Response:
    """Decode `token_ids` into a response. Special tokens are kept, because `</think>` may be one of them."""
    text = str(tokenizer.decode(list(token_ids), skip_special_tokens=False))
    body = text.removesuffix(str(tokenizer.eos_token)) if tokenizer.eos_token else text
    reasoning, answer = split_thinking(body, opens_thinking(prompt))
    return Response(
        text=text,
        answer=answer.strip(),
        reasoning=reasoning.strip(),
        finish=finish,
        messages=({"role": "assistant", "content": body},),
        token_ids=tuple(token_ids),
    )
