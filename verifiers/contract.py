"""The verifier contract: what every verifier receives and returns (docs/contracts.md, "A verifier")."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Problem = Mapping[str, Any]
"""One row of the data, as loaded; `problem["reference"]` is what this verifier compares with."""

Finish = Literal["stop", "length", "tool_limit", "parse_error", "environment_error"]


@dataclass(frozen=True)
class Response:
    """What the policy produced for one row."""

    text: str
    """As decoded, special tokens kept."""
    answer: str
    """After the last closed `</think>`; empty if the thinking never closed."""
    reasoning: str = ""
    """Inside the thinking block."""
    finish: Finish = "stop"
    messages: Sequence[Mapping[str, Any]] = ()
    """The whole conversation, tool turns included."""
    token_ids: Sequence[int] = ()
    final_state: Mapping[str, Any] | None = None
    """Of the row's environment, where it has one."""


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one response."""

    score: float | None
    """In the range of the check's role; None: could not be judged, by a fault of ours."""
    status: str
    """correct, wrong, no_answer, bad_reference, timeout, fault, or the verifier's own word."""
    reason: str = ""
    """One line a person can act on."""
    answer: str | None = None
    """What was taken as the answer."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class Verifier(Protocol):
    """A function or callable of a problem and a response; it may also have `batch(items) -> list[Verdict]`."""

    def __call__(
        self, problem: Problem, response: Response
    ) -> Verdict | float | bool | Awaitable[Verdict | float | bool | None] | None:
        """Judge one response; None where it could not be judged."""
