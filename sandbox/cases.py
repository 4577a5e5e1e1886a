"""One test case: the tasks of its processes, and the verdict from how they ended.

Expected values stay in this process; they never enter the jail of a submission. The functions that lead to a verdict
are generators: they yield a `Step` to run and are sent its `Outcome`, until they return. The engine drives them.
"""

from __future__ import annotations

import json
import marshal
import signal
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwq_rl.sandbox import profiles
from qwq_rl.sandbox.compare import same_output, same_value
from qwq_rl.sandbox.compiled import BinaryCache, header, keep_header
from qwq_rl.sandbox.fork_server_link import Ending, Payload
from qwq_rl.sandbox.inside.values import decode_json
from qwq_rl.sandbox.languages import LANGUAGES, Language
from qwq_rl.sandbox.protocol import CaseResult, CaseVerdict, Job, Limits, bytes_of

_SHOWN_STDOUT, _SHOWN_STDERR = 1 << 16, 1 << 13
_SLACK, _LEAST_SLACK = 0.25, 0.05
"""How far a case may exceed its CPU limit while others run beside it: as a share of the limit, and at least in seconds.
If it ends within that time, it runs again alone and that run decides: cases beside it cost it CPU time (caches,
hyperthreads)."""
_BUSY_SHARE = 0.05
"""CPU seconds per wall second. A process that used more when it reached the wall limit did not sleep: it had to wait
for the CPU.
"""
_MAX_TOGETHER, _TOGETHER_BYTES = 64, 1 << 16
"""The most calls of one program that may share a process, and the most bytes of all their arguments."""
_NO_THREAD = b"can't start new thread"
_CHECKER_LIMITS = Limits(cpu_s=10.0, wall_s=60.0, memory_mb=512, output_kb=1024)
COMPILE_LIMITS = Limits(cpu_s=30.0, wall_s=120.0, memory_mb=2048, output_kb=1 << 18)


@dataclass(frozen=True)
class Step:
    """Processes that run at the same time, each in its own jail: one step towards the verdict on a case."""

    kind: profiles.Kind
    payloads: tuple[Payload, ...]
    limits: Limits
    alone: bool = False
    """Nothing else of this sandbox may run at the same time."""


Outcome = tuple[float, list[Ending]]
"""Wall seconds, and how the processes ended."""


@dataclass(frozen=True)
class JudgedCase:
    """The result of one case, and the kinds of escape attempts that were seen."""

    case: CaseResult
    attempts: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Check:
    """The answer of a checker; the score is None if the checker failed."""

    score: float | None
    said: str


Steps = Generator[Step, Outcome, JudgedCase]
Together = Generator[Step, Outcome, "list[JudgedCase]"]
Compilation = Generator[Step, Outcome, "bytes | JudgedCase"]


def compilation(job: Job, programs: BinaryCache) -> Compilation:
    """Compile the program that all cases of a job share; the program, or a result that says why there is none.

    For languages without a compiler the program is the text itself.
    """
    language = LANGUAGES.get(job.language)
    text = job.code.encode("utf-8", "surrogateescape")
    if language is None or not language.compile:
        return text
    cached = programs.get(job.language, text)
    if cached is not None:
        return cached
    options: list[str] = []
    if language.headers and language.headers in job.code and (path := header(job.language)) is not None:
        if not path.exists() and programs.try_header(path):
            include = f"#include <{language.headers}>\n".encode()
            _, (header_ending,) = yield _compile_step(language, language.compile_header, include)
            if header_ending.exit == 0 and header_ending.shut_in:
                keep_header(path, header_ending.stdout)
        # the compiler takes the .gch file if it finds it in an include folder; if not, the header itself
        options = ["-I", str(path.parent.parent)]
    wall_s, (ending,) = yield _compile_step(language, (*language.compile, *options, "main"), text)
    if not ending.shut_in:
        return JudgedCase(_jail_not_closed(wall_s, ending))
    if ending.exit == 0 and not ending.ended_for:
        programs.put(job.language, text, ending.stdout)
        return ending.stdout
    without_stdout = replace(ending, stdout=b"")  # standard output would be the program
    reason = "the compiler did not end in time" if ending.ended_for else "the program does not compile"
    return JudgedCase(_result("compile_error", wall_s, without_stdout, reason))


