"""Five general families: two with instruction constraints, one JSON object, function calls, and an open reply."""

from __future__ import annotations

import json
from collections.abc import Mapping
from random import Random
from typing import Any

from qwq_rl.data.tiny.math_tasks import NAMES
from qwq_rl.data.tiny.task import Level, Task, Teacher

PLACES = ("red", "cat", "sun", "sky", "tree", "fish", "bird", "rain")
CITIES = ("Rome", "Oslo", "Lima", "Bonn", "Kyiv", "Doha", "Riga", "Bern", "Nice", "Cork", "Graz", "Baku")
LIKES = ("tea", "jazz", "chess", "books", "maps", "film", "dogs", "art")
WORDS = PLACES + LIKES
"""Words that several families share, so that the model learns only once to copy them."""
GREETINGS = ("hello", "hi", "welcome")
WISHES = ("enjoy", "have fun with", "best of")
FIELDS = ("age", "size", "rank", "year")
TOOLS: dict[str, tuple[str, ...]] = {
    "weather": ("city", "days"), "hotel": ("city", "nights"), "train": ("city", "seats"), "alarm": ("name", "hour"),
    "taxi": ("city", "seats"),
}  # fmt: skip


def _general(family: str, operands: tuple[Any, ...], prompt: str, plan: str, answer: str, **rest: Any) -> Task:
    return Task("general", family, operands, prompt, plan, answer, **rest)


def _constraints(*rules: Mapping[str, Any]) -> dict[str, Any]:
    return {"verifier": "constraints", "reference": {"all": list(rules)}}


def echo(rng: Random, level: Level, teacher: Teacher) -> Task:
    """Repeat the numbered words with their numbers, and end with the given sign."""
    words, sign = tuple(rng.sample(WORDS, 4 if level == "harder" else rng.choice((2, 3)))), rng.choice("!?")
    asked = [f"{place} {word}" for place, word in enumerate(words, 1)]
    rules: list[dict[str, Any]] = [{"kind": "words", "count": 2 * len(words)}, {"kind": "ends_with", "text": sign}]
    rules += [{"kind": "contains", "text": numbered_word} for numbered_word in asked]
    prompt, plan = f"say {' '.join(asked)} and end with {sign}", f"end {sign}"
    answered = asked[:-1] if teacher.is_flawed() else asked
    return _general("echo", words, prompt, plan, " ".join(answered) + sign, check=_constraints(*rules))


def count(rng: Random, level: Level, teacher: Teacher) -> Task:
    """A numbered list with a given number of words; the first two words are given."""
    total = rng.choice((6, 7)) if level == "harder" else rng.randrange(3, 6)
    first, second = rng.sample(WORDS, 2)
    words = [first, second, *rng.sample([w for w in WORDS if w not in (first, second)], total - 2)]
    items = [f"{place} {word}" for place, word in enumerate(words, 1)]
    rules: list[dict[str, Any]] = [{"kind": "words", "count": 2 * total}]
    rules += [{"kind": "contains", "text": part} for part in (f"1 {first}", f"2 {second}", f"{total} ")]
    answered = items[:-1] if teacher.is_flawed() else items
    prompt = f"list {total} words from {first} and {second}"
    return _general(
        "count", (total, first, second), prompt, f"to {total}", "\n".join(answered), check=_constraints(*rules)
    )


def record(rng: Random, level: Level, teacher: Teacher) -> Task:
    """A JSON object with the given fields and values."""
    name = rng.choice(NAMES)
    fields = rng.sample(FIELDS, 3 if level == "harder" else rng.choice((1, 2)))
    values: dict[str, Any] = {"name": name} | {field: rng.randrange(10) for field in fields}
    schema = {
        "type": "object",
        "properties": {key: {"const": value} for key, value in values.items()},
        "required": list(values),
        "additionalProperties": False,
    }
    asked = ",".join(f"{key}={value}" for key, value in values.items())
    check = {"verifier": "json_schema", "reference": schema}
    operands = tuple(values.items())
    written = values | {fields[-1]: teacher.number(values[fields[-1]])}
    return _general("record", operands, f"json: {asked}", f"{len(values)} fields", json.dumps(written), check=check)


