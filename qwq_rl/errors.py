"""What goes wrong outside the code: the user's input, the machine, a run's state."""

from __future__ import annotations


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
