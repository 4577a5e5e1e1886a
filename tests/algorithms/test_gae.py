"""The critic's side: advantages by the recursion itself, closed forms, whitening, the critic's loss."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq_rl.algorithms.gae import (
    adaptive_lambda,
    at_last_token,
    gae,
    moments,
    value_loss,
    whiten,
)

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])


def by_recursion(values: list[float], rewards: list[float], gamma: float, lam: float) -> list[float]:
    found, following, value = [], 0.0, 0.0
    for now, reward in zip(reversed(values), reversed(rewards), strict=True):
        following = reward + gamma * value - now + gamma * lam * following
        value = now
        found.append(following)
    return found[::-1]


def test_with_gamma_and_lambda_one_the_advantage_is_reward_minus_value() -> None:
    values = torch.tensor([[0.1, 0.4, -0.2, 0.3, 0.9], [0.5, 0.7, 8.0, 8.0, 8.0], [8.0] * 5])
    rewards = at_last_token(torch.tensor([1.0, -1.0, 5.0]), MASK)

    advantages, returns = gae(values, rewards, MASK, 1.0, 1.0)

    assert rewards.tolist() == [[0, 0, 0, 0, 1], [0, -1, 0, 0, 0], [0] * 5]
    torch.testing.assert_close(advantages[0], 1 - values[0])
    torch.testing.assert_close(advantages[1, :2], -1 - values[1, :2])
    torch.testing.assert_close(returns, torch.tensor([[1.0] * 5, [-1.0, -1.0, 0, 0, 0], [0.0] * 5]))
    assert advantages[MASK == 0].abs().max() == 0


def test_two_tokens_by_hand() -> None:
    advantages, returns = gae(torch.tensor([[0.5, 0.2]]), torch.tensor([[0.1, 1.0]]), torch.ones(1, 2), 0.9, 0.5)

    last = 1.0 - 0.2
    first = 0.1 + 0.9 * 0.2 - 0.5 + 0.9 * 0.5 * last
    assert advantages[0].tolist() == pytest.approx([first, last])
    assert returns[0].tolist() == pytest.approx([first + 0.5, last + 0.2])


@settings(deadline=None)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=13, max_size=13), min_size=1, max_size=4),
    gamma=st.sampled_from([1.0, 0.9, 0.0]),
    lams=st.lists(st.sampled_from([1.0, 0.95, 0.3, 0.0]), min_size=4, max_size=4),
    seed=st.integers(0, 5),
)
def test_any_mask_gives_what_the_recursion_over_its_tokens_gives(
    rows: list[list[bool]], gamma: float, lams: list[float], seed: int
) -> None:
    mask = torch.tensor(rows)
    values, rewards = torch.randn(2, *mask.shape, generator=torch.Generator().manual_seed(seed))
    lam = torch.tensor(lams[: len(rows)])

    advantages, returns = gae(values, rewards, mask, gamma, lam)

    for row, live in enumerate(mask):
        expected = by_recursion(values[row][live].tolist(), rewards[row][live].tolist(), gamma, lams[row])
        assert advantages[row][live].tolist() == pytest.approx(expected, abs=1e-5)
        assert advantages[row][~live].abs().sum() == 0
    torch.testing.assert_close(returns, torch.where(mask, advantages + values, 0.0))


def test_what_padding_holds_does_not_matter() -> None:
    values, rewards = torch.randn(2, 3, 5)
    spoilt = torch.where(MASK.bool(), values, math.nan)

    torch.testing.assert_close(gae(spoilt, rewards, MASK, 0.9, 0.9), gae(values, rewards, MASK, 0.9, 0.9))


def test_lambda_grows_with_the_length_and_is_never_negative() -> None:
    assert adaptive_lambda(torch.tensor([0, 5, 20, 200, 2000])).tolist() == pytest.approx([0, 0, 0, 0.9, 0.99])


@pytest.mark.parametrize("shift", [True, False])
def test_whitened_tokens_have_deviation_one_and_the_mean_that_was_asked_for(shift: bool) -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0, 10.0], [5.0, 6.0, 99.0, 99.0, 99.0], [99.0] * 5])

    found = whiten(x, MASK, shift)

    kept = found[MASK.bool()]
    assert kept.std() == pytest.approx(1)
    assert kept.mean() == pytest.approx(0 if shift else 31 / 7, abs=1e-6)
    assert found[MASK == 0].abs().max() == 0


def test_whitening_of_parts_by_their_joint_moments_is_whitening_of_the_whole() -> None:
    x = torch.randn(3, 5)
    total = moments(x[:1], MASK[:1]) + moments(x[1:], MASK[1:])

    parts = torch.cat([whiten(x[:1], MASK[:1], total=total), whiten(x[1:], MASK[1:], total=total)])

    torch.testing.assert_close(parts, whiten(x, MASK))


def test_a_single_token_has_no_deviation() -> None:
    x, mask = torch.tensor([[3.0, 4.0]]), torch.tensor([[1, 0]])

    assert whiten(x, mask).tolist() == [[0, 0]]
    assert whiten(x, mask, shift=False).tolist() == [[3, 0]]
    assert whiten(x, torch.zeros(1, 2)).tolist() == [[0, 0]]


def test_equal_values_whiten_to_nothing() -> None:
    assert whiten(torch.full((2, 3), 0.1), torch.ones(2, 3)).abs().max() < 1e-3


def test_the_critics_loss_is_half_the_squared_error() -> None:
    values = torch.tensor([[1.0, 3.0]], requires_grad=True)

    loss = value_loss(values, values.detach(), torch.tensor([[0.0, 0.0]]), torch.tensor([[1, 0]]))
    loss.sum().backward()

    assert loss.tolist() == [[0.5, 0]]
    assert values.grad is not None
    assert values.grad.tolist() == [[1, 0]]


def test_a_value_that_moved_beyond_the_clip_towards_its_return_gets_no_more_gradient() -> None:
    values = torch.tensor([[0.8, 0.8, 0.1]], requires_grad=True)
    returns = torch.tensor([[1.0, -1.0, 1.0]])

    loss = value_loss(values, torch.zeros(1, 3), returns, torch.ones(1, 3), clip=0.2)
    loss.sum().backward()

    assert loss[0].tolist() == pytest.approx([0.8**2 / 2, 1.8**2 / 2, 0.9**2 / 2])
    assert values.grad is not None
    assert values.grad[0].tolist() == pytest.approx([0, 1.8, -0.9])
