"""Losses of the policy, token by token, in numbers and in the gradients that they give."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch

from qwq_rl.algorithms.losses import Clip, cispo, clipped, clipped_tokens, row_weights, sapo, vespo
from qwq_rl.algorithms.named import ALGORITHMS
from qwq_rl.algorithms.ratios import log_ratios
from qwq_rl.config.stages import Algorithm

RATIOS = torch.tensor([[0.5, 0.9, 1.0, 1.1, 1.5, 4.0]] * 2)
ADVANTAGES_OF_ROWS = torch.tensor([[2.0], [-2.0]])
MASK = torch.ones(2, 6)
CLIP = Clip(0.2, 0.28)


def loss_and_gradient(loss: Any, ratios: torch.Tensor = RATIOS, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each token, and its gradient by the token's log-probability, the old one being 0.1 a token."""
    logprobs = ratios.log().sub(0.1).requires_grad_()
    found = loss(logprobs, logprobs + 0.1, ADVANTAGES_OF_ROWS, MASK, **more)
    found.sum().backward()
    assert logprobs.grad is not None
    return found.detach(), logprobs.grad


def near(found: torch.Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected))


def test_the_clipped_loss_is_ppos() -> None:
    loss, _ = loss_and_gradient(clipped, clip=CLIP)

    near(loss, [[-1.0, -1.8, -2.0, -2.2, -2.56, -2.56], [1.6, 1.8, 2.0, 2.2, 3.0, 8.0]])


def test_a_clipped_token_gives_no_gradient_and_every_other_its_ratio_times_its_advantage() -> None:
    _, gradient = loss_and_gradient(clipped, clip=CLIP)

    near(gradient, [[-1.0, -1.8, -2.0, -2.2, 0, 0], [0, 1.8, 2.0, 2.2, 3.0, 8.0]])


def test_the_tokens_counted_as_clipped_are_those_without_a_gradient() -> None:
    _, gradient = loss_and_gradient(clipped, clip=CLIP)

    low, high = clipped_tokens(RATIOS.log(), ADVANTAGES_OF_ROWS, CLIP)

    assert ((low | high) == (gradient == 0)).all()
    assert low.sum(1).tolist() == [0, 1]
    assert high.sum(1).tolist() == [2, 0]


def test_the_second_clip_bounds_a_negative_advantage() -> None:
    loss, gradient = loss_and_gradient(clipped, clip=Clip(0.2, 0.28, delta=2.0))

    assert loss[1].tolist() == pytest.approx([1.6, 1.8, 2.0, 2.2, 3.0, 4.0])
    assert gradient[1, -1] == 0
    assert loss[0].tolist() == pytest.approx([-1.0, -1.8, -2.0, -2.2, -2.56, -2.56])


def test_on_policy_the_gradient_is_that_of_reinforce() -> None:
    for loss, more in ((clipped, {"clip": CLIP}), (cispo, {}), (sapo, {}), (vespo, {})):
        _, gradient = loss_and_gradient(loss, torch.ones(2, 6), **more)

        torch.testing.assert_close(gradient, -ADVANTAGES_OF_ROWS.expand(2, 6))


def test_cispo_bounds_the_weight_and_gives_every_token_a_gradient() -> None:
    loss, gradient = loss_and_gradient(cispo, ceiling=1.2)

    weight = torch.tensor([[0.5, 0.9, 1.0, 1.1, 1.2, 1.2]])
    torch.testing.assert_close(gradient, -ADVANTAGES_OF_ROWS * weight)
    torch.testing.assert_close(loss, gradient * RATIOS.log().sub(0.1))


def test_sapo_fades_out_softly_and_faster_for_negative_advantages() -> None:
    loss, gradient = loss_and_gradient(sapo, positive=1.0, negative=2.0)

    for row, (advantage, tau) in enumerate(((2.0, 1.0), (-2.0, 2.0))):
        gates = [1 / (1 + math.exp(-tau * (ratio - 1))) for ratio in RATIOS[row].tolist()]
        assert loss[row].tolist() == pytest.approx([-4 / tau * gate * advantage for gate in gates], rel=1e-5)
        slopes = [4 * gate * (1 - gate) * ratio for gate, ratio in zip(gates, RATIOS[row].tolist(), strict=True)]
        assert gradient[row].tolist() == pytest.approx([-slope * advantage for slope in slopes], rel=1e-4)


