"""Asks math-verify in separate processes, because symbolic algebra can hang or crash."""
