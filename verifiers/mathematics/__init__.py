"""The math answer checker.

text -> answer (`extraction`) -> readings (`cleaning`, `tokens`, `parser`) -> equal or not (`checker`, `comparison`);
the same numbers and functions are told by `exact`, `numeric` and `identity`, and at last by math-verify (`symbolic`).
"""
