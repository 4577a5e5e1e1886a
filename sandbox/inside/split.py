"""Assert tests, judged by two jailed children: `solve` holds the submission, `check` the test; calls pass between.

Over the link, one JSON object a line. From check: {"do": "call" | "get" | "list", "on": name or object's number, ...};
from solve: {"value": ...} or {"raise": [type, message]}. What solve sends is data (values.py): the test compares plain
values of its own process, so no method of the submission takes part in a comparison.
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
_STOPPING = (StopIteration, StopAsyncIteration)
"""Raised inside a generator or map of the test they would end it quietly, and `all(...)` would be true."""


class SubmissionBroken(Exception):
    """The submission's process ended, or sent something that is no answer."""


class Raised(Exception):
    """The submission raised something that is not an ordinary built-in exception."""


class Untransferable(Exception):
    """The test passes something that cannot cross: a fault of the test for this judge, not of the submission."""


def solve(payload: dict[str, Any]) -> None:
    """Run the submission, then answer requests until the link closes."""
    names = program.run_code(payload["code"], "solution")
    objects: list[Any] = []

    def refer(value: Any) -> dict[str, Any]:
        objects.append(value)
        return {"$ref": [len(objects) - 1, type(value).__name__]}

    def resolve(place: str | int) -> Any:
        return objects[place] if isinstance(place, int) else program.find(names, place)

    with open(LINK, "rb", closefd=False) as requests:
        for line in requests:
            _send(_answer(json.loads(line), resolve, refer))
    sys.stdout.flush()
    os._exit(0)  # the test is done: threads of the submission are not waited for


def check(payload: dict[str, Any]) -> None:
    """Run the test against the submission behind the link, and report how it went."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    link = _Link()
    tree = ast.parse(payload["code"])
    entry = payload["entry_point"]
    # the text may define the entry point as a stub (a prompt does): the submission's stands in its place
    tree.body = [item for item in tree.body if getattr(item, "name", None) != entry or entry is None]
    code = compile(tree, "test", "exec", dont_inherit=True)
    names: dict[str, Any] = {name: Remote(link, name) for name in _names(code)}
    if entry is not None:
        names |= {entry: Remote(link, entry), "candidate": Remote(link, entry)}
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
    """A function or object of the submission, seen from the test: to be called, looked into, listed and passed back.

    It has no truth value and equals nothing: an object that says it equals everything must not pass.
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
        """One request and its answer. Raises what the submission raised, or `SubmissionBroken`."""
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
    """What to raise in the test for an exception of the submission."""
    known = getattr(builtins, kind, None)
    error: Exception = Raised(f"{kind}: {message}")
    if isinstance(known, type) and issubclass(known, Exception) and not issubclass(known, _STOPPING):
        with contextlib.suppress(TypeError):  # some take more than a message
            error = known(message)
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
    """Names that the test may take from the submission: those it mentions that are not built in."""
    names = {name for name in code.co_names if not name.startswith("__") and not hasattr(builtins, name)}
    return names.union(*(_names(item) for item in code.co_consts if isinstance(item, types.CodeType)))


def _describe(error: BaseException, text: str) -> str:
    """The line of the test that failed, and the exception."""
    line, traceback = "", error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "test":
            line = text.splitlines()[traceback.tb_lineno - 1].strip()
        traceback = traceback.tb_next
    return f"{line} : {type(error).__name__} {error}".strip()[:500]
