"""Why no response of a round got a reward: what is seen in them, and the most likely cause."""

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
_SHOWN = 3


@dataclass(frozen=True)
class _Facts:
    """What is counted over the responses; `total` is all of them."""

    total: int
    truncated: int
    gone_on: int
    """Of those cut off, how many had closed their thinking and gone on to an answer."""
    empty: int
    opened: int
    """Prompts that end by opening the thinking."""
    forbidden: int
    """Prompts that end by closing it: the model is not let think."""
    unclosed: int
    """Responses that leave open the thinking that they or their prompt opened, and end by themselves."""
    gates: Counter[str]
    """Gate -> responses that fail it."""
    statuses: Counter[str]
    reasons: Counter[str]
    right: int
    """Responses with a score above 0, whose reward something else took."""
    taken: Counter[str]
    """Gate -> those of them that fail it."""
    matched: int
    """Answers that were read, and are letter for letter the reference, and got no score."""

    def most(self, count: int) -> bool:
        """Whether a count is at least half of the responses."""
        return 2 * count >= self.total

    def of(self, count: int) -> str:
        """`12 of 24`."""
        return f"{count} of {self.total}"


def explain_zero_rewards(lines: Sequence[Line], rows: Mapping[str, Row]) -> str:
    """Several lines of text: counts, reasons of verdicts, answers beside references, one response's end, and a cause.

    `lines` are the rollouts, all of reward 0 and at least one; `rows` are the rows by id, as far as they are at hand.
    """
    facts = _facts(lines, rows)
    said = [f"What is seen in {len(lines)} responses:", f"- {_forms(facts)}"]
    if facts.statuses:
        counts = ", ".join(f"{count} {status}" for status, count in facts.statuses.most_common())
        often = "; ".join(f"{count} times: {shown(reason, 100)}" for reason, count in facts.reasons.most_common(_SHOWN))
        said.append(f"- verdicts: {counts}. Their reasons: {often}")
    pairs = list(dict.fromkeys(pair for line in lines for pair in _pairs(line, rows)))[:_SHOWN]
    if pairs:
        said.append("- answers as they were read: " + "; ".join(pairs))
    example = _example(lines, facts)
    said.append(f"- row {example['row']} got: {_tail(_text(example))}")
    return "\n".join([*said, f"Most likely: {_cause(facts)}"])


def _facts(lines: Sequence[Line], rows: Mapping[str, Row]) -> _Facts:
    cut = [line for line in lines if line["finish"] == "length"]
    right = [line for line in lines if (line["score"] or 0.0) > 0]
    verdicts = [verdict for line in lines for verdict in line["verdicts"].values() if _failed(verdict)]
    return _Facts(
        total=len(lines),
        truncated=len(cut),
        gone_on=sum(bool(_text(line).partition(CLOSE)[2].strip()) for line in cut),
        empty=sum(sum(map(len, (part["token_ids"] for part in _written(line)))) <= 1 for line in lines),
        opened=sum(opens_thinking(line["prompt"]) for line in lines),
        forbidden=sum(line["prompt"].rstrip().endswith(CLOSE) for line in lines),
        unclosed=sum(_unclosed(line) for line in lines if line["finish"] != "length"),
        gates=Counter(gate for line in lines for gate, held in line["gates"].items() if not held),
        statuses=Counter(verdict["status"] for verdict in verdicts),
        reasons=Counter(verdict["reason"] for verdict in verdicts if verdict["reason"]),
        right=len(right),
        taken=Counter(gate for line in right for gate, held in line["gates"].items() if not held),
        matched=sum(_matched(line, rows) for line in lines),
    )


def _failed(verdict: Mapping[str, Any]) -> bool:
    return verdict["status"] != "correct" and not (verdict["score"] or 0.0) > 0


def _written(line: Line) -> list[Mapping[str, Any]]:
    return [segment for segment in line["segments"] if segment["role"] == "model"]


def _text(line: Line) -> str:
    return "".join(segment["text"] for segment in _written(line))


def _unclosed(line: Line) -> bool:
    text = _text(line)
    return CLOSE not in text and (OPEN in text or opens_thinking(line["prompt"]))


def _reference(line: Line, name: str, rows: Mapping[str, Row]) -> str | None:
    """What the row's check of that verdict compares with, where it is a text or a number."""
    row = rows.get(line["row"], {})
    checks = checks_of(row) if row else []
    found = [check.reference for check in checks if check.verifier == name] or [row.get("reference")]
    return str(found[0]) if isinstance(found[0], (str, int, float)) else None


def _read(line: Line, rows: Mapping[str, Row]) -> list[tuple[str, str]]:
    """Answer and reference of the verdicts that failed and have both."""
    failed = [(name, verdict) for name, verdict in line["verdicts"].items() if _failed(verdict)]
    both = [(verdict["answer"], _reference(line, name, rows)) for name, verdict in failed]
    return [(answer, reference) for answer, reference in both if answer is not None and reference is not None]


def _pairs(line: Line, rows: Mapping[str, Row]) -> list[str]:
    return [
        f"`{shown(answer, 40)}`, and the reference is `{shown(reference, 40)}` (row {line['row']})"
        for answer, reference in _read(line, rows)
    ]


def _matched(line: Line, rows: Mapping[str, Row]) -> bool:
    return any(answer.strip() == reference.strip() for answer, reference in _read(line, rows))


def _example(lines: Sequence[Line], facts: _Facts) -> Line:
    """A response that fails in the most common way."""
    common = {reason for reason, _ in facts.reasons.most_common(1)}
    fitting = [line for line in lines if common & {verdict["reason"] for verdict in line["verdicts"].values()}]
    return (fitting or list(lines))[0]


def _tail(text: str) -> str:
    cut = " ".join(text.split())
    return repr(cut if len(cut) <= _TAIL else "…" + cut[-_TAIL:]) if cut else "no text at all"


def _forms(facts: _Facts) -> str:
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
    """The first that fits; what makes the others follow comes first."""
    if facts.most(facts.empty):
        return (
            "the model ends at once. The chat template or the end-of-text token is not what it was trained with: look "
            "at `prompt` in the rollouts, and at the tokenizer's eos_token."
        )
    if facts.most(facts.truncated):
        return _cause_of_length(facts)
    if facts.right:
        taken = " and ".join(f"the gate {gate} ({count})" for gate, count in facts.taken.most_common()) or "a penalty"
        return f"{facts.of(facts.right)} answers are right, and {taken} took their reward: see to that rule first."
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
        form = " The chat template does not let the model think." if facts.most(facts.forbidden) else ""
        return (
            "the responses end, and hold no answer in the form that the verifier reads: the prompts must ask for that "
            f"form, or a cold start must teach it.{form}"
        )
    gate, failing = next(iter(facts.gates.most_common(1)), ("", 0))
    if facts.most(failing):
        return f"the gate {gate} holds for too few responses: teach its form by a cold start, or leave the gate out."
    return (
        "the answers are read and are wrong. If those above look right, the references have another form than the "
        "verifier compares (`qwq-rl verify NAME ROWS --audit`); otherwise the rows are too hard for this model: begin "
        "with easier ones, or with a cold start."
    )
