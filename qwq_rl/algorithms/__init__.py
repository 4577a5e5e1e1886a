"""The mathematics of RL: pure functions on tensors, which need nothing but torch.

`named` lists the algorithms. `advantages` (or `gae`, with a critic), `ratios` and `losses` are their parts.
"""
