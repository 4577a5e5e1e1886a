"""Runs verifiers in worker processes, with deadlines, retries and a cache; a fault costs one verdict."""
