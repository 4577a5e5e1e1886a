"""Runs a data set's own checker in a separate jail. The checker sees the input, the output and the expected output.

A checker has one of two forms: a function `check(input, output, expected)` that returns a truth value or a number from
0 to 1; or a script in the style of Codeforces' Python checkers. The script gets the names of three files as arguments
(input, expected, output) and prints 1 or 0, or `true` or `false`, in its last line.
"""

from __future__ import annotations

import builtins
import io
import sys
from typing import Any

from qwq_rl.sandbox.inside import program

_NAMES = ("input.txt", "expected.txt", "output.txt")


def main(payload: dict[str, Any]) -> None:
    """Run the checker and report its score. Raises `ProgramEnded`."""
    texts = [bytes.fromhex(payload[name]) for name in ("input", "expected", "output")]
    input_text, expected, output = (text.decode("utf-8", "surrogateescape") for text in texts)
    files = dict(zip(_NAMES, texts, strict=True))
    builtin_open, printed, own_stdout = builtins.open, io.StringIO(), sys.stdout

    # the three files exist only here: the jail has no place to write them to
    def open_file(name: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if name not in files:
            return builtin_open(name, mode, *args, **kwargs)
        data = io.BytesIO(files[name])
        return data if "b" in mode else io.TextIOWrapper(data, encoding="utf-8", errors="surrogateescape")

    sys.argv[:] = ["checker.py", *_NAMES]
    builtins.open, sys.stdout = open_file, printed  # type: ignore[assignment]
    try:
        names = program.run_code(payload["code"], "__main__")
        value = names["check"](input_text, output, expected) if callable(names.get("check")) else None
    except program.ProgramEnded as end:
        # a script may end by sys.exit(0) after it printed its answer
        if end.status or not printed.getvalue().strip():
            raise
        value = None
    except BaseException as error:
        raise program.failed(error) from None
    finally:
        sys.stdout = own_stdout
    program.report({"score": _number(printed.getvalue() if value is None else value)})


def _number(value: Any) -> float | None:
    """A checker's answer as a number; None if it is not a number."""
    if isinstance(value, str):
        word = (value.split() or [""])[-1].lower()
        value = {"true": 1.0, "false": 0.0}.get(word, word)
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
