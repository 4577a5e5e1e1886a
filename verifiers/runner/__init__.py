"""Runs verifiers with deadlines, retries and a cache, in workers if they need one. A fault costs one verdict.

Read `judge` first, then `dispatcher`, `calls` and `workers`.
"""
