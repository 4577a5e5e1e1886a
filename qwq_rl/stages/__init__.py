"""The three stage kinds, each a thin layer over TRL's trainer of that kind."""