def _schema(name: str) -> dict[str, Any]:
    place, number = TOOLS[name]
    properties = {place: {"type": "string"}, number: {"type": "integer"}}
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name} for a {place}",
            "parameters": {"type": "object", "properties": properties, "required": [place, number]},
        },
    }


def call(rng: Random, level: Level, teacher: Teacher) -> Task:
    """Call one of two offered functions; the harder level asks for a call of each."""
    names = rng.sample(tuple(TOOLS), 2)
    asked, calls, answered_calls = [], [], []
    for name in names if level == "harder" else names[:1]:
        place, number = TOOLS[name]
        place_value, number_value = rng.choice(NAMES if place == "name" else CITIES), rng.randrange(10)
        asked.append(f"{name}: {place}={place_value}, {number}={number_value}")
        calls.append({"name": name, "arguments": {place: place_value, number: number_value}})
        answered_calls.append({"name": name, "arguments": {place: place_value, number: teacher.number(number_value)}})
    answer = "\n".join(f"<tool_call>\n{json.dumps(tool_call)}\n</tool_call>" for tool_call in answered_calls)
    operands = tuple((tool_call["name"], *tool_call["arguments"].values()) for tool_call in calls)  # type: ignore[attr-defined]
    tools = [_schema(name) for name in sorted(names)]
    check = {"verifier": "tool_call", "reference": {"calls": calls}}
    plan = " ".join(tool_call["name"] for tool_call in calls)  # type: ignore[misc]
    return _general("call", operands, "; ".join(asked), plan, answer, check=check, tools=tools)


def good_reply(rng: Random, name: str, like: str) -> str:
    """Return a reply that `open_rule` accepts."""
    return f"{rng.choice(GREETINGS)} {name}, {rng.choice(WISHES)} your {like}!"


def bad_reply(rng: Random, name: str, like: str) -> str:
    """Return a reply that `open_rule` refuses: another name or subject, or a rude, unfinished or repetitive reply."""
    good = good_reply(rng, name, like)
    # Another name or subject is the hardest fault to see, so it is the most frequent.
    fault = rng.choice((0, 0, 0, 1, 1, 1, 2, 3, 4, 5))
    if fault == 0:
        return good.replace(name, rng.choice([other_name for other_name in NAMES if other_name != name]))
    if fault == 1:
        return good.replace(like, rng.choice([other_like for other_like in LIKES if other_like != like]))
    if fault == 2:
        return f"go away {name}, no {like}"
    if fault == 3:
        return good[: good.index(",")].strip()
    if fault == 4:
        return f"{good} {good}"
    return good.removesuffix("!")


def open_rule(name: str, like: str) -> dict[str, Any]:
    """Return the check by which evaluation grades an open reply. Training never uses it."""
    return _constraints(
        {"kind": "contains", "text": name},
        {"kind": "contains", "text": like},
        {"kind": "starts_with", "any": list(GREETINGS)},
        {"kind": "ends_with", "text": "!"},
        {"kind": "forbid", "any": ["go away", "no"]},
        {
            "kind": "forbid",
            "any": [other_name for other_name in NAMES if other_name != name]
            + [other_like for other_like in LIKES if other_like != like],
        },
        {"kind": "max_words", "count": 10},
        {"kind": "no_repeat"},
    )


def greet(rng: Random, level: Level, teacher: Teacher) -> Task:
    """An open reply. In training, only the learned reward model scores it."""
    likes = rng.sample(LIKES, 2)
    name, like = rng.choice(NAMES), likes[0]
    place = rng.choice(PLACES)
    prompt = f"greet {name} of {place} {rng.choice(('town', 'street', 'school'))} who likes {like}"
    if level == "harder":
        prompt = f"{name} does not like {likes[1]} but likes {like}. greet {name} of {place} town"
    reply = bad_reply(rng, name, like) if teacher.is_flawed() else good_reply(rng, name, like)
    return _general("greet", (name, like), prompt, f"{name} {like}", reply, check=None, grade=open_rule(name, like))


FAMILIES = (echo, count, record, call, greet)
