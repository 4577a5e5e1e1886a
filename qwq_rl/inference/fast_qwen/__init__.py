"""A dense Qwen2 or Qwen3 computed directly from its weights, for sampling and for training on a CPU.

`fit` says which models qualify, `weights` lays their weights out, `decoder` and `cache` sample, `training_head` and
`training_states` train.
"""
