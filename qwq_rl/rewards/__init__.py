"""Turns verdicts and preferences into one reward for each rollout.

Read `reward` (the formula) first, then `scorer` (which verifiers judge a response), `reward_model` and `versions`.
"""
