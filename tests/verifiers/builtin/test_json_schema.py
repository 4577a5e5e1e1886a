"""Answers that must be one JSON value of a schema."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq_rl.verifiers import Response, Verdict, load
from qwq_rl.verifiers.builtin.json_text import NotJson, canonical, parse_one
from qwq_rl.verifiers.runner.judge import judge

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}, "required": ["age"]}


def said(answer: str, schema: Any = SCHEMA) -> Verdict:
    verdict = load("json_schema")({"reference": schema}, Response(text=answer, answer=answer))
    assert isinstance(verdict, Verdict)
    return verdict


@pytest.mark.parametrize("answer", ['{"age": 3}', ' {"age":3}\n', '```json\n{"age": 3}\n```', '```\n{"age": 3}\n```'])
def test_one_value_fenced_or_not_passes(answer: str) -> None:
    assert said(answer).score == 1.0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{"age": "3"}', "$.age: '3' is not of type 'integer'"),
        ("{}", "'age' is a required property"),
        ('{"age": 3} {"age": 4}', "Extra data"),
        ('here you are: {"age": 3}', "not one JSON value"),
        ('{"age": 3', "not one JSON value"),
        ('{"age": NaN}', "NaN is not JSON"),
        ('{"age": 1e999}', "too large"),
        ('{"age": 3, "age": 4}', "the key 'age' stands twice"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 150 + "]" * 150, "nested too deeply"),
        ('{"age": "\\ud800"}', "half a surrogate pair"),
        ("9" * 10_000, "too many digits"),
        ('```python\n{"age": 3}\n```', "not one JSON value"),
    ],
)
def test_a_wrong_answer_says_why(answer: str, reason: str) -> None:
    verdict = said(answer)
    assert (verdict.score, verdict.status) == (0.0, "wrong")
    assert reason in verdict.reason


def test_numbers_that_break_the_checker_s_arithmetic_are_wrong() -> None:
    assert said("1" * 400, {"multipleOf": 0.1}).score == 0.0


@pytest.mark.parametrize(
    "schema",
    [
        None,
        "x",
        [],
        {"type": "integr"},
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"$ref": "#/$defs/gone"},
        {"$schema": []},
        {"properties": {"age": {"pattern": "("}}},
        {"patternProperties": {"(": {}}},
    ],
)
def test_a_bad_schema_is_not_the_response_s_fault_and_nothing_is_fetched(schema: Any) -> None:
    verdict = said('{"age": 3}', schema)
    assert (verdict.score, verdict.status) == (None, "bad_reference")


def test_a_bad_schema_is_told_whatever_the_answer() -> None:
    assert said("no JSON", {"type": "integr"}).status == "bad_reference"


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("date", "2026-02-28", "2026-02-30"),
        ("date-time", "2026-02-28T23:59:59Z", "2026-02-28 23:59"),
        ("date-time", "2026-02-28t23:59:59.5+01:00", "2026-02-28T25:00:00Z"),
        ("time", "23:59:59Z", "23:59:59"),
        ("email", "a@b.org", "ab.org"),
        ("ipv4", "127.0.0.1", "127.0.0.256"),
        ("ipv6", "::1", "1::1::1"),
        ("uri", "https://example.org/a", "example"),
        ("hostname", "a-b.example.org", "-a.org"),
        ("uuid", "12345678-1234-1234-1234-123456789abc", "1234"),
        ("regex", "a+", "("),
    ],
)
def test_formats_count(name: str, right: str, wrong: str) -> None:
    assert said(json.dumps(right), {"format": name}).score == 1.0
    assert said(json.dumps(wrong), {"format": name}).score == 0.0
    assert said("3", {"format": name}).score == 1.0


@pytest.mark.slow
def test_a_pattern_that_takes_for_ever_is_ended_and_no_way_out() -> None:
    schema = {"items": {"pattern": "^(a|aa)+$"}}
    answers = ['["aaa"]', json.dumps(["a" * 60 + "!"]), '["b"]']
    items = [({"reference": schema}, Response(text=answer, answer=answer)) for answer in answers]
    started = time.monotonic()
    verdicts = judge(load("json_schema"), items)
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 0.0]
    assert verdicts[1].status == "timeout"
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    "answer",
    [
        "[" * 500_000,
        '{"a":' * 200_000,
        "[" + "1," * 400_000 + "1]",
        "[" + '"",' * 300_000 + "[]]",
        '"' + "\\" * 1_000_000,
    ],
    ids=["brackets", "objects", "numbers", "strings", "escapes"],
)
def test_large_answers_are_judged_in_time(answer: str) -> None:
    started = time.process_time()
    assert said(answer, {"items": {"type": "null"}}).score == 0.0
    assert time.process_time() - started < 5


def test_many_keys_with_one_twice_are_read_in_time() -> None:
    keys = ",".join(f'"{number}":1' for number in range(50_000))
    started = time.process_time()
    with pytest.raises(NotJson, match="stands twice"):
        parse_one(f'{{{keys},"49999":2}}')
    assert time.process_time() - started < 5


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@settings(max_examples=100, deadline=None)
@given(values)
def test_what_json_writes_is_read_back(value: Any) -> None:
    assert canonical(parse_one(json.dumps(value))) == canonical(value)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='{}[]",:0123456789eE+-.\\udtrfalsn ', max_size=40))
def test_nothing_is_read_otherwise_than_json_reads_it(text: str) -> None:
    with contextlib.suppress(NotJson):
        assert canonical(parse_one(text)) == canonical(json.loads(text))
