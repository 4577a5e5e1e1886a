"""Which rows of an update go through the model together, and which need not go through it at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Extent:
    """Tokens of a row: those of its prompt, which other rows may begin with too, and its own after them."""

    prompt: int
    own: int
    key: int = 0
    """Which prompt it is."""

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.prompt + self.own


def plan(extents: Sequence[Extent], live: Sequence[bool], tokens: int, share: bool = False) -> list[list[int]]:
    """The live rows in micro-batches, the longest first: indices into `extents`.

    A micro-batch takes at most `tokens` tokens: rows times its longest row, for padding is read too; with `share`, for
    a model that reads no padding and each prompt once, the rows' own tokens and each prompt's. What is more than that
    by itself stands alone. There is always one micro-batch, for a process without one would leave the others waiting:
    with no live row it is the shortest, whose loss the caller weights by 0; so are the further ones that a caller adds
    where processes must run equally many. Raises ValueError without any row, or if `tokens` is not positive.
    """
    if not extents or len(extents) != len(live) or tokens < 1:
        raise ValueError(f"{len(extents)} rows, {len(live)} marks and {tokens} tokens: no plan can be made")
    rows = [row for row, alive in enumerate(live) if alive]
    rows = rows or [min(range(len(extents)), key=lambda row: extents[row].tokens)]
    return _by_prompt(rows, extents, tokens) if share else _by_length(rows, extents, tokens)


def _by_length(rows: Sequence[int], extents: Sequence[Extent], tokens: int) -> list[list[int]]:
    left = sorted(rows, key=lambda row: -extents[row].tokens)
    found = []
    while left:
        size = max(1, tokens // max(1, extents[left[0]].tokens))
        found.append(left[:size])
        left = left[size:]
    return found


def _by_prompt(rows: Sequence[int], extents: Sequence[Extent], tokens: int) -> list[list[int]]:
    """The rows of a prompt in a row, the prompt of the longest row first."""
    longest: dict[int, int] = {}
    for row in rows:
        longest[extents[row].key] = max(extents[row].own, longest.get(extents[row].key, 0))
    left = sorted(rows, key=lambda row: (-longest[extents[row].key], extents[row].key, -extents[row].own))
    found: list[list[int]] = []
    used, keys = 0, set[int]()
    for row in left:
        one = extents[row]
        used += one.own + (0 if one.key in keys else one.prompt)
        if not found or used > tokens:
            found.append([])
            used, keys = one.tokens, set()
        found[-1].append(row)
        keys.add(one.key)
    return found
