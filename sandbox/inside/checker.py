"""A data set's own checker, in a jail of its own: it sees the input, what was printed and what was expected.

Two forms: a function `check(input, output, expected)`, whose value is a truth value or a number from 0 to 1; or a
script called as Codeforces' Python checkers are, with the names of three files as arguments (input, expected, output),
which prints 1 or 0, or `true` or `false`, in its last line.
"""

from __future__ import annotations

import builtins
import io
import sys
from typing import Any

from qwq_rl.sandbox.inside import program

_NAMES = ("input.txt", "expected.txt", "output.txt")


def main(payload: dict[str, Any]) -> None:
    """Run the checker, and report the value it gives. Raises `Ended`."""
    texts = [bytes.fromhex(payload[name]) for name in ("input", "expected", "output")]
    given, expected, output = (text.decode("utf-8", "surrogateescape") for text in texts)
    files = dict(zip(_NAMES, texts, strict=True))
    plain, printed, shown = builtins.open, io.StringIO(), sys.stdout

    def open_file(name: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if name not in files:
            return plain(name, mode, *args, **kwargs)
        data = io.BytesIO(files[name])
        return data if "b" in mode else io.TextIOWrapper(data, encoding="utf-8", errors="surrogateescape")

    sys.argv[:] = ["checker.py", *_NAMES]
    builtins.open, sys.stdout = open_file, printed  # type: ignore[assignment]
    try:
        names = program.run_code(payload["code"], "__main__")
        value = names["check"](given, output, expected) if callable(names.get("check")) else None
    except program.ProgramEnded as end:
        if end.status or not printed.getvalue().strip():
            raise
        value = None
    except BaseException as error:
        raise program.failed(error) from None
    finally:
        sys.stdout = shown
    program.report({"score": _number(printed.getvalue() if value is None else value)})


def _number(value: Any) -> float | None:
    """What a checker said, as a number; None where it is none."""
    if isinstance(value, str):
        word = (value.split() or [""])[-1].lower()
        value = {"true": 1.0, "false": 0.0}.get(word, word)
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
