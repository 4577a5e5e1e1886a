"""The order of training rows: each source epoch after epoch, and several sources mixed by weight.

`mix` is the order without adaptive sampling or refills. `EpochOrder` gives the same order for one source, and rows can
also be taken from it before their turn.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import count
from math import lcm
from typing import Any

import numpy as np

from qwq_rl.data.row import (
    Row,
)


class EpochOrder:
    """Walks through the rows of one source in the order of `mix`.

    A row taken before its turn is skipped when the walk reaches it, so every epoch still has every row exactly once.
    """

    def __init__(self, rows: int, seed: int, source: int) -> None:
        self._rows, self._seed, self._source = rows, seed, source
        self._position = 0
        # Positions count over all epochs: epoch * rows + offset.
        self._ahead: set[int] = set()
        self._orders: dict[int, np.ndarray] = {}

    def next(self) -> int:
        """Return the index of the next row."""
        while self._position in self._ahead:
            self._ahead.remove(self._position)
            self._position += 1
        epoch, offset = divmod(self._position, self._rows)
        self._position += 1
        return int(self._order(epoch)[offset])

    def take(self, wanted: np.ndarray, count: int) -> list[int]:
        """Take the next `count` rows that are `wanted`, (rows,) bool, each once; if there are fewer, take all of them.

        If this epoch has too few left, the others come from later epochs.
        """
        still_wanted, count = wanted.copy(), min(count, int(wanted.sum()))
        taken: list[int] = []
        epoch = self._position // self._rows
        while len(taken) < count:
            begin, order = epoch * self._rows, self._order(epoch)
            first = max(self._position - begin, 0)
            for offset in np.flatnonzero(still_wanted[order[first:]]) + first:
                if begin + int(offset) not in self._ahead:
                    self._ahead.add(begin + int(offset))
                    taken.append(int(order[offset]))
                    if len(taken) == count:
                        break
            # A later epoch has every row again; one call takes no row twice.
            still_wanted[taken] = False
            epoch += 1
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the walk and the positions taken ahead of it, as JSON."""
        return {"position": self._position, "ahead": sorted(self._ahead)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self._position, self._ahead, self._orders = state["position"], set(state["ahead"]), {}

    def _order(self, epoch: int) -> np.ndarray:
        current = self._position // self._rows
        # Permutations of finished epochs are not needed again.
        self._orders = {cached_epoch: order for cached_epoch, order in self._orders.items() if cached_epoch >= current}
        if epoch not in self._orders:
            self._orders[epoch] = np.array(epoch_order(self._rows, self._seed, self._source, epoch))
        return self._orders[epoch]


def mix(sources: Sequence[tuple[Sequence[Row], float]], seed: int, prompts_per_update: int, updates: int) -> list[Row]:
    """Return the rows of `updates` updates in the order training sees them: prompts_per_update * updates rows.

    Each place goes to the source that is furthest behind its share of the places so far (the largest remainder). So no
    source is ever a whole row ahead of its share. If the shares of an update are whole numbers, each source gets
    exactly its share of that update; otherwise the rounding is carried into the next update. Each epoch of a source has
    its own permutation, which depends only on (seed, the source's position, epoch). So a longer run begins with the
    rows of a shorter one.

    Raises ValueError if a weight is negative or not finite, if all are 0, or if a source with weight has no rows.
    """
    shares = shares_of(sources)
    walks = [_walk(rows, seed, position) for position, (rows, _) in enumerate(sources)]
    behind = [0] * len(shares)
    return [next(walks[furthest_behind(behind, shares)]) for _ in range(prompts_per_update * updates)]


def shares_of(sources: Sequence[tuple[Sequence[Row], float]]) -> list[int]:
    """Return the weights of the sources as whole numbers. Raises ValueError as `mix` does."""
    shares = whole_shares([weight for _, weight in sources])
    for position, (rows, _) in enumerate(sources):
        if shares[position] and not rows:
            raise ValueError(f"source {position} has weight but no rows")
    return shares


def furthest_behind(behind: list[int], shares: Sequence[int]) -> int:
    """Return the source that gets the next place, and update `behind`: how far each source is behind its share.

    Only a source with a share is chosen; a tie goes to the lower index.
    """
    for source, share in enumerate(shares):
        behind[source] += share
    chosen = max((source for source, share in enumerate(shares) if share), key=lambda source: (behind[source], -source))
    # One place is worth the sum of the shares, so `behind` stays a list of whole numbers.
    behind[chosen] -= sum(shares)
    return chosen


def whole_shares(weights: Sequence[float | Fraction]) -> list[int]:
    """Scale decimal weights to whole numbers in the same proportion, so that shares are exact.

    Raises ValueError if a weight is negative or not finite, or if none is above 0.
    """
    try:
        exact = [Fraction(str(weight)) for weight in weights]
    except ValueError:
        raise ValueError(f"weights must be finite numbers, not {list(weights)}") from None
    if any(weight < 0 for weight in exact) or not any(exact):
        raise ValueError(f"weights must not be negative, and one must be above 0, not {list(weights)}")
    scale = lcm(*(weight.denominator for weight in exact))
    return [int(weight * scale) for weight in exact]


def _walk(rows: Sequence[Row], seed: int, source: int) -> Iterator[Row]:
    """Yield `rows` without end, each epoch in its own permutation."""
    for epoch in count():
        yield from (rows[index] for index in epoch_order(len(rows), seed, source, epoch))


def epoch_order(rows: int, seed: int, source: int, epoch: int) -> list[int]:
    """Return the permutation of the rows in epoch `epoch` (from 0) of the source at position `source`."""
    permutation = list(range(rows))
    random.Random(f"{seed}/{source}/{epoch}").shuffle(permutation)
    return permutation
