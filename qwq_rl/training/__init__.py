"""One update of an RL stage: the trainer, training samples in micro-batches, the loss, the critic and the safeguards.

Read `policy_trainer` first, then `round_batch`, `micro_batch` and `update`.
"""
