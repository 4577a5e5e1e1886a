"""Distance to the reference, and entropy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwq_rl.algorithms.losses import entropy, entropy_threshold, kl_k3


def test_k3_in_numbers() -> None:
    logprobs = torch.tensor([[0.5, 0.25, 0.2]]).log().requires_grad_()
    reference = torch.tensor([[0.25, 0.5, 0.2]]).log()

    found = kl_k3(logprobs, reference)
    found.sum().backward()

    ratios = [0.5, 2.0, 1.0]
    assert found[0].tolist() == pytest.approx([ratio - math.log(ratio) - 1 for ratio in ratios])
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([1 - ratio for ratio in ratios], abs=1e-6)


def test_over_all_tokens_of_the_policy_k3_is_the_divergence_itself() -> None:
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])

    assert (policy * kl_k3(policy.log(), reference.log())).sum() == pytest.approx(
        float((policy * (policy / reference).log()).sum())
    )


def test_corrected_k3_is_the_divergence_over_tokens_of_the_policy_before_and_so_is_its_gradient() -> None:
    before, reference = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.2, 0.6])
    logits = torch.tensor([0.1, 0.4, -0.3], requires_grad=True)

    def divergence() -> torch.Tensor:
        return (logits.softmax(-1) * (logits.log_softmax(-1) - reference.log())).sum()

    (exact,) = torch.autograd.grad(divergence(), logits)
    logprobs = logits.log_softmax(-1)
    sampled = (before * kl_k3(logprobs, reference.log(), logprobs - before.log())).sum()
    (estimated,) = torch.autograd.grad(sampled, logits)

    assert sampled.item() == pytest.approx(divergence().item())
    torch.testing.assert_close(estimated, exact)


def test_the_entropy_of_even_and_certain_choices() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [3.0, 3.0, -math.inf, -math.inf], [0.0, -99.0, -99.0, -99.0]])

    assert entropy(logits).tolist() == pytest.approx([math.log(4), math.log(2), 0], abs=1e-6)


def test_the_gradient_of_entropy_is_finite_where_a_token_cannot_be_sampled() -> None:
    logits = torch.tensor([[1.0, 2.0, -math.inf]], requires_grad=True)

    entropy(logits).sum().backward()

    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.sum() == pytest.approx(0, abs=1e-6)


@given(
    st.lists(st.integers(0, 20).map(lambda step: step / 4), min_size=1, max_size=30),
    st.sampled_from([0.01, 0.2, 0.25, 0.5, 0.8, 0.9, 1.0]),
)
def test_tokens_at_or_above_the_threshold_are_those_of_trls_quantile(values: list[float], share: float) -> None:
    entropies = torch.tensor(values)

    threshold = entropy_threshold(entropies, torch.ones(len(values)), share)

    expected = entropies.double() >= torch.quantile(entropies.double(), round(1 - share, 9)) - 1e-9
    assert (entropies >= threshold).tolist() == expected.tolist()


def test_only_tokens_of_the_mask_have_a_part_in_the_threshold() -> None:
    assert entropy_threshold(torch.tensor([[1.0, 9.0], [3.0, 2.0]]), torch.tensor([[1, 0], [1, 1]]), 0.5) == 2
    assert entropy_threshold(torch.ones(2), torch.zeros(2), 0.5) == 0


def test_a_share_that_ends_on_a_token_takes_that_token() -> None:
    assert entropy_threshold(torch.arange(11.0), torch.ones(11), 0.7) == 3


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        entropy_threshold(torch.ones(2), torch.ones(2), share)
