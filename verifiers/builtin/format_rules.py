"""Rules on the form of a response: a well-formed thinking block, and a length that stays clear of the limit."""

from __future__ import annotations

from qwq_rl.errors import UserError
from qwq_rl.verifiers.builtin.roles import count, placed, role_of, share
from qwq_rl.verifiers.contract import Problem, Response, Verdict, Verifier, run_as
from qwq_rl.verifiers.verdicts import empty_answer, fault, shown


@run_as("inline")
def think_format(open_tag: str = "<think>", close_tag: str = "</think>", most: float = 1.0) -> Verifier:
    """A verifier: one thinking block starts the response, closes exactly once and is followed by an answer.

    A response does not show whether the chat template opened the block in the prompt. So it may have no opening tag, or
    one at its very start. A text before that tag, a second opening or closing tag, and a tag in the answer are wrong.
    The score is 0 or 1; as a penalty it is -`most` or 0.

    Raises UserError if a tag is empty or contains the other, and for `most` out of range.
    """
    if not open_tag or not close_tag or open_tag in close_tag or close_tag in open_tag:
        raise UserError(f"the tags must be two texts that do not hold each other, not {open_tag!r} and {close_tag!r}")

    share("most", most)

    def verify(problem: Problem, response: Response) -> Verdict:
        mistake = _mistake(response.text, open_tag, close_tag, response.finish == "length")
        role = role_of(problem, "gate")
        if not mistake and not response.answer.rpartition(close_tag)[2].strip():
            # `no_answer` has the score 0, which as a penalty would be the best one.
            if role != "penalty":
                return empty_answer(response)
            mistake = f"there is no answer after {close_tag}"
        reason = mistake or "one thinking block, then an answer"
        return placed(role, float(not mistake), passes=not mistake, most=most, reason=reason)

    verify.largest_penalty = most  # type: ignore[attr-defined]
    return verify


def _mistake(text: str, open_tag: str, close_tag: str, cut: bool) -> str:
    """How `text` breaks the form; empty if it does not."""
    opened, closed = text.count(open_tag), text.count(close_tag)
    if closed == 0:
        defect = "is never closed" if opened else f"never ends: there is no {close_tag}"
        return f"the thinking {defect}{'; the response ran out of tokens' if cut else ''}"
    if closed > 1:
        return f"{close_tag} stands {closed} times, 1 was asked"
    before, _, after = text.partition(close_tag)
    if open_tag in after:
        return f"{open_tag} stands after {close_tag}"
    if opened > 1:
        return f"{open_tag} stands {opened} times, at most 1 was asked"
    text_before = before.partition(open_tag)[0].strip() if opened else ""
    return f"{shown(text_before)!r} stands before {open_tag}" if text_before else ""


@run_as("inline")
def overlong(*, max_tokens: int, buffer: int, most: float = 1.0) -> Verifier:
    """A verifier of role penalty: DAPO's soft overlong punishment (arXiv 2503.14476, equation 13), times `most`.

    For n tokens the penalty is 0 up to `max_tokens - buffer`, then `(max_tokens - buffer - n) / buffer`, down to -1 at
    `max_tokens` and beyond. `max_tokens` is the token limit of the rollouts. As a score it is 1 plus the penalty; as a
    gate it is 1 before the buffer, else 0. A response without token ids is a fault. Raises UserError for a `buffer`
    above `max_tokens` and for values out of range.
    """
    count("max_tokens", max_tokens)
    if count("buffer", buffer) > max_tokens:
        raise UserError(f"`buffer` must be at most `max_tokens`, {max_tokens}, not {buffer}")
    share("most", most)
    free_tokens = max_tokens - buffer

    def verify(problem: Problem, response: Response) -> Verdict:
        tokens = len(response.token_ids)
        if not tokens:
            return fault("the response carries no token ids, so its length in tokens is not known")
        excess = min(1.0, max(0.0, (tokens - free_tokens) / buffer))
        position = f"beyond {free_tokens}, {max_tokens} is the limit" if excess else f"at most {free_tokens}"
        return placed(
            role_of(problem, "penalty"),
            1 - excess,
            passes=not excess,
            most=most,
            reason=f"{tokens} tokens, {position}",
            metrics={"tokens": float(tokens)},
        )

    verify.largest_penalty = most  # type: ignore[attr-defined]
    return verify
