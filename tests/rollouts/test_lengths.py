from __future__ import annotations

import pytest

from qwq_rl.rollouts.collect import length_limit


def test_the_limit_grows_linearly_from_the_first_update_and_then_stays() -> None:
    assert [length_limit(update, 100, 20, 4) for update in range(1, 8)] == [20, 40, 60, 80, 100, 100, 100]


def test_the_limit_is_rounded_down_to_whole_tokens() -> None:
    assert [length_limit(update, 10, 5, 3) for update in range(1, 5)] == [5, 6, 8, 10]


@pytest.mark.parametrize(("start", "over"), [(None, 4), (20, 0)])
def test_without_a_curriculum_the_limit_is_the_longest(start: int | None, over: int) -> None:
    assert length_limit(1, 100, start, over) == 100


@pytest.mark.parametrize(("update", "start", "over"), [(0, 20, 4), (1, 20, -1), (1, 101, 4), (1, 0, 4)])
def test_what_is_no_curriculum_is_refused(update: int, start: int, over: int) -> None:
    with pytest.raises(ValueError, match=r"must lie|count from 1"):
        length_limit(update, 100, start, over)
