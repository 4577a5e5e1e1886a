"""Runs a program against its tests and returns the verdict. Imported as `qwq_rl.sandbox`; standard library only.

Read in this order: protocol.py (a job and its result), interface.py (the calls), local.py, engine.py, cases.py (how
this machine judges), inside/ (what runs in the jail), http/ (the same over the network).
"""

from qwq_rl.sandbox.local import LocalSandbox, SandboxUnavailable, Ticket
from qwq_rl.sandbox.protocol import CaseResult, Job, JobError, Limits, Result, tests_hash

__all__ = [
    "CaseResult",
    "Job",
    "JobError",
    "Limits",
    "LocalSandbox",
    "Result",
    "SandboxUnavailable",
    "Ticket",
    "tests_hash",
]
