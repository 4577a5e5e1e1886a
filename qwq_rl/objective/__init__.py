"""The mathematics of the trainers: pure functions on tensors, nothing but torch."""

from qwq_rl.objective.batches import PARTS, by_length, live_rows

__all__ = ["PARTS", "by_length", "live_rows"]
