"""The math answer checker.

text -> answer (`extraction`) -> readings (`cleaning`, `tokens`, `parser`) -> equal or not (`checker`, `comparison`);
what is the same number or function is told by `exact`, `numeric` and `identity`, and at last by math-verify (`symbolic`).
"""
