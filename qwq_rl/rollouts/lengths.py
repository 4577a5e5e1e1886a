"""A curriculum over length: short responses first, since a model that still fails early wastes a long budget."""

from __future__ import annotations


def length_limit(update: int, max_tokens: int, start: int | None, over: int) -> int:
    """The longest response, in tokens, that is sampled in `update`, counted from 1.

    It grows linearly from `start` in update 1 to `max_tokens` in update `over` + 1, where it stays, rounded down; it is
    `max_tokens` throughout where `start` is None or `over` is 0. Raises ValueError: `update` or `start` is below 1,
    `over` below 0, or `start` above `max_tokens`.
    """
    if update < 1 or over < 0:
        raise ValueError(f"update is {update}, over is {over}: updates count from 1, and over is not negative")
    if start is None:
        return max_tokens
    if not 1 <= start <= max_tokens:
        raise ValueError(f"the limit starts at {start}; it must lie between 1 and max_tokens, {max_tokens}")
    done = update - 1
    return max_tokens if done >= over else start + (max_tokens - start) * done // over
