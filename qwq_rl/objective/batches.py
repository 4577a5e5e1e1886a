"""Which rows of an update go through the model together, and which need not go through it at all."""

from __future__ import annotations

from collections.abc import Sequence


def plan(lengths: Sequence[int], live: Sequence[bool], tokens: int) -> list[list[int]]:
    """The live rows in micro-batches of like length, the longest first: indices into `lengths`.

    A micro-batch takes at most `tokens` tokens, its padding counted: rows times its longest row. A row longer than that
    stands alone. There is always one micro-batch, for a process without one would leave the others waiting: with no
    live row it is the shortest, whose loss the caller weights by 0; so are the further ones that a caller adds where
    processes must run equally many. Raises ValueError without any row, or if `tokens` is not positive.
    """
    if not lengths or len(lengths) != len(live) or tokens < 1:
        raise ValueError(f"{len(lengths)} lengths, {len(live)} marks and {tokens} tokens: no plan can be made")
    rows = [row for row, alive in enumerate(live) if alive] or [min(range(len(lengths)), key=lengths.__getitem__)]
    rows.sort(key=lambda row: -lengths[row])
    found = []
    while rows:
        size = max(1, tokens // max(1, lengths[rows[0]]))
        found.append(rows[:size])
        rows = rows[size:]
    return found
