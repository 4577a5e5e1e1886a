"""Builds the trainers of the three stage kinds (`rl`, `sft`, `reward_model`), each a thin layer over TRL's trainer.

Read `context` first, then `supervised`, `rl` and `callbacks`; `lineage` and `distributed` stand alone.
"""
