"""Rows: where they come from, what they hold, in which order they are taken, and the text that a model reads."""
