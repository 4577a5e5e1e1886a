"""The math answer checker.

text -> answer (`extraction`) -> readings (`cleaning`, `tokens`, `parser`) -> equal or not (`checker`, `comparison`),
with exact, modular and numeric identity (`exact`, `numeric`, `identity`) and math-verify as the last resort (`symbolic`).
"""
