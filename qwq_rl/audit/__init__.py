"""Checks whether verifiers, rows and past verdicts can be trusted: `verify`, `rescore`, the audit before training."""
