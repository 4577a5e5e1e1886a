"""Verifiers: from a response of the policy to a verdict. Imported as `qwq_rl.verifiers`, never as `verifiers`."""

from qwq_rl.verifiers.contract import Problem, Response, Verdict, Verifier

__all__ = ["Problem", "Response", "Verdict", "Verifier"]
