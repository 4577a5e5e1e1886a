"""The loss of an update is the same however its rows are cut up, and no domain outweighs another by being long."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwq_rl.algorithms.losses import row_weights

ONE = torch.ones(1)
KINDS: list[tuple[Any, float | None]] = [
    ("sequence_mean", None),
    ("sequence_sum", None),
    ("token_mean", None),
    ("constant", 24.0),
]


def of_one(lengths: list[int], kind: Any, constant: float | None = None) -> list[float]:
    return row_weights(torch.tensor(lengths), torch.zeros(len(lengths), dtype=torch.long), ONE, kind, constant).tolist()


def test_each_kind_divides_by_what_it_says() -> None:
    assert of_one([1, 4, 5], "sequence_mean") == pytest.approx([1 / 3, 1 / 12, 1 / 15])
    assert of_one([1, 4, 5], "sequence_sum") == pytest.approx([1 / 3] * 3)
    assert of_one([1, 4, 5], "token_mean") == pytest.approx([0.1] * 3)
    assert of_one([1, 4, 5], "constant", 3 * 8.0) == pytest.approx([1 / 24] * 3)


@pytest.mark.parametrize(("kind", "constant"), KINDS)
def test_a_row_without_a_token_counts_nothing_and_is_counted_as_a_row(kind: Any, constant: float | None) -> None:
    weights = of_one([0, 2, 2], kind, constant)

    assert weights[0] == 0
    assert weights[1:] == pytest.approx(
        {
            "sequence_mean": [1 / 6] * 2,
            "sequence_sum": [1 / 3] * 2,
            "token_mean": [1 / 4] * 2,
            "constant": [1 / 24] * 2,
        }[kind]
    )
    assert of_one([0, 0], kind, constant) == [0, 0]
    assert of_one([], kind, constant) == []


def test_each_domain_counts_by_its_rows_and_not_by_its_tokens() -> None:
    lengths, domains = torch.tensor([900, 1100, 3, 7]), torch.tensor([0, 0, 1, 1])

    weights = row_weights(lengths, domains, torch.ones(2), "token_mean")

    assert (weights * lengths)[:2].sum() == pytest.approx(0.5)
    assert (weights * lengths)[2:].sum() == pytest.approx(0.5)
    assert weights.tolist() == pytest.approx([0.5 / 2000] * 2 + [0.5 / 10] * 2)


@pytest.mark.parametrize(("kind", "constant"), KINDS)
def test_the_weight_of_a_domain_multiplies_its_part(kind: Any, constant: float | None) -> None:
    lengths, domains = torch.tensor([9, 4, 3]), torch.tensor([0, 2, 0])
    plain = row_weights(lengths, domains, torch.ones(3), kind, constant)

    weighted = row_weights(lengths, domains, torch.tensor([2.0, 5.0, 0.5]), kind, constant)

    assert weighted.tolist() == pytest.approx((plain * torch.tensor([2.0, 0.5, 2.0])).tolist())


@pytest.mark.parametrize("kind", ["sequence_mean", "token_mean"])
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 2)), min_size=1, max_size=12))
def test_a_loss_of_one_at_every_token_is_a_loss_of_one(kind: Any, rows: list[tuple[int, int]]) -> None:
    lengths, domains = torch.tensor(rows).unbind(1)

    assert (row_weights(lengths, domains, torch.ones(3), kind) * lengths).sum() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "constant", "message"),
    [
        ("constant", None, "a constant belongs to kind 'constant'"),
        ("token_mean", 3.0, "a constant belongs to kind 'constant'"),
        ("constant", 0.0, "must be positive"),
        ("mean", None, "unknown kind 'mean'"),
    ],
)
def test_what_cannot_be_meant_is_refused(kind: Any, constant: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of_one([1], kind, constant)


def test_a_domain_without_a_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="2 lengths, 2 domains, 1 weights do not match"):
        row_weights(torch.tensor([1, 1]), torch.tensor([0, 1]), ONE, "token_mean")
