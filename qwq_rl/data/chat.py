"""From a row to the text the model sees, and from the tokens it returns to a response."""

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
    """The prompt as text, by the tokenizer's chat template, ending where the assistant starts to write."""
    text = tokenizer.apply_chat_template(
        prompt_messages(row), tools=row.get("tools"), tokenize=False, add_generation_prompt=True
    )
    return str(text)


def opens_thinking(prompt: str) -> bool:
    """Whether the template has already opened the thinking block that the completion must close."""
    return prompt.rstrip().endswith(OPEN)


def render_demonstration(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any]) -> tuple[str, str]:
    """The prompt and the completion of an `sft` row, so that both join to what generation will see.

    The assistant's own text is taken as it stands: templates such as QwQ's drop the thinking of past turns.
    """
    prompt = render_prompt(tokenizer, {**row, "prompt": row["messages"][:-1]})
    content = row["messages"][-1]["content"]
    if opens_thinking(prompt):
        content = content.removeprefix(OPEN).removeprefix("\n")
    return prompt, f"{content}{tokenizer.eos_token}"


def render_answered(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], answer: str) -> str:
    """The prompt and a final answer, as a reward model reads them: without any thinking."""
    messages = [*prompt_messages(row), {"role": "assistant", "content": answer}]
    return str(tokenizer.apply_chat_template(messages, tools=row.get("tools"), tokenize=False))


def split_thinking(text: str, opened: bool) -> tuple[str, str]:
    """Reasoning and answer of a completion; the answer is empty if the thinking never closed, or opened again for good.

    A completion that never thinks, after a prompt that did not open a thinking block, is all answer.
    """
    if CLOSE not in text:
        return (text, "") if opened or OPEN in text else ("", text)
    reasoning, _, answer = text.rpartition(CLOSE)
    if OPEN in answer:
        return text.removeprefix(OPEN), ""
    return reasoning.removeprefix(OPEN), answer


def read_response(
    tokenizer: PreTrainedTokenizerBase, prompt: str, token_ids: Sequence[int], finish: Finish
) -> Response:
    """The response that `token_ids` decode to, special tokens kept: a special `</think>` must not vanish."""
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
