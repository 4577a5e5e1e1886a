"""Reads rows with responses for `qwq-rl verify`: which check of each row is judged, and every mistake with its line."""

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
"""Special tokens that end a completion and are not part of the answer."""


@dataclass(frozen=True)
class ResponseCheck:
    """One row, and the one of its checks that is judged."""

    line: int
    id: str
    """The row's own id, else its line number."""
    row: Row
    check: Check
    response: Response | None
    """None if responses were not requested."""


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
    """Yield the check that `verifier` makes for each row of `source`, or why the line cannot be judged.

    `source` is `-` (JSON lines on standard input), a `.jsonl`, `.jsonl.gz` or `.parquet` file, or any source of rows;
    `mapper` turns its lines into rows. `check` names the check of a row whose reference is used; by default it is the
    one that names `verifier`, or the only one. `opened`: completions follow a prompt that has opened the thinking.
    `responses`: every row must have one. Raises RowError if the source or the mapper does not exist.
    """
    mapped = map_with(resolve_mapper(mapper) if mapper else None, mapper)
    for line, raw in _numbered(source, limit):
        row = raw if isinstance(raw, UnreadableLine) else mapped(raw)
        if isinstance(row, UnreadableLine):
            yield LineMistake(line, str(row))
            continue
        try:
            row_check = _check(row, verifier, check, role)
            response = read_response(row, opened) if responses else None
            row_id = row.get("id")
            yield ResponseCheck(line, str(line) if row_id is None else str(row_id), row, row_check, response)
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
    for count, line in enumerate(numbered):
        if limit is not None and count >= limit:
            return
        yield line


def _check(row: Row, verifier: str, named: str | None, role: Role | None) -> Check:
    """The check whose reference and role are used, with `verifier` as its name. Raises RowError."""
    mistakes = [text for text in _mistakes(row) if text]
    if mistakes:
        raise RowError("; ".join(mistakes))
    checks = checks_of(row)
    check_name = named or verifier
    matching = [check for check in checks if check.verifier == check_name]
    # The grade of a row may name the verifier where its checks do not.
    if not matching and row.get("grade") and row["grade"]["verifier"] == check_name:
        matching = [Check(**row["grade"])]
    if not matching and named is not None:
        raise RowError(f"has no check `{named}`{did_you_mean(named, [check.verifier for check in checks])}")
    if not matching and len(checks) > 1:
        names = ", ".join(check.verifier for check in checks)
        raise RowError(f"has several checks ({names}), none of them `{verifier}`: say which is meant with --check NAME")
    if not matching and not checks and "reference" not in row:
        # A reference is optional, so only a name that is nearly `reference` (0.8) counts as misspelt.
        suggestion = did_you_mean("reference", row, 0.8)
        if suggestion:
            raise RowError(f"has no `reference`{suggestion}")
    taken = matching[0] if matching else checks[0] if checks else Check(verifier, row.get("reference"))
    return Check(verifier, taken.reference, role or taken.role)


def _mistakes(row: Row) -> Iterator[str]:
    """Yield what is wrong with the columns of a row. A row to verify needs no id, prompt or domain."""
    columns = {"id": "?", "domain": "?", "prompt": "?", **{name: row[name] for name in row if row[name] is not None}}
    if not isinstance(columns["id"], str):
        columns["id"] = str(columns["id"])
    if isinstance(columns["prompt"], list) and columns["prompt"] and _ends_with_assistant(columns["prompt"]):
        columns["prompt"] = "?"  # a whole conversation, as in some data sets
    yield from row_mistakes(columns, "rl")


def _ends_with_assistant(messages: Sequence[Any]) -> bool:
    return isinstance(messages[-1], Mapping) and messages[-1].get("role") == "assistant"


def read_response(row: Row, opened: bool) -> Response:
    """Read the row's `response`, a raw completion or a list of messages, in the form that a verifier gets.

    Of a list, the last message counts: it must be the assistant's and may have `reasoning_content`. The row may also
    have `finish`. Raises RowError, which says what is wrong.
    """
    raw = row.get("response")
    raw_finish: Any = row.get("finish") or "stop"
    if raw_finish not in get_args(Finish):
        raise RowError(f"`finish` is {raw_finish!r}; it is one of {', '.join(get_args(Finish))}")
    finish: Finish = raw_finish
    if isinstance(raw, str):
        body = _without_end_token(raw)
        reasoning, answer = split_thinking(body, opened)
        messages: Sequence[Mapping[str, Any]] = ({"role": "assistant", "content": body},)
        return Response(raw, answer.strip(), reasoning.strip(), finish, messages)
    if "response" not in row:
        raise RowError(f"has no `response`{did_you_mean('response', row)}")
    return _of_messages(raw, opened, finish)


def _of_messages(messages: Any, opened: bool, finish: Finish) -> Response:
    if not isinstance(messages, list) or not messages or not all(isinstance(message, Mapping) for message in messages):
        raise RowError("`response` must be the completion's text or a list of messages")
    last = messages[-1]
    if last.get("role") != "assistant":
        raise RowError(f"the last message of `response` is the {last.get('role')}'s, and must be the assistant's")
    content, thought = last.get("content"), last.get("reasoning_content")
    if not isinstance(content, str | None) or not isinstance(thought, str | None):
        raise RowError("`content` and `reasoning_content` of the last message of `response` must be texts or null")
    text = "\n".join([*([_without_end_token(content)] if content else []), *_calls(last.get("tool_calls"))])
    if thought is None:
        reasoning, answer = split_thinking(text, opened)
    else:
        reasoning, answer, text = thought, text, f"{OPEN}\n{thought}\n{CLOSE}\n\n{text}"
    return Response(text, answer.strip(), reasoning.strip(), finish, tuple(messages))


def _calls(calls: Any) -> Iterator[str]:
    """Yield structured calls as the `<tool_call>` blocks that a model writes."""
    for call in calls or ():
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or "name" not in function:
            raise RowError("`tool_calls` of the last message of `response` must be a list of calls with a `name`")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            with contextlib.suppress(ValueError):  # arguments that are no JSON stay as the model wrote them
                arguments = json.loads(arguments)
        yield f"<tool_call>\n{json.dumps({'name': function['name'], 'arguments': arguments})}\n</tool_call>"


def _without_end_token(text: str) -> str:
    """The text without one of ENDS at its end; unchanged if there is none."""
    body = text.rstrip()
    for end in ENDS:
        if body.endswith(end):
            return body.removesuffix(end)
    return text
