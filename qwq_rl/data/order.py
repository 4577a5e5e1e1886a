"""A walk through the rows of one source, epoch after epoch, from which rows ahead can be taken out of turn."""

from __future__ import annotations

from typing import Any

import numpy as np

from qwq_rl.data.sources import epoch_order


class Walk:
    """The order of `qwq_rl.data.sources.mix` for one source.

    A row taken out of turn is passed over when the walk gets there, so every epoch still has every row exactly once.
    """

    def __init__(self, rows: int, seed: int, source: int) -> None:
        self._rows, self._seed, self._source = rows, seed, source
        self._position = 0
        self._ahead: set[int] = set()
        self._orders: dict[int, np.ndarray] = {}

    def next(self) -> int:
        """The index of the next row."""
        while self._position in self._ahead:
            self._ahead.remove(self._position)
            self._position += 1
        epoch, offset = divmod(self._position, self._rows)
        self._position += 1
        return int(self._order(epoch)[offset])

    def take(self, wanted: np.ndarray, count: int) -> list[int]:
        """Take the next `count` rows that are `wanted`, (rows,) bool, each once: all wanted ones where they are fewer.

        They come from later epochs where this one has no more.
        """
        left, count = wanted.copy(), min(count, int(wanted.sum()))
        found: list[int] = []
        epoch = self._position // self._rows
        while len(found) < count:
            begin, order = epoch * self._rows, self._order(epoch)
            first = max(self._position - begin, 0)
            for offset in np.flatnonzero(left[order[first:]]) + first:
                if begin + int(offset) not in self._ahead:
                    self._ahead.add(begin + int(offset))
                    found.append(int(order[offset]))
                    if len(found) == count:
                        break
            left[found] = False
            epoch += 1
        return found

    def state_dict(self) -> dict[str, Any]:
        """How far it went, and what was taken beyond that: JSON."""
        return {"position": self._position, "ahead": sorted(self._ahead)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._position, self._ahead, self._orders = state["position"], set(state["ahead"]), {}

    def _order(self, epoch: int) -> np.ndarray:
        current = self._position // self._rows
        self._orders = {known: order for known, order in self._orders.items() if known >= current}
        if epoch not in self._orders:
            self._orders[epoch] = np.array(epoch_order(self._rows, self._seed, self._source, epoch))
        return self._orders[epoch]
