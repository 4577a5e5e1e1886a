"""`qwq-rl run`: train the stages of a recipe as processes, in the order in which they need one another.

Read `run.py` first, then `scheduler.py`.
"""
