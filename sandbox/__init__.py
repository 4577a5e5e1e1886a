"""Code in, verdict of running it out. Imported as `qwq_rl.sandbox`; standard library only, no verifiers."""

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
