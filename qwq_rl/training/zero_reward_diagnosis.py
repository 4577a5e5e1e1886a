"""Explains why no response of a round got a reward: counts over the responses, and the most likely cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwq_rl.data.chat import CLOSE, OPEN, opens_thinking
from qwq_rl.data.row import Row, checks_of
from qwq_rl.verifiers.verdicts import shown

Line = Mapping[str, Any]
"""A line of `rollouts/update-NNNNNN.jsonl`."""

_TAIL = 160
"""Characters shown of the end of a response."""
_SHOWN = 3
"""Reasons and answers shown at most."""


@dataclass(frozen=True)
class _Facts:
    """Counts over the responses; `total` is the number of all of them."""

    total: int
    truncated: int
    gone_on: int
    """Responses that were cut off after they had closed their thinking and begun an answer."""
    empty: int
    opened: int
    """Prompts that end with the tag that opens the thinking."""
    forbidden: int
    """Prompts that end with the tag that closes it, so that the model cannot think."""
    unclosed: int
    """Responses that end by themselves without closing the thinking that they or their prompt opened."""
    gates: Counter[str]
    """Gate -> number of responses that fail it."""
    statuses: Counter[str]
    """Status -> number of failed verdicts with it."""
    reasons: Counter[str]
    """Reason -> number of failed verdicts with it."""
    right: int
    """Responses with a score above 0; a gate or a penalty set their reward to 0."""
    taken: Counter[str]
    """Gate -> number of these that fail it."""
    matched: int
    """Responses whose answer was read, equals the reference letter for letter, and still got no score."""

    def most(self, count: int) -> bool:
        """Whether a count is at least half of the responses."""
        return 2 * count >= self.total

    def of(self, count: int) -> str:
        """A text such as `12 of 24`."""
        return f"{count} of {self.total}"


def explain_zero_rewards(lines: Sequence[Line], rows: Mapping[str, Row]) -> str:
    """The explanation: counts, reasons of verdicts, answers with references, the end of one response, and a cause.

    `lines` are the rollouts, at least one, all of reward 0. `rows` are rows by id; some or all may be missing.
    """
    facts = _facts(lines, rows)
    message_lines = [f"What is seen in {len(lines)} responses:", f"- {_format_counts(facts)}"]
    if facts.statuses:
        counts = ", ".join(f"{count} {status}" for status, count in facts.statuses.most_common())
        common_reasons = "; ".join(
            f"{count} times: {shown(reason, 100)}" for reason, count in facts.reasons.most_common(_SHOWN)
        )
        message_lines.append(f"- verdicts: {counts}. Their reasons: {common_reasons}")
    pairs = list(dict.fromkeys(pair for line in lines for pair in _answer_reference_texts(line, rows)))[:_SHOWN]
    if pairs:
        message_lines.append("- answers as they were read: " + "; ".join(pairs))
    example = _example(lines, facts)
    message_lines.append(f"- row {example['row']} got: {_tail(_text(example))}")
    return "\n".join([*message_lines, f"Most likely: {_cause(facts)}"])


def _facts(lines: Sequence[Line], rows: Mapping[str, Row]) -> _Facts:
    truncated = [line for line in lines if line["finish"] == "length"]
    scored = [line for line in lines if (line["score"] or 0.0) > 0]
    failed = [verdict for line in lines for verdict in line["verdicts"].values() if _failed(verdict)]
    return _Facts(
        total=len(lines),
        truncated=len(truncated),
        gone_on=sum(bool(_text(line).partition(CLOSE)[2].strip()) for line in truncated),
        # An empty response may still have its end-of-sequence token.
        empty=sum(sum(map(len, (segment["token_ids"] for segment in _model_segments(line)))) <= 1 for line in lines),
        opened=sum(opens_thinking(line["prompt"]) for line in lines),
        forbidden=sum(line["prompt"].rstrip().endswith(CLOSE) for line in lines),
        unclosed=sum(_unclosed(line) for line in lines if line["finish"] != "length"),
        gates=Counter(gate for line in lines for gate, passed in line["gates"].items() if not passed),
        statuses=Counter(verdict["status"] for verdict in failed),
        reasons=Counter(verdict["reason"] for verdict in failed if verdict["reason"]),
        right=len(scored),
        taken=Counter(gate for line in scored for gate, passed in line["gates"].items() if not passed),
        matched=sum(_equals_reference(line, rows) for line in lines),
    )


def _failed(verdict: Mapping[str, Any]) -> bool:
    return verdict["status"] != "correct" and not (verdict["score"] or 0.0) > 0


def _model_segments(line: Line) -> list[Mapping[str, Any]]:
    return [segment for segment in line["segments"] if segment["role"] == "model"]


def _text(line: Line) -> str:
    return "".join(segment["text"] for segment in _model_segments(line))


def _unclosed(line: Line) -> bool:
    text = _text(line)
    return CLOSE not in text and (OPEN in text or opens_thinking(line["prompt"]))


def _reference(line: Line, name: str, rows: Mapping[str, Row]) -> str | None:
    """The reference that the check `name` of the row compares with; None where it is no text or number."""
    row = rows.get(line["row"], {})
    checks = checks_of(row) if row else []
    references = [check.reference for check in checks if check.verifier == name] or [row.get("reference")]
    return str(references[0]) if isinstance(references[0], (str, int, float)) else None


def _failed_answers(line: Line, rows: Mapping[str, Row]) -> list[tuple[str, str]]:
    """(answer, reference) of each failed verdict that has both."""
    failed = [(name, verdict) for name, verdict in line["verdicts"].items() if _failed(verdict)]
    pairs = [(verdict["answer"], _reference(line, name, rows)) for name, verdict in failed]
    return [(answer, reference) for answer, reference in pairs if answer is not None and reference is not None]


def _answer_reference_texts(line: Line, rows: Mapping[str, Row]) -> list[str]:
    return [
        f"`{shown(answer, 40)}`, and the reference is `{shown(reference, 40)}` (row {line['row']})"
        for answer, reference in _failed_answers(line, rows)
    ]


def _equals_reference(line: Line, rows: Mapping[str, Row]) -> bool:
    return any(answer.strip() == reference.strip() for answer, reference in _failed_answers(line, rows))


def _example(lines: Sequence[Line], facts: _Facts) -> Line:
    """A response that has the most common reason."""
    top_reason = {reason for reason, _ in facts.reasons.most_common(1)}
    matching = [line for line in lines if top_reason & {verdict["reason"] for verdict in line["verdicts"].values()}]
    return (matching or list(lines))[0]


def _tail(text: str) -> str:
    one_line = " ".join(text.split())
    return repr(one_line if len(one_line) <= _TAIL else "…" + one_line[-_TAIL:]) if one_line else "no text at all"


def _format_counts(facts: _Facts) -> str:
    parts = [f"{facts.of(facts.truncated)} were cut off at rollout.max_tokens"]
    parts += [f"{facts.of(count)} fail the gate {gate}" for gate, count in facts.gates.most_common()]
    if facts.unclosed:
        parts.append(f"{facts.unclosed} end without closing their thinking")
    if facts.empty:
        parts.append(f"{facts.empty} are empty")
    if facts.opened:
        parts.append(f"the chat template opens {OPEN} in {facts.of(facts.opened)} prompts")
    if facts.forbidden:
        parts.append(f"the chat template closes the thinking in {facts.of(facts.forbidden)} prompts")
    return ", ".join(parts)


def _cause(facts: _Facts) -> str:
    """The first cause that fits. A cause that leads to others is tested before them."""
    if facts.most(facts.empty):
        return (
            "the model ends at once. The chat template or the end-of-text token is not what it was trained with: look "
            "at `prompt` in the rollouts, and at the tokenizer's eos_token."
        )
    if facts.most(facts.truncated):
        return _cause_of_length(facts)
    if facts.right:
        causes = " and ".join(f"the gate {gate} ({count})" for gate, count in facts.taken.most_common()) or "a penalty"
        return f"{facts.of(facts.right)} answers are right, and {causes} took their reward: see to that rule first."
    if facts.most(facts.unclosed):
        where = "the chat template opens" if facts.opened else "the responses open"
        return (
            f"{where} {OPEN} and {CLOSE} never comes: the model does not know this form. Teach it by a cold start, or "
            "use the chat template it was trained with."
        )
    if facts.matched:
        return (
            f"{facts.of(facts.matched)} answers are letter for letter the reference, and got no score: the verifier "
            "is at fault. `qwq-rl verify NAME ROWS --audit` shows how it judges right answers."
        )
    return _cause_of_verdicts(facts)


def _cause_of_length(facts: _Facts) -> str:
    if 2 * facts.gone_on >= facts.truncated:
        return (
            "the responses come to an answer and do not end: the tokenizer's eos_token is not the one that the model "
            "ends a turn with, or no earlier stage taught it to end."
        )
    return (
        "the responses are cut off before they answer: raise rollout.max_tokens, or start from a model that has "
        "learned to come to an end (a cold start)."
    )


def _cause_of_verdicts(facts: _Facts) -> str:
    statuses = facts.statuses
    if facts.most(statuses["timeout"] + statuses["crash"]):
        return "programs or verifiers run out of time or crash: see the reasons above, and the limits that rows set."
    if facts.most(statuses["no_answer"]):
        hint = " The chat template does not let the model think." if facts.most(facts.forbidden) else ""
        return (
            "the responses end, and hold no answer in the form that the verifier reads: the prompts must ask for that "
            f"form, or a cold start must teach it.{hint}"
        )
    gate, failing = next(iter(facts.gates.most_common(1)), ("", 0))
    if facts.most(failing):
        return f"the gate {gate} holds for too few responses: teach its form by a cold start, or leave the gate out."
    return (
        "the answers are read and are wrong. If those above look right, the references have another form than the "
        "verifier compares (`qwq-rl verify NAME ROWS --audit`); otherwise the rows are too hard for this model: begin "
        "with easier ones, or with a cold start."
    )