def _compile_step(language: Language, options: Sequence[str], text: bytes) -> Step:
    fields = {"argv": [language.path, *options]}
    return Step("native", (Payload("compile", fields, text),), COMPILE_LIMITS)


def judging(job: Job, index: int, program: bytes) -> Steps:
    """Run the steps that lead to the verdict on one case."""
    step = _first_step(job, index, program)
    wall_s, endings = yield _with_slack(step)
    return (yield from _continue_judging(job, index, step, wall_s, endings))


def calls_of(job: Job) -> list[bytes]:
    """The encoded arguments of the job's first cases if they may be tried in one process; else an empty list."""
    if job.language != "python" or len(job.tests) < 2 or not all("args" in test for test in job.tests):
        return []
    # encoded one by one: no two calls may share an object
    calls = [marshal.dumps(list(test["args"])) for test in job.tests[:_MAX_TOGETHER]]
    return calls if sum(map(len, calls)) <= _TOGETHER_BYTES else []


def judging_together(job: Job, calls: list[bytes]) -> Together:
    """Try the first cases in one process; their results, which may be fewer than the calls or none.

    A program is called more than once in a process only if it keeps nothing between calls. The results count only if
    all calls return; else the cases are judged one by one.
    """
    first_step = _first_step(job, 0, b"")
    payload = Payload("calls", {"code": job.code, "entry_point": job.entry_point, "calls": calls})
    wall_s, (ending,) = yield _with_slack(replace(first_step, payloads=(payload,)))
    report_lines = ending.report.splitlines(keepends=True)
    if _last_report(report_lines[0] if report_lines else b"").get("calls") != len(calls):
        # the program was not called for all cases: this gives the verdict on the first one
        return [(yield from _continue_judging(job, 0, first_step, wall_s, [ending]))]
    if len(report_lines) != 1 + len(calls) or not _is_spotless(ending, job.limits):
        return []
    share = replace(ending, cpu_s=ending.cpu_s / len(calls))
    results = [
        _verdict(job, index, wall_s / len(calls), [replace(share, report=text)])
        for index, text in enumerate(report_lines[1:])
    ]
    return [JudgedCase(case) for case in results if case is not None]


def _is_spotless(ending: Ending, limits: Limits) -> bool:
    """Whether a process ended well, within the limits of a single case, and printed and attempted nothing."""
    ended_well = ending.shut_in and ending.exit == 0 and not ending.ended_for and ending.cpu_s <= limits.cpu_s
    return ended_well and not (ending.stdout or ending.stderr or ending.attempts)


def _with_slack(step: Step) -> Step:
    limit = step.limits.cpu_s
    return replace(step, limits=replace(step.limits, cpu_s=limit + max(_SLACK * limit, _LEAST_SLACK)))


def _continue_judging(job: Job, index: int, step: Step, wall_s: float, endings: list[Ending]) -> Steps:
    """Continue from how the processes of a case's first step ended, to the verdict."""
    if any(_is_doubtful(ending, job.limits) for ending in endings):
        wall_s, endings = yield replace(step, alone=True)
    attempts = endings[0].attempts
    case = _verdict(job, index, wall_s, endings)
    if case is not None:
        return JudgedCase(case, attempts)
    checked = yield from _checking(job, index, endings[0].stdout)
    sound = True
    if checked.score is None:
        # a checker may fail on a wrong output: try it on the expected one. Else a program could avoid a wrong answer
        # by printing something that makes the checker fail
        sound = (yield from _checking(job, index, bytes_of(job.tests[index], "output"))).score is not None
    return JudgedCase(_checker_verdict(wall_s, endings[0], checked, sound=sound), attempts)


def _checking(job: Job, index: int, output: bytes) -> Generator[Step, Outcome, _Check]:
    """Run the checker on an output."""
    step = _checker_step(job, index, output)
    _, (ending,) = yield step
    if _is_doubtful(ending, step.limits):
        _, (ending,) = yield replace(step, alone=True)
    score = _last_report(ending.report).get("score")
    is_number = isinstance(score, int | float) and not isinstance(score, bool)
    message = ending.stderr[-500:].decode("utf-8", "replace").strip() or str(ending.exit)
    return _Check(score if ending.shut_in and not ending.ended_for and is_number else None, message)


