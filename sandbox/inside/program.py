"""Runs a submission as Python would: a whole program, or one of its functions."""

from __future__ import annotations

import atexit
import json
import marshal
import os
import signal
import sys
import threading
import types
from typing import Any

from qwq_rl.sandbox.inside.stateless import stateless
from qwq_rl.sandbox.inside.values import encode
from qwq_rl.sandbox.inside.wire import REPORT

TOGETHER_S = 0.1
"""CPU seconds that calls in a shared process may take together. If they need more, a process per call costs little."""


class ProgramEnded(Exception):
    """The submission's code ended by an exception or sys.exit; `status` is its exit status."""

    def __init__(self, status: int) -> None:
        self.status = status


def main(payload: dict[str, Any]) -> None:
    """Run a program that reads standard input and writes standard output. Raises `ProgramEnded`."""
    run_code(payload["code"], "__main__")


def call(payload: dict[str, Any]) -> None:
    """Call a function once and report its value. Raises `ProgramEnded`."""
    names = run_code(payload["code"], "solution")
    try:
        value = encode(find(names, payload["entry_point"])(*payload["args"]))
        report({"value": value})
    except BaseException as error:
        raise failed(error) from None


def calls(payload: dict[str, Any]) -> None:
    """Make the calls of all tests if the program keeps nothing between calls, else only the first one.

    The number of calls is reported before the program begins, then each value. Raises `ProgramEnded`.
    """
    argument_lists: list[bytes] = payload.pop("calls")
    if stateless(payload["code"]):
        signal.setitimer(signal.ITIMER_PROF, TOGETHER_S)  # ends the process; each call is then made in its own
    else:
        del argument_lists[1:]
    report({"calls": len(argument_lists)})
    names = run_code(payload["code"], "solution")
    for arguments in argument_lists:
        try:
            report({"value": encode(find(names, payload["entry_point"])(*marshal.loads(arguments)))})
        except BaseException as error:
            raise failed(error) from None


def run_code(text: str, name: str) -> dict[str, Any]:
    """Execute the submission as the module `name` and return its globals.

    Raises `ProgramEnded` after it reported what went wrong.
    """
    try:
        code = compile(text, "main.py", "exec", dont_inherit=True)
    except MemoryError as error:
        raise failed(error) from None
    except (SyntaxError, ValueError, OverflowError, RecursionError) as error:
        report({"error": "compile", "message": f"{type(error).__name__}: {error}"})
        sys.__excepthook__(type(error), error, None)
        raise ProgramEnded(1) from None
    module = types.ModuleType(name)
    module.__dict__["__builtins__"] = __builtins__
    sys.modules[name] = module
    try:
        exec(code, module.__dict__)
    except BaseException as error:
        raise failed(error) from None
    return module.__dict__


def failed(error: BaseException) -> ProgramEnded:
    """Report an exception of the submission and print its traceback; returns the exception to raise instead."""
    if isinstance(error, SystemExit):
        return ProgramEnded(_exit_status(error.code))
    kind = "memory" if isinstance(error, MemoryError) else "exception"
    report({"error": kind, "message": f"{type(error).__name__}: {error}"[:2000]})
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename != "main.py":
        traceback = traceback.tb_next
    error.__traceback__ = traceback  # leaves out the sandbox's own frames
    sys.excepthook(type(error), error, traceback)
    return ProgramEnded(1)


def find(names: dict[str, Any], name: str) -> Any:
    """The submission's function of that name, or the method of its class `Solution`. Raises NameError."""
    if name in names:
        return names[name]
    solution = names.get("Solution")
    if isinstance(solution, type) and hasattr(solution, name):
        return getattr(solution(), name)
    raise NameError(f"the program defines no {name}")


def report(value: dict[str, Any]) -> None:
    """Write a line of JSON to the report, which the judge reads."""
    text = (json.dumps(value) + "\n").encode("ascii")
    while text:
        text = text[os.write(REPORT, text) :]


def finish(status: int) -> int:
    """Wait for threads, run atexit functions and flush, as an interpreter does at its end; returns the exit status."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException as error:
        status = status or failed(error).status
    for stream in {id(file): file for file in (sys.stdout, sys.__stdout__, sys.stderr, sys.__stderr__)}.values():
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except BaseException:
            status = status or 120  # what Python exits with when it cannot flush
    return status


def _exit_status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1
