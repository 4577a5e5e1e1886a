"""The verifiers that come with the project, one per file; `math` is in `qwq_rl.verifiers.mathematics`."""
