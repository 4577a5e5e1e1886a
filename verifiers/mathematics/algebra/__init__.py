"""Symbolic algebra in a process of its own, which may hang or die."""
