"""Evaluation of a model on held-out rows, with estimates and intervals. `evaluate` is the entry point."""
