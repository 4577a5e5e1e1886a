"""Turns a quality in [0, 1] into the score that the role of a check asks for, and checks parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qwq_rl.errors import UserError
from qwq_rl.verifiers.contract import Problem, Verdict

if TYPE_CHECKING:
    from qwq_rl.verifiers.runner.judge import Role


def role_of(problem: Problem, natural: Role) -> Role:
    """The role that the check asks for; `natural` if the verifier is called without one."""
    role: Role = problem.get("role", natural)
    return role


def placed(
    role: Role,
    quality: float,
    *,
    passes: bool,
    most: float,
    reason: str,
    metrics: Mapping[str, float] | None = None,
    answer: str | None = None,
) -> Verdict:
    """The verdict of a rule whose `quality` is in [0, 1].

    - As a score it is the quality.
    - As a gate it is 1 if the response `passes`, else 0.
    - As a penalty it is `most * (quality - 1)`.
    """
    score = {"score": quality, "gate": float(passes), "penalty": most * (quality - 1)}[role]
    return Verdict(score, "correct" if passes else "wrong", reason, answer, metrics or {})


def share(name: str, value: float) -> float:
    """Return `value` if it lies in [0, 1]; raise UserError that names the parameter if not."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"`{name}` must be a number from 0 to 1, not {value!r}")
    return float(value)


def count(name: str, value: int, least: int = 1) -> int:
    """Return `value` if it is a whole number of at least `least`; raise UserError that names the parameter if not."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"`{name}` must be a whole number of at least {least}, not {value!r}")
    return value
