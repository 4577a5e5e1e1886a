"""Compares two answers that were read.

`checker` compares two texts and calls `comparison`, which compares two trees. `identity` compares two expressions, with
the exact values of `exact` or the sixty digits of `numeric`.
"""
