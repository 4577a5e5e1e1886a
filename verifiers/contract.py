"""The verifier contract: what every verifier receives and returns (docs/contracts.md, "A verifier")."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

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
    """correct, wrong, no_answer, bad_reference, timeout, crash, fault, or the verifier's own word."""
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


Isolation = Literal["inline", "thread", "process"]


@dataclass(frozen=True)
class Running:
    """How a verifier wants to be run; what declares nothing gets these defaults."""

    isolation: Isolation = "process"
    """`inline`: in the caller's thread, where only coroutines can be stopped, so the verifier bounds itself;
    `thread`: one that hangs is left behind, and several run at once, so it must be thread-safe;
    `process`: in worker processes that can be killed whatever they do."""
    deadline_s: float = 30.0
    """Wall time of one verdict, or of one call of `batch`; a batch that takes longer is judged one by one."""
    memory_mb: int = 1024
    """What a worker process may take besides what it holds once the verifier is loaded."""
    retries: int = 0
    """How often a fault is judged again; for what asks a server."""
    cached: bool = False
    """Verdicts depend only on the role, the reference and the response's `answer` and `finish`: they may be kept."""


Anything = TypeVar("Anything")


def run_as(
    isolation: Isolation = "process",
    *,
    deadline_s: float = 30.0,
    memory_mb: int = 1024,
    retries: int = 0,
    cached: bool = False,
) -> Callable[[Anything], Anything]:
    """Decorate a verifier, or the function or class that builds it, with how it wants to be run (see `Running`)."""
    if isolation not in ("inline", "thread", "process"):
        raise ValueError(f"isolation is {isolation!r}: give 'inline', 'thread' or 'process'")
    if not (deadline_s > 0 and memory_mb > 0 and retries >= 0):
        raise ValueError("deadline_s and memory_mb must be above 0, and retries not below")
    running = Running(isolation, deadline_s, memory_mb, retries, cached)

    def declare(verifier: Anything) -> Anything:
        verifier.running = running  # type: ignore[attr-defined]
        return verifier

    return declare
