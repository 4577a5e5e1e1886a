"""The stages of a recipe as processes, one after another: `qwq-rl run`."""
