"""The mathematics of the trainers: pure functions on tensors, nothing but torch."""
