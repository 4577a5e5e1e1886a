"""Distance to the reference, and entropy."""

from __future__ import annotations

import math

import pytest
import torch

from qwq_rl.algorithms.losses import entropy, kl_k3


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
