"""Micro-batches hold every row that is needed once, and keep to their size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_rl.objective.batches import plan


@given(
    st.lists(st.tuples(st.integers(0, 300), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 700),
)
def test_a_plan_has_every_live_row_once_and_no_micro_batch_beyond_its_tokens(
    rows: list[tuple[int, bool]], tokens: int
) -> None:
    lengths, live = [length for length, _ in rows], [alive for _, alive in rows]

    planned = plan(lengths, live, tokens)
    taken = [row for part in planned for row in part]

    if any(live):
        assert sorted(taken) == [row for row, alive in enumerate(live) if alive]
    else:
        assert [lengths[row] for row in taken] == [min(lengths)]
    assert all(len(part) == 1 or len(part) * max(lengths[row] for row in part) <= tokens for part in planned)
    assert [lengths[row] for row in taken] == sorted((lengths[row] for row in taken), reverse=True)


def test_rows_of_like_length_share_a_micro_batch() -> None:
    assert plan([3, 90, 4, 100, 2, 500], [True, True, True, True, False, True], 200) == [[5], [3, 1], [2, 0]]


def test_a_plan_without_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="no plan can be made"):
        plan([], [], 100)
    with pytest.raises(ValueError, match="no plan can be made"):
        plan([1, 2], [True], 100)
