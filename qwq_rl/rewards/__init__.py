"""Verdicts and preferences into one reward a rollout."""
