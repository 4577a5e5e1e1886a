"""A walk through the rows of one source, epoch after epoch, from which rows ahead can be taken out of turn."""

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
    """The order of `qwq_rl.data.order.mix` for one source.

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


def mix(sources: Sequence[tuple[Sequence[Row], float]], seed: int, prompts_per_update: int, updates: int) -> list[Row]:
    """Return the rows of `updates` updates in the order training sees them; its length is prompts_per_update * updates.

    Every place goes to the source that is furthest behind its share of the places so far (the largest remainder). So no
    source is ever a whole row ahead of its share, each update's quotas are the shares wherever those are whole numbers,
    and what rounding leaves over is carried into the next update. A source is walked in a fresh permutation each epoch,
    which depends on (seed, the source's position, epoch) alone: a longer run begins with the shorter one.

    Raises ValueError: a weight is negative or not finite, all are 0, or a source with weight has no rows.
    """
    shares = shares_of(sources)
    walks = [_walk(rows, seed, at) for at, (rows, _) in enumerate(sources)]
    behind = [0] * len(shares)
    return [next(walks[furthest_behind(behind, shares)]) for _ in range(prompts_per_update * updates)]


def shares_of(sources: Sequence[tuple[Sequence[Row], float]]) -> list[int]:
    """The weights of the sources as whole numbers; raises ValueError as `mix` does."""
    shares = whole_shares([weight for _, weight in sources])
    for at, (rows, _) in enumerate(sources):
        if shares[at] and not rows:
            raise ValueError(f"source {at} has weight but no rows")
    return shares


def furthest_behind(behind: list[int], shares: Sequence[int]) -> int:
    """Give one place to a source with a share; `behind`, how far each is behind its due, is brought up to date."""
    for at, share in enumerate(shares):
        behind[at] += share
    chosen = max((at for at, share in enumerate(shares) if share), key=lambda at: (behind[at], -at))
    behind[chosen] -= sum(shares)
    return chosen


def whole_shares(weights: Sequence[float | Fraction]) -> list[int]:
    """Scale decimal weights to whole numbers in the same proportion, so that shares carry no rounding."""
    try:
        exact = [Fraction(str(weight)) for weight in weights]
    except ValueError:
        raise ValueError(f"weights must be finite numbers, not {list(weights)}") from None
    if any(weight < 0 for weight in exact) or not any(exact):
        raise ValueError(f"weights must not be negative, and one must be above 0, not {list(weights)}")
    scale = lcm(*(weight.denominator for weight in exact))
    return [int(weight * scale) for weight in exact]


def _walk(rows: Sequence[Row], seed: int, source: int) -> Iterator[Row]:
    """EpochOrder `rows` for ever, each epoch in its own permutation."""
    for epoch in count():
        yield from (rows[at] for at in epoch_order(len(rows), seed, source, epoch))


def epoch_order(rows: int, seed: int, source: int, epoch: int) -> list[int]:
    """The permutation in which the epoch `epoch`, from 0, of the source at position `source` goes through its rows."""
    permutation = list(range(rows))
    random.Random(f"{seed}/{source}/{epoch}").shuffle(permutation)
    return permutation
