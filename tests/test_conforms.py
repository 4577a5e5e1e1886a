"""Holding values against a schema: what passes, and what is said of the rest."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

import pytest
from conforms import conforms


class Inner(TypedDict):
    share: float


class Outer(TypedDict):
    name: str
    count: int
    kind: Literal["a", "b"]
    inner: Inner | None
    parts: dict[str, list[Inner]]
    note: NotRequired[str]


GOOD: dict[str, Any] = {"name": "x", "count": 2, "kind": "a", "inner": None, "parts": {"p": [{"share": 1}]}}


@pytest.mark.parametrize("change", [{}, {"note": "n"}, {"inner": {"share": 0.5}}, {"parts": {}}])
def test_a_value_of_the_schema_conforms(change: dict[str, Any]) -> None:
    assert conforms({**GOOD, **change}, Outer) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 3}, "name is 3, no str"),
        ({"count": True}, "count is True, no int"),
        ({"count": 2.0}, "count is 2.0, no int"),
        ({"kind": "c"}, "kind is 'c', none of 'a', 'b'"),
        ({"inner": {"share": "much"}}, "inner.share is 'much', no float"),
        ({"inner": {"share": False}}, "inner.share is False, no float"),
        ({"inner": []}, "inner is [], no Inner"),
        ({"parts": {"p": [{"share": 1}, {}]}}, "parts.p[1].share is missing"),
        ({"parts": {"p": {}}}, "parts.p is {}, no list"),
        ({"nmae": "x"}, "nmae is not part of Outer"),
    ],
)
def test_a_departure_is_named_with_its_place(change: dict[str, Any], said: str) -> None:
    assert conforms({**GOOD, **change}, Outer) == [said]


def test_a_missing_field_is_named() -> None:
    assert conforms({key: GOOD[key] for key in GOOD if key != "kind"}, Outer) == ["kind is missing"]
