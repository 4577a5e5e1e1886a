"""Errors that the user can correct (input, machine, state of a run), and suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A mistake or a condition that the user can correct.

    The text is the whole message: what is wrong, where (file and line or row), and what would be right.
    The command line prints it without a traceback and exits with `exit_status`.
    """

    exit_status = 2


class RecipeError(UserError):
    """A recipe is wrong. The message lists every mistake, one per line, as `file:line: what`."""


class RowError(UserError):
    """A data file is missing, or one of its rows is malformed. The message names file and line."""


class RunStateError(UserError):
    """The run folder cannot be used as it is: it is locked, edited or damaged, or an earlier stage is missing."""

    exit_status = 3


class GateFailed(UserError):
    """A stage has ended, and its results do not reach what its gate requires: the next stage cannot start."""

    exit_status = 4


def close_to(name: Any, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the one of `names` that is most similar to a misspelt `name`; upper and lower case count as equal.

    Returns None if none is similar enough, or if `name` is not text. `cutoff`, from 0 to 1, is the least similarity
    (`difflib`'s ratio).
    """
    by_lower_case = {candidate.lower(): candidate for candidate in names}
    matches = (
        difflib.get_close_matches(name.lower(), list(by_lower_case), n=1, cutoff=cutoff)
        if isinstance(name, str)
        else []
    )
    return by_lower_case[matches[0]] if matches else None


def did_you_mean(name: Any, names: Iterable[str], cutoff: float = 0.6, quote: str = "`") -> str:
    """Return `; did you mean X?` with the most similar of `names`, in `quote`s; "" if none is similar."""
    nearest = close_to(name, names, cutoff)
    return f"; did you mean {quote}{nearest}{quote}?" if nearest else ""
