"""One test case: what its processes are given, and what their ending means. Expected values stay on this side."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from typing import Any

from qwq_rl.sandbox.compare import same_output, same_value
from qwq_rl.sandbox.inside.values import decode_json
from qwq_rl.sandbox.link import Ending, Payload
from qwq_rl.sandbox.protocol import CaseResult, CaseVerdict, Job, Limits, bytes_of

_SHOWN_STDOUT, _SHOWN_STDERR = 1 << 16, 1 << 13


def payloads(job: Job, index: int) -> list[Payload]:
    """What the processes of one case are given: the code and this case's input, never what is expected."""
    test = job.tests[index]
    if "assert" in test:
        return [
            Payload("solve", {"code": job.code}),
            Payload("check", {"code": test["assert"], "entry_point": job.entry_point}),
        ]
    if "args" in test:
        return [Payload("call", {"code": job.code, "entry_point": job.entry_point, "args": list(test["args"])})]
    return [Payload("program", {"code": job.code}, bytes_of(test, "input"))]


def judge(job: Job, index: int, wall_s: float, endings: Sequence[Ending]) -> CaseResult:
    """The verdict on one case from how its processes ended."""
    test, mine = job.tests[index], endings[0]
    if not all(ending.shut_in for ending in endings):
        fault = next(ending for ending in endings if not ending.shut_in)
        return _result("sandbox_error", wall_s, mine, f"the jail was not shut (exit {fault.exit})")
    said = _last_report(mine.report)
    verdict, why = _broken_limit(mine, said, job.limits)
    if "assert" in test:
        verdict, why = _asserted(endings[1], said, verdict, why, job.limits)
    elif verdict is None and "args" in test:
        verdict, why = _returned(job, index, said)
    elif verdict is None:
        expected = bytes_of(test, "output")
        same = same_output(mine.stdout, expected, job.compare)
        verdict, why = ("accepted", "") if same else ("wrong_answer", "")
    return _result(verdict, wall_s, mine, why)


def _broken_limit(ending: Ending, said: dict[str, Any], limits: Limits) -> tuple[CaseVerdict | None, str]:
    """The verdict that an ending alone gives; None where the answer decides."""
    if ending.ended_for or ending.cpu_s > limits.cpu_s:
        wall = ending.ended_for == "wall"
        return "time_limit", f"more than {limits.wall_s} s" if wall else f"more than {limits.cpu_s} s of CPU"
    size = limits.output_kb * 1024
    if ending.exit == -signal.SIGXFSZ or len(ending.stdout) > size or len(ending.stderr) > size:
        return "output_limit", f"more than {limits.output_kb} KiB"
    if said.get("error") == "compile":
        return "compile_error", str(said.get("message"))
    if said.get("error") == "memory":
        return "memory_limit", f"more than {limits.memory_mb} MiB"
    if ending.exit != 0:
        return "runtime_error", str(said.get("message", f"exit status {ending.exit}"))
    return None, ""


def _returned(job: Job, index: int, said: dict[str, Any]) -> tuple[CaseVerdict, str]:
    """The verdict on a function call."""
    if "value" not in said:
        return "runtime_error", "the program ended before the function returned"
    try:
        value = decode_json(said["value"])
        same = same_value(value, job.tests[index]["expected"], job.compare)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
        return "wrong_answer", f"returned what cannot be compared: {error}"
    return ("accepted", "") if same else ("wrong_answer", f"returned {json.dumps(said['value'])[:200]}")


def _asserted(
    check: Ending, said: dict[str, Any], verdict: CaseVerdict | None, why: str, limits: Limits
) -> tuple[CaseVerdict, str]:
    """The verdict on an assert test: the test's own process decides, unless the submission broke a limit."""
    told = _last_report(check.report)
    if "fault" in told:
        return "sandbox_error", str(told["fault"])
    if verdict in ("time_limit", "output_limit", "compile_error"):
        return verdict, why
    if told.get("passed") is True and check.exit == 0:
        return "accepted", ""
    if verdict == "memory_limit":
        return verdict, why
    if check.ended_for or check.cpu_s > limits.cpu_s:
        return "time_limit", "the test did not end in time"
    if told.get("raised") or verdict == "runtime_error":
        return "runtime_error", str(said.get("message") or told.get("failed", ""))
    return "wrong_answer", str(told.get("failed", f"the test ended with exit status {check.exit}"))


def _last_report(report: bytes) -> dict[str, Any]:
    """The last whole line a process reported; empty where there is none that can be read."""
    lines = report.rsplit(b"\n", 2)
    try:
        value = json.loads(lines[-2]) if len(lines) > 1 and not lines[-1] else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _result(verdict: CaseVerdict, wall_s: float, ending: Ending, why: str) -> CaseResult:
    stderr = ending.stderr[-_SHOWN_STDERR:].decode("utf-8", "replace")
    if why and why not in stderr:
        stderr = f"{stderr}{'' if not stderr or stderr.endswith(chr(10)) else chr(10)}{why}\n"
    return CaseResult(
        verdict=verdict,
        cpu_s=round(ending.cpu_s, 6),
        wall_s=round(wall_s, 6),
        memory_mb=round(ending.memory_mb, 3),
        stdout=ending.stdout[:_SHOWN_STDOUT].decode("utf-8", "replace"),
        stderr=stderr,
        exit=ending.exit,
    )
