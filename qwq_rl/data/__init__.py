"""Rows: how they are read and checked, in which order training takes them, and the text that the model sees.

Read `row` first, then `sources` and `mappers`, `order`, `prompt_source` with `adaptive`, and `chat`.
"""
