"""The graders that the math benchmarks set side by side; each takes a whole completion and a bare gold answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from qwq_rl.data.chat import split_thinking
from qwq_rl.verifiers import Response, Verdict, load

Grader = Callable[[str, str], float | None]
"""(completion, gold) -> 1 if it passes, 0 if not, None if it could not be judged."""


def judged(verifier: Any, completion: str, gold: object) -> Verdict:
    """Our verdict of a raw completion whose prompt opened the thinking, split as training splits it."""
    reasoning, answer = split_thinking(completion, opened="</think>" in completion)
    response = Response(text=completion, answer=answer.strip(), reasoning=reasoning.strip())
    verdict = verifier({"reference": gold}, response)
    assert isinstance(verdict, Verdict)
    return verdict


def ours(params: Mapping[str, Any] | None = None) -> Grader:
    """The built-in verifier `math`."""
    verifier = load("math", params or {})
    return lambda completion, gold: judged(verifier, completion, gold).score


def math_verify() -> Grader:
    """math-verify with its defaults, the gold in a box (it reads bare LaTeX as words)."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)

    def grade(completion: str, gold: str) -> float | None:
        read = math_verify.parse(f"\\boxed{{{gold}}}")
        return float(math_verify.verify(read, math_verify.parse(completion))) if read else None

    return grade


def trl() -> Grader:
    """TRL's `accuracy_reward`, the gold in a box (bare LaTeX golds give wrong rewards)."""
    from trl.rewards import accuracy_reward

    def grade(completion: str, gold: str) -> float | None:
        found: float | None = accuracy_reward([[{"content": completion}]], [f"\\boxed{{{gold}}}"])[0]
        return found

    return grade
