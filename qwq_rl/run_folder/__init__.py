"""The files of a run: their places, locks, checkpoints and schema."""
