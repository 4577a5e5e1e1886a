"""Can a verifier, its rows and its past verdicts be trusted: `verify`, `rescore`, the audit before training."""
