"""A row (docs/contracts.md, "A row"): its columns, its checks, its prompt, and the mistakes that it can have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from qwq_rl.errors import close_to, did_you_mean

Row = dict[str, Any]
"""One problem, demonstration or preference. Columns that the contract does not name are kept."""

Role = Literal["score", "gate", "penalty"]
Kind = Literal["rl", "sft", "preference"]

REQUIRED: Mapping[Kind, tuple[str, ...]] = {
    "rl": ("id", "domain", "prompt"),
    "sft": ("id", "domain", "messages"),
    "preference": ("id", "prompt", "chosen", "rejected"),
}
CHECK_KEYS = ("verifier", "reference", "role")
MESSAGE_ROLES = ("system", "user", "assistant", "tool")
_TEXT = ("id", "domain", "chosen", "rejected")
_TEXT_OR_NULL = ("family", "environment", "solution")


@dataclass(frozen=True)
class Check:
    """One check of a row: which verifier judges the response, with which reference, in which role."""

    verifier: str
    reference: Any = None
    role: Role = "score"
    of_domain: bool = False
    """True if the recipe sets this check for all rows of the domain; False if the row itself names it."""


def checks_of(row: Mapping[str, Any]) -> list[Check]:
    """Return the checks that `row` names, including the shorthand `verifier` / `reference`.

    The list is empty for an open row, and for a row with only a `reference`, which is for its domain's single verifier.
    """
    if row.get("checks"):
        return [Check(**check) for check in row["checks"]]
    if row.get("verifier"):
        return [Check(row["verifier"], row.get("reference"))]
    return []


def grading_checks_of(row: Mapping[str, Any]) -> list[Check]:
    """Return the checks that evaluation uses for `row`: only its `grade` if it has one, else its checks."""
    return [Check(**row["grade"])] if row.get("grade") else checks_of(row)


def prompt_messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the prompt as a list of messages; a string is one user message."""
    prompt = row["prompt"]
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(message) for message in prompt]


def kind_of(row: Mapping[str, Any]) -> Kind:
    """Return the kind of row, judged by its columns; a misspelt `messages` counts too."""
    if "chosen" in row or "rejected" in row:
        return "preference"
    if "prompt" in row or "messages" not in row:
        return "rl" if "prompt" in row or not did_you_mean("messages", row) else "sft"
    return "sft"


def row_mistakes(row: Mapping[str, Any], kind: Kind) -> list[str]:
    """Return all mistakes of `row` as a row of `kind`. Each is a message that says what would be right."""
    missing = [name for name in REQUIRED[kind] if name not in row]
    if missing and kind_of(row) != kind:
        needed = ", ".join(f"`{name}`" for name in missing)
        # The row is of another kind, so further messages about missing columns would only mislead.
        return [f"this looks like a row of kind {kind_of(row)}; a row of kind {kind} is needed, with {needed}"]
    spare = [name for name in row if name not in REQUIRED[kind]]
    mistakes = [f"column `{name}` is missing{_spelling_hint(name, spare)}" for name in missing]
    mistakes += _text_mistakes(row, kind)
    if kind == "sft" and "messages" in row:
        mistakes += _conversation_mistakes(row["messages"], "messages", last=("assistant",))
    elif "prompt" in row:
        mistakes += _prompt_mistakes(row["prompt"])
    if kind == "rl":
        mistakes += _check_mistakes(row)
    mistakes += _tool_mistakes(row.get("tools"))
    return mistakes


def _spelling_hint(name: str, columns: Sequence[str]) -> str:
    close = close_to(name, columns)
    return (
        f": is it the column `{close}`?" if close else f" (the row has {_listed_columns(columns)})" if columns else ""
    )


def _listed_columns(columns: Sequence[str]) -> str:
    shown = ", ".join(columns[:8])
    return shown if len(columns) <= 8 else f"{shown} and {len(columns) - 8} more"


