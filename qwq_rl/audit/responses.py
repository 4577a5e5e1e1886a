"""Rows with responses, as `qwq-rl verify` reads them: what of a row is asked, and every mistake with its line."""

from __future__ import annotations

import contextlib
import gzip
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from qwq_rl.data.chat import CLOSE, OPEN, split_thinking
from qwq_rl.data.mappers import resolve_mapper
from qwq_rl.data.row import Check, Role, Row, checks_of, row_mistakes
from qwq_rl.data.sources import UnreadableLine, map_with, parse_lines, read_numbered
from qwq_rl.errors import RowError, did_you_mean
from qwq_rl.verifiers import Response
from qwq_rl.verifiers.contract import Finish

ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "</s>")
"""Special tokens that end a completion and are no part of the answer."""


@dataclass(frozen=True)
class ResponseCheck:
    """One row and the check of it that is asked."""

    line: int
    id: str
    """The row's own, else its line."""
    row: Row
    check: Check
    response: Response | None
    """None where only the row is wanted."""


@dataclass(frozen=True)
class LineMistake:
    """Why a line cannot be judged."""

    line: int
    what: str


def read_asked(
    source: str,
    verifier: str,
    *,
    check: str | None = None,
    role: Role | None = None,
    opened: bool = False,
    responses: bool = True,
    limit: int | None = None,
    mapper: str | None = None,
) -> Iterator[ResponseCheck | LineMistake]:
    """What each row of `source` asks of `verifier`, or why it cannot.

    `source` is `-` (JSON lines on standard input), a `.jsonl`, `.jsonl.gz` or `.parquet` file, or any source of rows;
    `mapper` turns what stands there into rows. `check` names the row's check whose reference is taken: by default the
    one that names `verifier`, or the only one. `opened`: completions follow a prompt that has opened the thinking.
    `responses`: rows must have one. Raises RowError where the source or the mapper is missing.
    """
    mapped = map_with(resolve_mapper(mapper) if mapper else None, mapper)
    for line, given in _numbered(source, limit):
        value = given if isinstance(given, UnreadableLine) else mapped(given)
        if isinstance(value, UnreadableLine):
            yield LineMistake(line, str(value))
            continue
        try:
            asked = _check(value, verifier, check, role)
            response = read_response(value, opened) if responses else None
            name = value.get("id")
            yield ResponseCheck(line, str(line) if name is None else str(name), value, asked, response)
        except RowError as error:
            yield LineMistake(line, str(error))


def _numbered(source: str, limit: int | None) -> Iterable[tuple[int, Any]]:
    if source == "-":
        return _first(parse_lines(sys.stdin.buffer), limit)
    if source.endswith((".jsonl.gz", ".json.gz")):
        return _first(_gunzipped(source), limit)
    return read_numbered(source, limit, 0)[1]


def _gunzipped(source: str) -> Iterator[tuple[int, Any]]:
    if not Path(source).is_file():
        raise RowError(f"{source}: there is no such file")
    try:
        with gzip.open(source) as file:
            yield from parse_lines(file)
    except (gzip.BadGzipFile, EOFError) as error:
        raise RowError(f"{source}: not a readable gzip file: {error}") from error


def _first(numbered: Iterable[tuple[int, Any]], limit: int | None) -> Iterator[tuple[int, Any]]:
    for count, one in enumerate(numbered):
        if limit is not None and count >= limit:
            return
        yield one