def test_vespo_weights_a_row_by_the_ratio_of_the_whole_response() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -50.0], [-1.0, -2.0, -50.0]])
    ratios, mask = torch.tensor([[0.1, 0.2, 7.0]] * 2), torch.tensor([[1, 1, 0]] * 2)

    found = vespo(logprobs, ratios, ADVANTAGES_OF_ROWS, mask, positive=(2.0, 3.0), negative=(3.0, 2.0))

    w = math.exp(0.3)
    up, down = w**2 * math.exp(3 * (1 - w)), w**3 * math.exp(2 * (1 - w))
    near(found[:, :2], [[2 * up, 4 * up], [-2 * down, -4 * down]])


def test_vespo_takes_the_gap_to_the_sampler_into_the_ratio_of_the_response() -> None:
    ratios, gap = torch.tensor([[0.1, 0.2, 0.9]]), torch.tensor([[-0.3, 0.1, 0.8]])
    advantages, mask, logprobs = torch.ones(1, 1), torch.tensor([[1, 1, 0]]), torch.full((1, 3), -1.0)

    found = vespo(logprobs, ratios, advantages, mask, importance=gap.exp())

    torch.testing.assert_close(found, vespo(logprobs, ratios + gap, advantages, mask))


def test_a_response_that_the_policy_has_left_for_good_weighs_nothing_in_vespo() -> None:
    one, mask = torch.ones(1, 1), torch.ones(1, 2)
    for far in (-1e4, 1e4):
        found = vespo(torch.full((1, 2), -1.0), torch.full((1, 2), far), one, mask, importance=torch.zeros(1, 2))

        assert found.isfinite().all()
        assert found.abs().max() < 1e-6


@pytest.mark.parametrize("loss", [clipped, cispo, sapo, vespo])
def test_advantages_may_differ_by_token(loss: Any) -> None:
    more = {"clip": CLIP} if loss is clipped else {}
    logs, mask = RATIOS[:1].log(), MASK[:1]
    advantages = torch.tensor([[1.0, -1.0, 2.0, 0.0, 1.0, -3.0]])

    found = loss(logs - 1, logs, advantages, mask, **more)

    one_by_one = [loss(logs - 1, logs, advantages[:, [token]], mask, **more)[:, token] for token in range(6)]
    torch.testing.assert_close(found[0], torch.cat(one_by_one))


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_loss_of_an_update_does_not_depend_on_how_its_rows_are_cut(name: str, size: int) -> None:
    algorithm = ALGORITHMS[name]
    torch.manual_seed(0)
    lengths, domains = torch.tensor([5, 1, 3, 0, 4]), torch.tensor([0, 1, 0, 1, 1])
    mask = (torch.arange(5) < lengths[:, None]).long()
    old, advantages = -torch.rand(5, 5), torch.randn(5, 1)
    more = {"clip": CLIP} if algorithm.loss is clipped else {}
    constant = 5 * 5.0 if algorithm.weights == "constant" else None
    weights = row_weights(lengths, domains, torch.tensor([1.0, 0.5]), algorithm.weights, constant)

    def loss_of(rows: list[int], logprobs: torch.Tensor) -> torch.Tensor:
        width = max(1, int(lengths[rows].max()))
        part, live = logprobs[rows, :width], mask[rows, :width]
        ratios = log_ratios(part, old[rows, :width], live, algorithm.level)
        each = algorithm.loss(part, ratios, advantages[rows], live, **more)
        return (weights[rows, None] * each * live).sum()

    whole = (old + 0.5 * torch.randn(5, 5)).requires_grad_()
    cut = whole.detach().clone().requires_grad_()
    at_once = loss_of([0, 1, 2, 3, 4], whole)
    at_once.backward()
    order = [3, 1, 2, 4, 0]
    parts = [loss_of(order[start : start + size], cut) for start in range(0, 5, size)]
    torch.stack(parts).sum().backward()

    assert sum(part.item() for part in parts) == pytest.approx(at_once.item(), abs=1e-6)
    assert whole.grad is not None
    assert whole.grad.abs().max() > 1e-3
    torch.testing.assert_close(cut.grad, whole.grad)


def test_every_algorithm_that_a_recipe_may_name_is_in_the_table() -> None:
    assert set(ALGORITHMS) == set(get_args(Algorithm))


def test_all_but_ppo_compare_rewards() -> None:
    without = {name for name, algorithm in ALGORITHMS.items() if algorithm.baseline is None or algorithm.scale is None}

    assert without == {"ppo"}
