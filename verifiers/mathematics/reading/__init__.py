"""Reads the answer out of the text of a response, as a tree of nodes.

The steps, in order: `extraction` finds the text of the answer, `cleaning` removes formatting, `tokens` cuts it into
tokens, `parser` builds the tree, and `answer` collects everything that one text can mean.
"""