def _first_step(job: Job, index: int, program: bytes) -> Step:
    """The tasks of one case's processes: the code and the input, never the expected output."""
    test = job.tests[index]
    language = LANGUAGES.get(job.language)
    if language is not None:
        arguments = [word.replace("{memory_mb}", str(job.limits.memory_mb)) for word in language.run]
        argv = [language.path, *arguments] if arguments else [""]
        # a runtime reserves address space that it does not use; control groups, if any, bound the memory in use
        limits = replace(job.limits, memory_mb=job.limits.memory_mb + language.address_space_mb)
        return Step(
            "native",
            (Payload("native", {"argv": argv, "forks": language.forks}, bytes_of(test, "input"), program),),
            limits,
        )
    kind = profiles.kind_of(job.code)
    if "assert" in test:
        check = {"code": test["assert"], "entry_point": job.entry_point}
        return Step(kind, (Payload("solve", {"code": job.code}), Payload("check", check)), job.limits)
    if "args" in test:
        fields = {"code": job.code, "entry_point": job.entry_point, "args": list(test["args"])}
        return Step(kind, (Payload("call", fields),), job.limits)
    return Step(kind, (Payload("program", {"code": job.code}, bytes_of(test, "input")),), job.limits)


def _is_doubtful(ending: Ending, limits: Limits) -> bool:
    """Whether it may have failed only because of what ran beside it: all share the CPU, the threads and the memory."""
    starved = ending.exit != 0 and (_NO_THREAD in ending.stderr or ending.exit == -signal.SIGKILL)
    if starved and not ending.ended_for:
        return True
    if ending.ended_for == "wall":
        return ending.cpu_s >= _BUSY_SHARE * limits.wall_s
    return not ending.ended_for and ending.cpu_s > limits.cpu_s


def _verdict(job: Job, index: int, wall_s: float, endings: list[Ending]) -> CaseResult | None:
    """The result of one case from how its processes ended; None if a checker must decide."""
    test, submission = job.tests[index], endings[0]
    for ending in endings:
        if not ending.shut_in:
            return _jail_not_closed(wall_s, ending)
    # the report file of a native program holds the program itself
    report = {} if job.language in LANGUAGES else _last_report(submission.report)
    verdict, reason = _broken_limit(submission, report, job.limits)
    if "assert" in test:
        verdict, reason = _assert_verdict(endings[1], report, verdict, reason, job.limits)
    elif verdict is None and "args" in test:
        verdict, reason = _call_verdict(job, index, report)
    elif verdict is None and job.run_only:
        verdict = "accepted"
    elif verdict is None and job.checker is not None:
        return None
    elif verdict is None:
        same = same_output(submission.stdout, bytes_of(test, "output"), job.compare)
        verdict, reason = ("accepted", "") if same else ("wrong_answer", "")
    assert verdict is not None
    # with run_only, standard error must hold the program's text only; the verdict and exit status say the rest
    return _result(verdict, wall_s, submission, "" if job.run_only else reason)


def _checker_step(job: Job, index: int, output: bytes) -> Step:
    test = job.tests[index]
    texts = {"input": bytes_of(test, "input"), "expected": bytes_of(test, "output"), "output": output}
    fields = {"code": job.checker, **{name: text.hex() for name, text in texts.items()}}
    return Step(profiles.kind_of(job.checker or ""), (Payload("checker", fields),), _CHECKER_LIMITS)


def _checker_verdict(wall_s: float, ending: Ending, check: _Check, *, sound: bool) -> CaseResult:
    """The result from a checker's answer. Not `sound`: it failed on the expected output, too, a fault of the data."""
    if check.score is None:
        verdict: CaseVerdict = "wrong_answer" if sound else "sandbox_error"
        return _result(verdict, wall_s, ending, f"the checker gave no verdict: {check.said}")
    return _result(
        "accepted" if check.score >= 1 else "wrong_answer", wall_s, ending, f"the checker says {check.score:g}"
    )


