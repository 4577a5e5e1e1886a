"""Answers that must be one JSON value of a schema."""

from __future__ import annotations

from typing import Any

import pytest

from qwq_rl.verifiers import Response, Verdict, load

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
    "schema", [None, "x", [], {"type": "integr"}, {"$ref": "http://127.0.0.1:9/schema.json"}, {"$ref": "#/$defs/gone"}]
)
def test_a_bad_schema_is_not_the_response_s_fault_and_nothing_is_fetched(schema: Any) -> None:
    verdict = said('{"age": 3}', schema)
    assert (verdict.score, verdict.status) == (None, "bad_reference")


def test_a_bad_schema_is_told_whatever_the_answer() -> None:
    assert said("no JSON", {"type": "integr"}).status == "bad_reference"