def _check(row: Row, verifier: str, named: str | None, role: Role | None) -> Check:
    """The check whose reference and role are taken, under the verifier's own name."""
    mistakes = [what for what in _mistakes(row) if what]
    if mistakes:
        raise RowError("; ".join(mistakes))
    checks = checks_of(row)
    wanted = named or verifier
    found = [check for check in checks if check.verifier == wanted]
    if not found and row.get("grade") and row["grade"]["verifier"] == wanted:
        found = [Check(**row["grade"])]
    if not found and named is not None:
        raise RowError(f"has no check `{named}`{did_you_mean(named, [check.verifier for check in checks])}")
    if not found and len(checks) > 1:
        names = ", ".join(check.verifier for check in checks)
        raise RowError(f"has several checks ({names}), none of them `{verifier}`: say which is meant with --check NAME")
    if not found and not checks and "reference" not in row:
        near = did_you_mean("reference", row, 0.8)
        if near:
            raise RowError(f"has no `reference`{near}")
    taken = found[0] if found else checks[0] if checks else Check(verifier, row.get("reference"))
    return Check(verifier, taken.reference, role or taken.role)


def _mistakes(row: Row) -> Iterator[str]:
    """What is wrong with the columns that are there; a row to verify needs neither prompt nor domain."""
    given = {"id": "?", "domain": "?", "prompt": "?", **{name: row[name] for name in row if row[name] is not None}}
    if not isinstance(given["id"], str):
        given["id"] = str(given["id"])
    if isinstance(given["prompt"], list) and given["prompt"] and _ends_with_assistant(given["prompt"]):
        given["prompt"] = "?"  # a whole conversation, as some data sets give
    yield from row_mistakes(given, "rl")


def _ends_with_assistant(messages: Sequence[Any]) -> bool:
    return isinstance(messages[-1], Mapping) and messages[-1].get("role") == "assistant"


def read_response(row: Row, opened: bool) -> Response:
    """The row's `response`, the raw completion or a list of messages, as a verifier gets it.

    Of messages the last one counts, the assistant's, with its `reasoning_content` where there is one; `finish` may
    stand beside them. Raises RowError saying what is wrong.
    """
    given = row.get("response")
    said: Any = row.get("finish") or "stop"
    if said not in get_args(Finish):
        raise RowError(f"`finish` is {said!r}; it is one of {', '.join(get_args(Finish))}")
    finish: Finish = said
    if isinstance(given, str):
        body = _ended(given)
        reasoning, answer = split_thinking(body, opened)
        messages: Sequence[Mapping[str, Any]] = ({"role": "assistant", "content": body},)
        return Response(given, answer.strip(), reasoning.strip(), finish, messages)
    if "response" not in row:
        raise RowError(f"has no `response`{did_you_mean('response', row)}")
    return _of_messages(given, opened, finish)


def _of_messages(messages: Any, opened: bool, finish: Finish) -> Response:
    if not isinstance(messages, list) or not messages or not all(isinstance(one, Mapping) for one in messages):
        raise RowError("`response` must be the completion's text or a list of messages")
    last = messages[-1]
    if last.get("role") != "assistant":
        raise RowError(f"the last message of `response` is the {last.get('role')}'s, and must be the assistant's")
    content, thought = last.get("content"), last.get("reasoning_content")
    if not isinstance(content, str | None) or not isinstance(thought, str | None):
        raise RowError("`content` and `reasoning_content` of the last message of `response` must be texts or null")
    text = "\n".join([*([_ended(content)] if content else []), *_calls(last.get("tool_calls"))])
    if thought is None:
        reasoning, answer = split_thinking(text, opened)
    else:
        reasoning, answer, text = thought, text, f"{OPEN}\n{thought}\n{CLOSE}\n\n{text}"
    return Response(text, answer.strip(), reasoning.strip(), finish, tuple(messages))


def _calls(calls: Any) -> Iterator[str]:
    """Structured calls as the `<tool_call>` blocks that a model writes."""
    for call in calls or ():
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or "name" not in function:
            raise RowError("`tool_calls` of the last message of `response` must be a list of calls with a `name`")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            with contextlib.suppress(ValueError):  # what is no JSON the verifier shall see as the model wrote it
                arguments = json.loads(arguments)
        yield f"<tool_call>\n{json.dumps({'name': function['name'], 'arguments': arguments})}\n</tool_call>"


def _ended(text: str) -> str:
    body = text.rstrip()
    for end in ENDS:
        if body.endswith(end):
            return body.removesuffix(end)
    return text