def _broken_limit(ending: Ending, report: dict[str, Any], limits: Limits) -> tuple[CaseVerdict | None, str]:
    """The verdict and its reason if the ending alone decides; a verdict of None if the answer decides."""
    if ending.ended_for == "refused":
        return "runtime_error", "tried over and over what a program may not do"
    if ending.ended_for or ending.cpu_s > limits.cpu_s or ending.exit == -signal.SIGXCPU:
        is_wall = ending.ended_for == "wall"
        return "time_limit", f"more than {limits.wall_s} s" if is_wall else f"more than {limits.cpu_s} s of CPU"
    if report.get("error") == "compile":
        return "compile_error", str(report.get("message"))
    size = limits.output_kb * 1024
    if ending.exit == -signal.SIGXFSZ or len(ending.stdout) > size or len(ending.stderr) > size:
        return "output_limit", f"more than {limits.output_kb} KiB"
    if report.get("error") == "memory" or (ending.exit != 0 and any(text in ending.stderr for text in _NO_MEMORY)):
        return "memory_limit", f"more than {limits.memory_mb} MiB"
    if ending.exit != 0:
        return "runtime_error", str(report.get("message", f"exit status {ending.exit}"))
    return None, ""


_NO_MEMORY = (b"std::bad_alloc", b"heap out of memory", b"annot allocate memory")
"""What C++, Node and shells print before they end because memory is exhausted."""


def _call_verdict(job: Job, index: int, report: dict[str, Any]) -> tuple[CaseVerdict, str]:
    """The verdict on a function call, and its reason."""
    if "value" not in report:
        return "runtime_error", "the program ended before the function returned"
    try:
        value = decode_json(report["value"])
        same = same_value(value, job.tests[index]["expected"], job.compare)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
        return "wrong_answer", f"returned what cannot be compared: {error}"
    return ("accepted", "") if same else ("wrong_answer", f"returned {json.dumps(report['value'])[:200]}")


def _assert_verdict(
    check: Ending, report: dict[str, Any], verdict: CaseVerdict | None, reason: str, limits: Limits
) -> tuple[CaseVerdict, str]:
    """The verdict on an assert test: the test's process decides, unless the submission broke a limit."""
    check_report = _last_report(check.report)
    if "fault" in check_report:
        return "sandbox_error", str(check_report["fault"])
    if verdict in ("time_limit", "output_limit", "compile_error"):
        return verdict, reason
    if check_report.get("passed") is True and check.exit == 0:
        return "accepted", ""
    if verdict == "memory_limit":
        return verdict, reason
    if check.ended_for or check.cpu_s > limits.cpu_s:
        return "time_limit", "the test did not end in time"
    if check_report.get("raised") or verdict == "runtime_error":
        return "runtime_error", str(report.get("message") or check_report.get("failed", ""))
    return "wrong_answer", str(check_report.get("failed", f"the test ended with exit status {check.exit}"))


def _last_report(report: bytes) -> dict[str, Any]:
    """The last complete line of a report, as an object; empty if there is none that can be read."""
    lines = report.rsplit(b"\n", 2)
    try:
        value = json.loads(lines[-2]) if len(lines) > 1 and not lines[-1] else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _jail_not_closed(wall_s: float, ending: Ending) -> CaseResult:
    return _result("sandbox_error", wall_s, ending, f"the jail was not shut (exit {ending.exit})")


def _result(verdict: CaseVerdict, wall_s: float, ending: Ending, reason: str) -> CaseResult:
    stderr = ending.stderr[-_SHOWN_STDERR:].decode("utf-8", "replace")
    if reason and reason not in stderr:
        stderr = f"{stderr}{'' if not stderr or stderr.endswith(chr(10)) else chr(10)}{reason}\n"
    return CaseResult(
        verdict=verdict,
        cpu_s=round(ending.cpu_s, 6),
        wall_s=round(wall_s, 6),
        memory_mb=round(ending.memory_mb, 3),
        stdout=ending.stdout[:_SHOWN_STDOUT].decode("utf-8", "replace"),
        stderr=stderr,
        exit=ending.exit,
    )
