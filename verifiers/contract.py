"""The verifier contract: what a verifier receives and returns (docs/contracts.md, "A verifier")."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

Problem = Mapping[str, Any]
"""One row of the data, as loaded. The verifier compares with `problem["reference"]`."""

Finish = Literal["stop", "length", "tool_limit", "parse_error", "environment_error"]


@dataclass(frozen=True)
class Response:
    """What the policy produced for one row."""

    text: str
    """The decoded tokens, special tokens included."""
    answer: str
    """The text after the last closed `</think>`; empty if the thinking never closed."""
    reasoning: str = ""
    """The text inside the thinking block."""
    finish: Finish = "stop"
    """Why the rollout ended."""
    messages: Sequence[Mapping[str, Any]] = ()
    """The whole conversation, tool turns included."""
    token_ids: Sequence[int] = ()
    final_state: Mapping[str, Any] | None = None
    """The last state of the row's environment; None if the row has no environment."""


@dataclass(frozen=True)
class Verdict:
    """How a verifier judges one response."""

    score: float | None
    """A number in the range of the check's role. None: not judged, for a reason that is not the response's fault."""
    status: str
    """correct, wrong, no_answer, bad_reference, timeout, crash, fault, or a word of the verifier's own."""
    reason: str = ""
    """One line for a person, clear enough to act on."""
    answer: str | None = None
    """The part of the response that was taken as the answer."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    """How long the verdict took."""


class Verifier(Protocol):
    """A function or callable of a problem and a response. It may also have `batch(items) -> list[Verdict]`."""

    def __call__(
        self, problem: Problem, response: Response
    ) -> Verdict | float | bool | Awaitable[Verdict | float | bool | None] | None:
        """Judge one response; return None if it could not be judged."""


Isolation = Literal["inline", "thread", "process"]


@dataclass(frozen=True)
class Running:
    """How a verifier wants to be run. A verifier that declares nothing gets these defaults."""

    isolation: Isolation = "process"
    """Where the verifier runs.

    - `inline`: in the caller's thread. Only coroutines can be stopped there, so the verifier must bound its own work.
    - `thread`: in a thread that is abandoned if it hangs. Several run at once, so the verifier must be thread-safe.
    - `process`: in worker processes, which can be killed whatever the verifier does.
    """
    deadline_s: float = 30.0
    """Wall time of one verdict, or of one call of `batch`. A batch that takes longer is judged one by one."""
    memory_mb: int = 1024
    """Memory that a worker process may take in addition to what it uses after loading the verifier."""
    retries: int = 0
    """How often a fault is judged again. Useful for a verifier that asks a server."""
    cached: bool = False
    """Whether verdicts may be cached: they must depend only on the role, the reference, `answer` and `finish`."""


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
