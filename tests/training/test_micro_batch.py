"""Micro-batches hold every row that is needed once, and keep to their size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_rl.training.micro_batch import Extent, plan


def alone(*lengths: int) -> list[Extent]:
    return [Extent(length // 2, length - length // 2, key) for key, length in enumerate(lengths)]


@given(
    st.lists(st.tuples(st.integers(0, 300), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 700),
)
def test_a_plan_has_every_live_row_once_and_no_micro_batch_beyond_its_tokens(
    rows: list[tuple[int, bool]], tokens: int
) -> None:
    lengths, live = [length for length, _ in rows], [alive for _, alive in rows]

    planned = plan(alone(*lengths), live, tokens)
    taken = [row for part in planned for row in part]

    if any(live):
        assert sorted(taken) == [row for row, alive in enumerate(live) if alive]
    else:
        assert [lengths[row] for row in taken] == [min(lengths)]
    assert all(len(part) == 1 or len(part) * max(lengths[row] for row in part) <= tokens for part in planned)
    assert [lengths[row] for row in taken] == sorted((lengths[row] for row in taken), reverse=True)


def test_rows_of_like_length_share_a_micro_batch() -> None:
    found = plan(alone(3, 90, 4, 100, 2, 500), [True, True, True, True, False, True], 200)
    assert found == [[5], [3, 1], [2, 0]]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 60), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 400),
)
def test_with_shared_prompts_a_plan_counts_each_prompt_once(rows: list[tuple[int, int, bool]], tokens: int) -> None:
    extents, live = [Extent(10 * key, own, key) for key, own, _ in rows], [alive for _, _, alive in rows]

    planned = plan(extents, live, tokens, share=True)
    taken = [row for part in planned for row in part]

    assert sorted(taken) == [row for row, alive in enumerate(live) if alive] or not any(live)
    for part in planned:
        read = sum(extents[row].own for row in part) + sum(10 * key for key in {extents[row].key for row in part})
        assert len(part) == 1 or read <= tokens


def test_the_rows_of_a_prompt_stay_together_as_long_as_they_fit() -> None:
    extents = [Extent(20, own, key) for own, key in ((5, 1), (30, 2), (6, 1), (7, 2), (4, 1))]
    assert plan(extents, [True] * 5, 90, share=True) == [[1, 3, 2, 0], [4]]
    assert plan(extents, [True] * 5, 60, share=True) == [[1, 3], [2, 0, 4]]


def test_a_plan_without_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="no plan can be made"):
        plan([], [], 100)
    with pytest.raises(ValueError, match="no plan can be made"):
        plan(alone(1, 2), [True], 100)
    with pytest.raises(ValueError, match="no plan can be made"):
        plan(alone(1), [True], 0)
