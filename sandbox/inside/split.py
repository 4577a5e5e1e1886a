"""Assert tests, judged by two jailed children: `solve` runs the submission, `check` runs the test and calls `solve`.

The link carries one JSON object per line. From check: {"do": "call" | "get" | "list", "on": name or object's number,
...}; from solve: {"value": ...} or {"raise": [type, message]}. What solve sends is data (values.py), so the test
compares plain values of its own process, and no method of the submission takes part in a comparison.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import json
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from qwq_rl.sandbox.inside import program
from qwq_rl.sandbox.inside.values import decode, encode
from qwq_rl.sandbox.inside.wire import LINK

_LONGEST = 1 << 26
"""Bytes of one answer that are read at most."""
_STOPPING = (StopIteration, StopAsyncIteration)
"""Exceptions that are not raised in the test as they are: inside a generator or map they would end it silently, and
`all(...)` would be true.
"""


class SubmissionBroken(Exception):
    """The submission's process ended, or sent something that is not an answer."""


class Raised(Exception):
    """The submission raised something that is not an ordinary built-in exception."""


class Untransferable(Exception):
    """The test passes a value that cannot be sent to the submission. This is the test's fault, not the submission's."""


def solve(payload: dict[str, Any]) -> None:
    """Run the submission, then answer requests until the link closes."""
    names = program.run_code(payload["code"], "solution")
    objects: list[Any] = []

    def refer(value: Any) -> dict[str, Any]:
        objects.append(value)
        return {"$ref": [len(objects) - 1, type(value).__name__]}

    def resolve(name_or_number: str | int) -> Any:
        return objects[name_or_number] if isinstance(name_or_number, int) else program.find(names, name_or_number)

    with open(LINK, "rb", closefd=False) as requests:
        for line in requests:
            _send(_answer(json.loads(line), resolve, refer))
    sys.stdout.flush()
    os._exit(0)  # the test is done: do not wait for the submission's threads


def check(payload: dict[str, Any]) -> None:
    """Run the test against the submission at the other end of the link, and report the outcome."""
    # the submission may end early: that is to be an exception, not the end of this process
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    link = _Link()
    tree = ast.parse(payload["code"])
    entry_point = payload["entry_point"]
    # the test may define the entry point as a stub, as a prompt does: the submission's function replaces it
    tree.body = [
        statement for statement in tree.body if getattr(statement, "name", None) != entry_point or entry_point is None
    ]
    code = compile(tree, "test", "exec", dont_inherit=True)
    names: dict[str, Any] = {name: Remote(link, name) for name in _names(code)}
    if entry_point is not None:
        names |= {entry_point: Remote(link, entry_point), "candidate": Remote(link, entry_point)}
    names |= {"__name__": "__main__", "__builtins__": builtins}
    try:
        exec(code, names)
        program.report({"passed": True})
    except Untransferable as error:
        program.report({"fault": str(error)})
    except BaseException as error:
        raised = isinstance(error, SubmissionBroken) or hasattr(error, "of_submission")
        program.report({"failed": _describe(error, payload["code"]), "raised": raised})
    os._exit(0)


class Remote:
    """A function or object of the submission, as the test sees it: to call, read attributes, iterate or pass back.

    It has no truth value and cannot be compared: an object that claims to equal everything must not pass.
    """

    __slots__ = ("_link", "_place")

    def __init__(self, link: _Link, place: str | int) -> None:
        self._link, self._place = link, place

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it in the submission's process."""
        return self._link.ask({"do": "call", "on": self._place, "args": _pack(args), "kwargs": _pack(kwargs)})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._link.ask({"do": "get", "on": self._place, "name": name})

    def __iter__(self) -> Iterator[Any]:
        return iter(self._link.ask({"do": "list", "on": self._place}))

    def _refuse(self, *_: object) -> Any:
        raise TypeError("an object of the submission cannot be compared, only data can")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __hash__ = __contains__ = __len__ = _refuse  # type: ignore[assignment]


class _Link:
    """The test's end of the link."""

    def __init__(self) -> None:
        self._replies = os.fdopen(LINK, "rb", closefd=False)

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request and return its answer. Raises what the submission raised, or `SubmissionBroken`."""
        try:
            _send(request)
            reply = json.loads(self._replies.readline(_LONGEST))
            raised = reply.get("raise")
            value = None if raised else decode(reply["value"], lambda body: Remote(self, int(body[0])))
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise SubmissionBroken("the program ended before it answered") from None
        if raised:
            raise _exception(*map(str, raised[:2]))
        return value


def _answer(request: dict[str, Any], resolve: Callable[[Any], Any], refer: Callable[[Any], Any]) -> dict[str, Any]:
    try:
        target = resolve(request["on"])
        if request["do"] == "call":
            value = target(*decode(request["args"], resolve), **decode(request["kwargs"], resolve))
        elif request["do"] == "get":
            value = getattr(target, request["name"])
        else:
            value = list(target)
        return {"value": encode(value, refer)}
    except BaseException as error:
        program.failed(error)
        return {"raise": [type(error).__name__, str(error)[:1000]]}


def _exception(kind: str, message: str) -> Exception:
    """The exception to raise in the test for an exception of the submission."""
    builtin_class = getattr(builtins, kind, None)
    error: Exception = Raised(f"{kind}: {message}")
    if (
        isinstance(builtin_class, type)
        and issubclass(builtin_class, Exception)
        and not issubclass(builtin_class, _STOPPING)
    ):
        with contextlib.suppress(TypeError):  # some classes take more arguments than a message
            error = builtin_class(message)
    error.of_submission = True  # type: ignore[attr-defined]
    return error


def _pack(value: Any) -> Any:
    return encode(value, _reference)


def _reference(value: Any) -> dict[str, Any]:
    if isinstance(value, Remote):
        return {"$ref": object.__getattribute__(value, "_place")}
    raise Untransferable(f"the test passes a {type(value).__name__}, which cannot be sent to the program")


def _send(value: dict[str, Any]) -> None:
    text = (json.dumps(value) + "\n").encode("ascii")
    while text:
        text = text[os.write(LINK, text) :]


def _names(code: types.CodeType) -> set[str]:
    """Names that the test takes from the submission: all names it uses that are not built in."""
    names = {name for name in code.co_names if not name.startswith("__") and not hasattr(builtins, name)}
    return names.union(*(_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)))


def _describe(error: BaseException, text: str) -> str:
    """The line of the test that failed, and the exception, as text."""
    line, traceback = "", error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "test":
            line = text.splitlines()[traceback.tb_lineno - 1].strip()
        traceback = traceback.tb_next
    return f"{line} : {type(error).__name__} {error}".strip()[:500]