def _described(value: Any) -> str:
    """Describe a JSON value for a message: `17, a number`."""
    kinds = {
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    shown = repr(value)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return "null" if value is None else f"{shown}, {kinds.get(type(value), type(value).__name__)}"


def _text_mistakes(row: Mapping[str, Any], kind: Kind) -> Iterator[str]:
    for name in _TEXT:
        if name in REQUIRED[kind] and name in row and not (isinstance(row[name], str) and row[name]):
            yield f"`{name}` must be a string that is not empty, not {_described(row[name])}"
    for name in _TEXT_OR_NULL:
        if row.get(name) is not None and not isinstance(row[name], str):
            yield f"`{name}` must be a string or null, not {_described(row[name])}"


def _prompt_mistakes(prompt: Any) -> list[str]:
    if isinstance(prompt, str):
        return [] if prompt.strip() else ["`prompt` is empty"]
    return _conversation_mistakes(prompt, "prompt", last=("system", "user", "tool"))


def _conversation_mistakes(messages: Any, column: str, last: tuple[str, ...]) -> list[str]:
    if not isinstance(messages, list | tuple) or not messages:
        form = "a list of messages" + (" or one string" if column == "prompt" else "")
        return [f"`{column}` must be {form}, not {_described(messages)}"]
    mistakes = [
        f"`{column}[{index}]` {mistake}"
        for index, message in enumerate(messages)
        for mistake in _message_mistakes(message)
    ]
    # The last role is read only if all messages are well formed.
    if not mistakes and messages[-1]["role"] not in last:
        why = "there is nothing to learn from" if column == "messages" else "there is nothing left to answer"
        mistakes.append(f"the last of `{column}` is the {messages[-1]['role']}'s: {why}")
    return mistakes


def _message_mistakes(message: Any) -> Iterator[str]:
    if not isinstance(message, Mapping):
        yield f'must be {{"role": ..., "content": ...}}, not {_described(message)}'
        return
    role = message.get("role")
    if "role" not in message:
        yield f"has no `role`{did_you_mean('role', message)}"
    elif role not in MESSAGE_ROLES:
        hint = did_you_mean(str(role), MESSAGE_ROLES) or f"; it is one of {', '.join(MESSAGE_ROLES)}"
        yield f"has the unknown role {role!r}{hint}"
    content = message.get("content")
    # A message that only calls tools needs no content.
    tool_calls = role == "assistant" and message.get("tool_calls")
    if "content" not in message and not tool_calls:
        yield f"has no `content`{did_you_mean('content', message)}"
    elif not isinstance(content, str) and not (content is None and tool_calls):
        yield f"must have a string as `content`, not {_described(content)}"


def _check_mistakes(row: Mapping[str, Any]) -> Iterator[str]:
    checks = row.get("checks")
    if checks is not None and not isinstance(checks, list | tuple):
        yield f"`checks` must be a list of {{verifier, reference, role}}, not {_described(checks)}"
    elif checks:
        for index, check in enumerate(checks):
            yield from (f"`checks[{index}]` {mistake}" for mistake in _one_check_mistakes(check))
    if row.get("grade") is not None:
        yield from (f"`grade` {mistake}" for mistake in _one_check_mistakes(row["grade"]))
    yield from _shorthand_mistakes(row)


def _shorthand_mistakes(row: Mapping[str, Any]) -> Iterator[str]:
    verifier, spare = row.get("verifier"), [name for name in row if name not in CHECK_KEYS]
    if row.get("checks"):
        if verifier is not None:
            yield "has both `checks` and `verifier`: put the verifier into `checks`"
    elif verifier is not None:
        if not (isinstance(verifier, str) and verifier):
            yield f"`verifier` must be a verifier's name, not {_described(verifier)}"
        if "reference" not in row and close_to("reference", spare, 0.8):
            yield f"`verifier` has no `reference`{did_you_mean('reference', spare)}"
    else:
        # A misspelt column would be kept as any other, and the row would silently count as an open one.
        for name in ("checks", "verifier"):
            column = None if name in row else close_to(name, spare, 0.8)
            if column:
                yield f"unknown column `{column}`; did you mean `{name}`?"


def _one_check_mistakes(check: Any) -> Iterator[str]:
    if not isinstance(check, Mapping):
        yield f"must be {{verifier, reference, role}}, not {_described(check)}"
        return
    for key in check:
        if key not in CHECK_KEYS:
            yield f"has the unknown key `{key}`{did_you_mean(key, CHECK_KEYS)}"
    if not (isinstance(check.get("verifier"), str) and check["verifier"]):
        yield "needs `verifier`, the name of a verifier"
    role = check.get("role", "score")
    if role not in get_args(Role):
        hint = did_you_mean(str(role), get_args(Role)) or f"; it is one of {', '.join(get_args(Role))}"
        yield f"has the unknown role {role!r}{hint}"


def _tool_mistakes(tools: Any) -> Iterator[str]:
    if tools is None:
        return
    if not isinstance(tools, list | tuple):
        yield f"`tools` must be a list of function schemas or null, not {_described(tools)}"
        return
    for index, tool in enumerate(tools):
        # A tool is given either as the schema itself or wrapped as {"type": "function", "function": schema}.
        schema = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not (isinstance(schema, Mapping) and isinstance(schema.get("name"), str)):
            yield f"`tools[{index}]` must be a function schema with a `name`, not {_described(tool)}"
