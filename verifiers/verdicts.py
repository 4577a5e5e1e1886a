"""Functions that make verdicts, one per status, and helpers that format texts for their reasons."""

from __future__ import annotations

import traceback

from qwq_rl.verifiers.contract import Response, Verdict

ALMOST = 0.99
"""The highest score that partial credit gives to a response that fails."""


def correct(reason: str, answer: str | None = None) -> Verdict:
    """The response passes."""
    return Verdict(1.0, "correct", reason, answer)


def wrong(reason: str, answer: str | None = None) -> Verdict:
    """The response was judged and fails."""
    return Verdict(0.0, "wrong", reason, answer)


def no_answer(reason: str) -> Verdict:
    """The response holds nothing that could be judged."""
    return Verdict(0.0, "no_answer", reason)


def empty_answer(response: Response) -> Verdict:
    """The response has an empty answer; the reason says if it ran out of tokens."""
    cut = "; the response ran out of tokens" if response.finish == "length" else ""
    return no_answer(f"there is no text after the thinking{cut}")


def bad_reference(reason: str) -> Verdict:
    """The row's reference is wrong, so the response cannot be judged."""
    return Verdict(None, "bad_reference", reason)


def fault(reason: str) -> Verdict:
    """The checker failed, so the response cannot be judged."""
    return Verdict(None, "fault", reason)


def shown(value: object, limit: int = 60) -> str:
    """`value` on one line, cut to `limit` characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def describe(error: BaseException) -> str:
    """The error on one line, with the file and line of Python code that raised it."""
    # Frames of the import machinery say nothing about where the user's code failed.
    import_code = ("importlib", "verifiers/loading.py")
    traceback_frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in traceback_frames if not any(part in frame.filename for part in import_code)]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        place = ""  # the text of a SyntaxError names file and line itself
    return " ".join(f"{type(error).__name__}: {error}{place}".split())
