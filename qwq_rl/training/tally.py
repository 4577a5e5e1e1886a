"""Sums over the tokens of an update, over micro-batches and processes, brought together once."""

from __future__ import annotations

from typing import Any

import torch


class Tally:
    """Adds up figures without waiting for the device; `reduced` is the one time that processes exchange them."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._highest: dict[str, torch.Tensor] = {}

    def add(self, name: str, value: torch.Tensor) -> None:
        """Add a scalar to the sum of that name."""
        value = value.detach().double()
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def highest(self, name: str, value: torch.Tensor) -> None:
        """Keep the largest scalar of that name, at least 0."""
        value = value.detach().double()
        self._highest[name] = torch.maximum(self._highest[name], value) if name in self._highest else value

    def reduced(self, accelerator: Any) -> dict[str, float]:
        """The figures over all processes, which must all hold the same names: one gather."""
        if not self._sums and not self._highest:
            return {}
        own = torch.stack([*self._sums.values(), *self._highest.values()]).to(accelerator.device)
        every = accelerator.gather(own[None])  # (processes, figures)
        sums = every[:, : len(self._sums)].sum(0).tolist()
        highest = every[:, len(self._sums) :].max(0).values.tolist() if self._highest else []
        return dict(zip([*self._sums, *self._highest], [*sums, *highest], strict=True))
