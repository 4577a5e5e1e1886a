"""Ratios between policies, and what is done about a sampler that is not quite the trainer's policy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from qwq_rl.algorithms.ratios import (
    importance_weights,
    log_ratios,
)

MASK = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
GAPS = torch.tensor([[0.3, -0.1, 9.0], [1.5, 9.0, 9.0], [9.0, 9.0, 9.0]])
"""log(trainer / sampler), or log(now / before)."""
BASE = torch.full((3, 3), -2.0)


def weights(**how: Any) -> torch.Tensor:
    how = {"level": "token", "mode": "truncate"} | how
    return importance_weights(BASE + GAPS, BASE, MASK, **how)


def near(found: torch.Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected))


def test_each_level_gives_its_ratio_to_every_token() -> None:
    assert log_ratios(BASE + GAPS, BASE, MASK, "token").flatten().tolist() == pytest.approx(
        [0.3, -0.1, 0, 1.5, 0, 0, 0, 0, 0]
    )
    near(log_ratios(BASE + GAPS, BASE, MASK, "sequence"), [[0.1] * 3, [1.5] * 3, [0.0] * 3])
    near(log_ratios(BASE + GAPS, BASE, MASK, "joint"), [[0.2] * 3, [1.5] * 3, [0.0] * 3])


def test_the_gradient_of_a_sequence_ratio_reaches_each_of_its_tokens_alike() -> None:
    logprobs = (BASE + GAPS).requires_grad_()

    log_ratios(logprobs, BASE, MASK, "sequence")[:, 0].sum().backward()

    assert logprobs.grad is not None
    near(logprobs.grad, [[0.5, 0.5, 0], [1, 0, 0], [0, 0, 0]])


def test_padding_that_is_not_a_number_stays_out() -> None:
    logprobs = torch.where(MASK.bool(), BASE + GAPS, math.nan).requires_grad_()

    found = log_ratios(logprobs, BASE, MASK, "sequence")
    found.sum().backward()

    assert found.isfinite().all()
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()


def test_token_weights_are_the_ratio_of_the_trainer_to_the_sampler() -> None:
    near(weights(), [[math.exp(0.3), math.exp(-0.1), 1], [math.exp(1.5), 1, 1], [1, 1, 1]])


def test_truncated_weights_are_held_within_their_bounds() -> None:
    near(weights(low=0.95, high=1.2), [[1.2, 0.95, 1], [1.2, 1, 1], [1, 1, 1]])
    near(weights(high=2.0), [[math.exp(0.3), math.exp(-0.1), 1], [2, 1, 1], [1, 1, 1]])


def test_masked_weights_are_zero_outside_their_bounds() -> None:
    near(weights(mode="mask", low=0.95, high=2.0), [[math.exp(0.3), 0, 1], [0, 1, 1], [1, 1, 1]])
    near(weights(mode="mask", high=1.2), [[0, math.exp(-0.1), 1], [0, 1, 1], [1, 1, 1]])


def test_a_row_has_one_weight_at_the_level_of_sequences() -> None:
    near(weights(level="sequence"), [[math.exp(0.2)] * 3, [math.exp(1.5)] * 3, [1] * 3])
    near(weights(level="sequence", mode="mask", high=2.0), [[math.exp(0.2)] * 3, [0] * 3, [1] * 3])


def test_no_gradient_flows_through_the_weights() -> None:
    trainer = (BASE + GAPS).requires_grad_()

    assert not importance_weights(trainer, BASE, MASK, level="token", mode="truncate", high=2.0).requires_grad


def test_a_token_that_the_sampler_did_not_score_counts_as_it_is() -> None:
    sampler = BASE.clone()
    sampler[0, 0] = math.nan

    found = importance_weights(BASE + GAPS, sampler, MASK, level="sequence", mode="truncate")

    near(found[:, :1], [[math.exp(-0.1)], [math.exp(1.5)], [1]])


def test_a_sum_beyond_all_numbers_stays_finite() -> None:
    far = torch.full((1, 400), 1.0)

    assert importance_weights(far, -far, torch.ones(1, 400), level="sequence", mode="truncate").isfinite().all()
    assert importance_weights(far, -far, torch.ones(1, 400), level="sequence", mode="mask", high=2.0).max() == 0


@pytest.mark.parametrize("change", [{"level": "row"}, {"mode": "cut"}])
def test_an_unknown_level_or_mode_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="known are"):
        weights(**change)
    with pytest.raises(ValueError, match="known are token, sequence, joint"):
        log_ratios(BASE, BASE, MASK, "row")  # type: ignore[arg-type]
