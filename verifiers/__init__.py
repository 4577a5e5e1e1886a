"""Verifiers turn a response of the policy into a verdict. Import them as `qwq_rl.verifiers`, never as `verifiers`.

Read `contract` first, then `loading`, then `runner/judge`. The verifiers themselves are in `builtin` and `mathematics`.
"""

from qwq_rl.verifiers.contract import Problem, Response, Running, Verdict, Verifier, run_as
from qwq_rl.verifiers.loading import BUILT_IN, load, resolvable

__all__ = ["BUILT_IN", "Problem", "Response", "Running", "Verdict", "Verifier", "load", "resolvable", "run_as"]
