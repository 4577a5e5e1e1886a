"""Generates the data, the tokenizer and the model of recipes/tiny.

Read `task` first, then the task families (`math_tasks`, `code_tasks`, `general_tasks`), `sets` and `model`.
"""
