"""What a row is (docs/contracts.md, "A row"): its checks, its prompt, and every mistake that one row can have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from qwq_rl.errors import close_to, did_you_mean

Row = dict[str, Any]
"""One problem, demonstration or preference; columns that the contract does not name pass through."""

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
    """One verifier's question about a row."""

    verifier: str
    reference: Any = None
    role: Role = "score"
    of_domain: bool = False
    """Whether the recipe asks it of all rows of the domain, rather than the row itself."""


def checks_of(row: Mapping[str, Any]) -> list[Check]:
    """Return the checks that `row` names, the `verifier` / `reference` shorthand included.

    Empty for an open row, and for one whose `reference` alone is left to its domain's single verifier.
    """
    if row.get("checks"):
        return [Check(**check) for check in row["checks"]]
    if row.get("verifier"):
        return [Check(row["verifier"], row.get("reference"))]
    return []


def grading_checks_of(row: Mapping[str, Any]) -> list[Check]:
    """Return the checks that evaluation grades `row` by: its `grade` alone where it has one, else its checks."""
    return [Check(**row["grade"])] if row.get("grade") else checks_of(row)


def prompt_messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the prompt as a list of messages; a string is one user message."""
    prompt = row["prompt"]
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(message) for message in prompt]


def kind_of(row: Mapping[str, Any]) -> Kind:
    """Tell the kind of row from its columns: the kind whose own columns are there, or nearly there."""
    if "chosen" in row or "rejected" in row:
        return "preference"
    if "prompt" in row or "messages" not in row:
        return "rl" if "prompt" in row or not did_you_mean("messages", row) else "sft"
    return "sft"


def row_mistakes(row: Mapping[str, Any], kind: Kind) -> list[str]:
    """Return everything that is wrong with `row` as a row of `kind`, each a sentence that says what would be right."""
    missing = [name for name in REQUIRED[kind] if name not in row]
    if missing and kind_of(row) != kind:
        needed = ", ".join(f"`{name}`" for name in missing)
        return [f"this looks like a row of kind {kind_of(row)}; a row of kind {kind} is needed, with {needed}"]
    spare = [name for name in row if name not in REQUIRED[kind]]
    found = [f"column `{name}` is missing{_spelt(name, spare)}" for name in missing]
    found += _text_mistakes(row, kind)
    if kind == "sft" and "messages" in row:
        found += _conversation_mistakes(row["messages"], "messages", last=("assistant",))
    elif "prompt" in row:
        found += _prompt_mistakes(row["prompt"])
    if kind == "rl":
        found += _check_mistakes(row)
    found += _tool_mistakes(row.get("tools"))
    return found


def _spelt(name: str, columns: Sequence[str]) -> str:
    close = close_to(name, columns)
    return f": is it the column `{close}`?" if close else f" (the row has {_names(columns)})" if columns else ""


def _names(columns: Sequence[str]) -> str:
    shown = ", ".join(columns[:8])
    return shown if len(columns) <= 8 else f"{shown} and {len(columns) - 8} more"


def _is(value: Any) -> str:
    """Name a JSON value for a message: `17, a number`."""
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
            yield f"`{name}` must be a string that is not empty, not {_is(row[name])}"
    for name in _TEXT_OR_NULL:
        if row.get(name) is not None and not isinstance(row[name], str):
            yield f"`{name}` must be a string or null, not {_is(row[name])}"


def _prompt_mistakes(prompt: Any) -> list[str]:
    if isinstance(prompt, str):
        return [] if prompt.strip() else ["`prompt` is empty"]
    return _conversation_mistakes(prompt, "prompt", last=("system", "user", "tool"))


def _conversation_mistakes(messages: Any, column: str, last: tuple[str, ...]) -> list[str]:
    if not isinstance(messages, list | tuple) or not messages:
        form = "a list of messages" + (" or one string" if column == "prompt" else "")
        return [f"`{column}` must be {form}, not {_is(messages)}"]
    found = [f"`{column}[{at}]` {what}" for at, message in enumerate(messages) for what in _message_mistakes(message)]
    if not found and messages[-1]["role"] not in last:
        why = "there is nothing to learn from" if column == "messages" else "there is nothing left to answer"
        found.append(f"the last of `{column}` is the {messages[-1]['role']}'s: {why}")
    return found


def _message_mistakes(message: Any) -> Iterator[str]:
    if not isinstance(message, Mapping):
        yield f'must be {{"role": ..., "content": ...}}, not {_is(message)}'
        return
    role = message.get("role")
    if "role" not in message:
        yield f"has no `role`{did_you_mean('role', message)}"
    elif role not in MESSAGE_ROLES:
        hint = did_you_mean(str(role), MESSAGE_ROLES) or f"; it is one of {', '.join(MESSAGE_ROLES)}"
        yield f"has the unknown role {role!r}{hint}"
    content = message.get("content")
    calls = role == "assistant" and message.get("tool_calls")
    if "content" not in message and not calls:
        yield f"has no `content`{did_you_mean('content', message)}"
    elif not isinstance(content, str) and not (content is None and calls):
        yield f"must have a string as `content`, not {_is(content)}"


def _check_mistakes(row: Mapping[str, Any]) -> Iterator[str]:
    checks = row.get("checks")
    if checks is not None and not isinstance(checks, list | tuple):
        yield f"`checks` must be a list of {{verifier, reference, role}}, not {_is(checks)}"
    elif checks:
        for at, check in enumerate(checks):
            yield from (f"`checks[{at}]` {what}" for what in _one_check(check))
    if row.get("grade") is not None:
        yield from (f"`grade` {what}" for what in _one_check(row["grade"]))
    yield from _shorthand_mistakes(row)


def _shorthand_mistakes(row: Mapping[str, Any]) -> Iterator[str]:
    verifier, spare = row.get("verifier"), [name for name in row if name not in CHECK_KEYS]
    if row.get("checks"):
        if verifier is not None:
            yield "has both `checks` and `verifier`: put the verifier into `checks`"
    elif verifier is not None:
        if not (isinstance(verifier, str) and verifier):
            yield f"`verifier` must be a verifier's name, not {_is(verifier)}"
        if "reference" not in row and close_to("reference", spare, 0.8):
            yield f"`verifier` has no `reference`{did_you_mean('reference', spare)}"
    else:
        # A misspelt column would pass through, and the row would silently train as an open one.
        for name in ("checks", "verifier"):
            column = None if name in row else close_to(name, spare, 0.8)
            if column:
                yield f"unknown column `{column}`; did you mean `{name}`?"


def _one_check(check: Any) -> Iterator[str]:
    if not isinstance(check, Mapping):
        yield f"must be {{verifier, reference, role}}, not {_is(check)}"
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
        yield f"`tools` must be a list of function schemas or null, not {_is(tools)}"
        return
    for at, tool in enumerate(tools):
        schema = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not (isinstance(schema, Mapping) and isinstance(schema.get("name"), str)):
            yield f"`tools[{at}]` must be a function schema with a `name`, not {_is(tool)}"
