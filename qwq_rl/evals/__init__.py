"""Evaluation of a model on held-out rows, and the estimates and intervals that are told of it."""
