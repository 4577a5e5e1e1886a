"""Muon: orthogonalised momentum for the hidden matrices, AdamW for all other parameters.

K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. Matrices of the same shape are
orthogonalised together: one at a time, the Newton-Schulz steps of a tiny model cost more than its forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

MOMENTUM = 0.95
BETAS = (0.9, 0.95)
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Return roughly the nearest semi-orthogonal matrix to each of `matrices` (N, rows, columns): Newton-Schulz."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    # With the smaller side first, `gram` is as small as possible.
    x = matrices.mT if tall else matrices
    # The iteration needs singular values of at most 1; the Frobenius norm is at least the largest one.
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def parameter_groups(model: nn.Module, lr: float, matrix_lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: the hidden matrices, and all other parameters (embeddings, norms, heads)."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.ndim == 2 and ".layers." in f".{name}"]
    matrix_ids = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in matrix_ids]
    return [
        {"params": matrices, "lr": matrix_lr, "muon": True, "weight_decay": weight_decay},
        {"params": rest, "lr": lr, "muon": False, "weight_decay": weight_decay},
    ]


class Muon(torch.optim.Optimizer):
    """The optimizer for the groups of `parameter_groups`. Its state is saved and loaded as that of any optimizer."""

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(list(groups), {"lr": 1e-3, "muon": False, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for p in parameters:
                p.mul_(1 - group["lr"] * group["weight_decay"])
            if group["muon"]:
                self._step_matrices(parameters, group["lr"])
            else:
                for p in parameters:
                    self._step_adamw(p, group["lr"])

    def _step_matrices(self, parameters: list[torch.Tensor], lr: float) -> None:
        by_shape: dict[tuple[int, ...], list[torch.Tensor]] = {}
        for p in parameters:
            by_shape.setdefault(tuple(sorted(p.shape)), []).append(p)
        for group in by_shape.values():
            # Tall matrices are transposed, so that they share one batch with wide ones: fewer matrix products.
            wide = [self._nesterov(p) if p.shape[0] <= p.shape[1] else self._nesterov(p).T for p in group]
            for p, direction in zip(group, orthogonalised(torch.stack(wide)), strict=True):
                # The update of a tall matrix is larger, as in Jordan's implementation.
                scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                p.add_(direction if p.shape[0] <= p.shape[1] else direction.T, alpha=-lr * scale)

    def _nesterov(self, p: torch.Tensor) -> torch.Tensor:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        assert p.grad is not None
        state["momentum"].lerp_(p.grad, 1 - MOMENTUM)
        return p.grad.lerp(state["momentum"], MOMENTUM)

    def _step_adamw(self, p: torch.Tensor, lr: float) -> None:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
        assert p.grad is not None
        state["step"] += 1
        state["mean"].lerp_(p.grad, 1 - BETAS[0])
        state["square"].lerp_(p.grad.square(), 1 - BETAS[1])
        count = float(state["step"])
        mean, square = state["mean"] / (1 - BETAS[0] ** count), state["square"] / (1 - BETAS[1] ** count)
        p.addcdiv_(mean, square.sqrt() + 1e-8, value=-lr)
