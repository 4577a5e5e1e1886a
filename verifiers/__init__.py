"""Verifiers: from a response of the policy to a verdict. Imported as `qwq_rl.verifiers`, never as `verifiers`."""

from qwq_rl.verifiers.contract import Problem, Response, Running, Verdict, Verifier, run_as
from qwq_rl.verifiers.loading import BUILT_IN, load, resolvable

__all__ = ["BUILT_IN", "Problem", "Response", "Running", "Verdict", "Verifier", "load", "resolvable", "run_as"]
