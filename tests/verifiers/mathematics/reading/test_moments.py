"""Times of the day and dates in their spellings."""

from __future__ import annotations

import pytest

from qwq_rl.verifiers.mathematics.reading.moments import agree, moment

SAME = [
    ("3:30 PM", "3{:}30 p.m.", "15:30", "3:30pm"),
    ("12:00 noon", "noon", "12 PM", "12:00 p.m."),
    ("midnight", "12 AM", "0:00"),
    ("July 4", "July 4th", "4 July", "the 4th of July", "7月4日"),
    ("March 15, 2024", "15 March 2024", "2024-03-15", "Mar. 15, 2024", "2024年3月15日"),
]


@pytest.mark.parametrize("spellings", SAME)
def test_spellings_of_one_moment_agree(spellings: tuple[str, ...]) -> None:
    first = moment(spellings[0])
    assert first is not None
    found = [moment(text) for text in spellings]
    assert [text for text, one in zip(spellings, found, strict=True) if one is None or not agree(first, one)] == []


@pytest.mark.parametrize(("one", "other"), [("3:30 AM", "15:30"), ("July 4", "July 5"), ("July 4", "July 4, 2024")])
def test_other_moments_differ(one: str, other: str) -> None:
    left, right = moment(one), moment(other)
    assert left is not None
    assert right is not None
    assert agree(left, right) is False


@pytest.mark.parametrize("text", ["3:30", "03/04/2024", "13:75", "July 40", "3", "25:10 PM", "May"])
def test_what_is_open_or_impossible_is_text(text: str) -> None:
    assert moment(text) is None


def test_two_clocks_may_be_ratios() -> None:
    left, right = moment("16:20"), moment("20:25")
    assert left is not None
    assert right is not None
    assert agree(left, right) is None
