"""What goes wrong outside the code: the user's input, the machine, a run's state; and which name was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A mistake or a condition that the user can mend.

    The text is the whole message: what is wrong, where (file and line or row), and what would be right.
    The command line prints it without a traceback and exits with `exit_status`.
    """

    exit_status = 2


class RecipeError(UserError):
    """A recipe is wrong; the message lists every mistake, one a line, as `file:line: what`."""


class RowError(UserError):
    """A data file is missing or a row of it is malformed; names file and line."""


class RunStateError(UserError):
    """The run folder cannot be used as it is: locked, edited, torn, or a predecessor is missing."""

    exit_status = 3


class GateFailed(UserError):
    """A stage ended, and what it reached does not allow the next one to start."""

    exit_status = 4


def close_to(name: Any, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The nearest of `names` to a misspelt one, whatever its case; None where none is near, or `name` is no text.

    `cutoff`, from 0 to 1: how alike they must be, by `difflib`'s ratio.
    """
    folded = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=cutoff) if isinstance(name, str) else []
    return folded[close[0]] if close else None


def did_you_mean(name: Any, names: Iterable[str], cutoff: float = 0.6, quote: str = "`") -> str:
    """Return `; did you mean X?` with the nearest of `names`, in `quote`s; nothing where none is near."""
    close = close_to(name, names, cutoff)
    return f"; did you mean {quote}{close}{quote}?" if close else ""
