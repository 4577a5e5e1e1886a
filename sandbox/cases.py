"""One test case: what its processes are given, and what their ending means. Expected values stay on this side."""

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
"""How far over its CPU limit a case may run among others, as a share and in seconds, before it is given up: what ends
in that time is judged by a run alone, since neighbours cost it CPU time (caches, hyperthreads)."""
_STARVED = 0.05
"""CPU seconds a second of wall time: who used so much when the wall limit struck was not asleep but kept waiting."""
_MOST_TOGETHER, _TOGETHER_BYTES = 64, 1 << 16
"""Calls of one program that may share a process, and the bytes of all of their arguments."""
_NO_THREAD = b"can't start new thread"
_CHECKER_LIMITS = Limits(cpu_s=10.0, wall_s=60.0, memory_mb=512, output_kb=1024)
COMPILE_LIMITS = Limits(cpu_s=30.0, wall_s=120.0, memory_mb=2048, output_kb=1 << 18)


@dataclass(frozen=True)
class Step:
    """Processes to be run together in jails of their own, on the way to the verdict on a case."""

    kind: profiles.Kind
    payloads: tuple[Payload, ...]
    limits: Limits
    alone: bool = False
    """Nothing else of this sandbox may run meanwhile."""


Outcome = tuple[float, list[Ending]]
"""Wall seconds, and how the processes ended."""


@dataclass(frozen=True)
class JudgedCase:
    """A verdict on one case, and the kinds of attempts to get out that were seen."""

    case: CaseResult
    attempts: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Check:
    """What a checker said; no score where it failed itself."""

    score: float | None
    said: str


Steps = Generator[Step, Outcome, JudgedCase]
Together = Generator[Step, Outcome, "list[JudgedCase]"]
Compilation = Generator[Step, Outcome, "bytes | JudgedCase"]


def compilation(job: Job, programs: BinaryCache) -> Compilation:
    """Make the program that all cases of a job share: what is executed, or the verdict that it does not compile."""
    language = LANGUAGES.get(job.language)
    text = job.code.encode("utf-8", "surrogateescape")
    if language is None or not language.compile:
        return text
    known = programs.get(job.language, text)
    if known is not None:
        return known
    options: list[str] = []
    if language.headers and language.headers in job.code and (path := header(job.language)) is not None:
        if not path.exists() and programs.try_header(path):
            include = f"#include <{language.headers}>\n".encode()
            _, (made,) = yield _compile_step(language, language.compile_header, include)
            if made.exit == 0 and made.shut_in:
                keep_header(path, made.stdout)
        options = ["-I", str(path.parent.parent)]
    wall_s, (ending,) = yield _compile_step(language, (*language.compile, *options, "main"), text)
    if not ending.shut_in:
        return JudgedCase(_not_shut(wall_s, ending))
    if ending.exit == 0 and not ending.ended_for:
        programs.put(job.language, text, ending.stdout)
        return ending.stdout
    said = replace(ending, stdout=b"")
    why = "the compiler did not end in time" if ending.ended_for else "the program does not compile"
    return JudgedCase(_result("compile_error", wall_s, said, why))


def _compile_step(language: Language, options: Sequence[str], text: bytes) -> Step:
    fields = {"argv": [language.path, *options]}
    return Step("native", (Payload("compile", fields, text),), COMPILE_LIMITS)


def judging(job: Job, index: int, program: bytes) -> Steps:
    """All that leads to the verdict on one case."""
    step = _first_step(job, index, program)
    wall_s, endings = yield _roomy(step)
    return (yield from _judging_on(job, index, step, wall_s, endings))


def calls_of(job: Job) -> list[bytes]:
    """The arguments of the job's first cases, as a child gets them, where these may be tried in one process."""
    if job.language != "python" or len(job.tests) < 2 or not all("args" in test for test in job.tests):
        return []
    # each by itself: no two calls may share an object
    calls = [marshal.dumps(list(test["args"])) for test in job.tests[:_MOST_TOGETHER]]
    return calls if sum(map(len, calls)) <= _TOGETHER_BYTES else []


def judging_together(job: Job, calls: list[bytes]) -> Together:
    """What leads to the verdicts on the first cases in one process: on as many as it was fit for, be it none.

    Only a program that keeps nothing from one call to the next is called more than once there, and only if all of its
    calls return is anything taken from that; else its cases are judged one by one.
    """
    alone = _first_step(job, 0, b"")
    payload = Payload("calls", {"code": job.code, "entry_point": job.entry_point, "calls": calls})
    wall_s, (ending,) = yield _roomy(replace(alone, payloads=(payload,)))
    said = ending.report.splitlines(keepends=True)
    if _last_report(said[0] if said else b"").get("calls") != len(calls):
        return [(yield from _judging_on(job, 0, alone, wall_s, [ending]))]
    if len(said) != 1 + len(calls) or not _is_spotless(ending, job.limits):
        return []
    one = replace(ending, cpu_s=ending.cpu_s / len(calls))
    found = [_verdict(job, at, wall_s / len(calls), [replace(one, report=text)]) for at, text in enumerate(said[1:])]
    return [JudgedCase(case) for case in found if case is not None]


def _is_spotless(ending: Ending, limits: Limits) -> bool:
    """Whether a process did nothing but end well within the limits of a single case."""
    well = ending.shut_in and ending.exit == 0 and not ending.ended_for and ending.cpu_s <= limits.cpu_s
    return well and not (ending.stdout or ending.stderr or ending.attempts)


def _roomy(step: Step) -> Step:
    limit = step.limits.cpu_s
    return replace(step, limits=replace(step.limits, cpu_s=limit + max(_SLACK * limit, _LEAST_SLACK)))


def _judging_on(job: Job, index: int, step: Step, wall_s: float, endings: list[Ending]) -> Steps:
    """From how the processes of a case's first step ended to the verdict."""
    if any(_is_doubtful(ending, job.limits) for ending in endings):
        wall_s, endings = yield replace(step, alone=True)
    attempts = endings[0].attempts
    judged = _verdict(job, index, wall_s, endings)
    if judged is not None:
        return JudgedCase(judged, attempts)
    checked = yield from _checking(job, index, endings[0].stdout)
    sound = True
    if checked.score is None:
        # what it cannot read is wrong if it can read what is right: else a program could print its way to a fault
        sound = (yield from _checking(job, index, bytes_of(job.tests[index], "output"))).score is not None
    return JudgedCase(_checked(wall_s, endings[0], checked, sound=sound), attempts)


def _checking(job: Job, index: int, output: bytes) -> Generator[Step, Outcome, _Check]:
    """What the checker says of an output."""
    step = _checker_step(job, index, output)
    _, (ending,) = yield step
    if _is_doubtful(ending, step.limits):
        _, (ending,) = yield replace(step, alone=True)
    score = _last_report(ending.report).get("score")
    number = isinstance(score, int | float) and not isinstance(score, bool)
    said = ending.stderr[-500:].decode("utf-8", "replace").strip() or str(ending.exit)
    return _Check(score if ending.shut_in and not ending.ended_for and number else None, said)


def _first_step(job: Job, index: int, program: bytes) -> Step:
    """What the processes of one case are given: the code and this case's input, never what is expected."""
    test = job.tests[index]
    language = LANGUAGES.get(job.language)
    if language is not None:
        filled = [word.replace("{memory_mb}", str(job.limits.memory_mb)) for word in language.run]
        argv = [language.path, *filled] if filled else [""]
        # a runtime's reservations are no use of memory; where control groups hold, they bound what is used
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
    """Whether it may have failed only because of what ran beside: all share the CPU, threads and memory there are."""
    starved = ending.exit != 0 and (_NO_THREAD in ending.stderr or ending.exit == -signal.SIGKILL)
    if starved and not ending.ended_for:
        return True
    if ending.ended_for == "wall":
        return ending.cpu_s >= _STARVED * limits.wall_s
    return not ending.ended_for and ending.cpu_s > limits.cpu_s


def _verdict(job: Job, index: int, wall_s: float, endings: list[Ending]) -> CaseResult | None:
    """The verdict on one case from how its processes ended; None where a checker decides."""
    test, mine = job.tests[index], endings[0]
    for ending in endings:
        if not ending.shut_in:
            return _not_shut(wall_s, ending)
    said = {} if job.language in LANGUAGES else _last_report(mine.report)
    verdict, why = _broken_limit(mine, said, job.limits)
    if "assert" in test:
        verdict, why = _asserted(endings[1], said, verdict, why, job.limits)
    elif verdict is None and "args" in test:
        verdict, why = _returned(job, index, said)
    elif verdict is None and job.run_only:
        verdict = "accepted"
    elif verdict is None and job.checker is not None:
        return None
    elif verdict is None:
        same = same_output(mine.stdout, bytes_of(test, "output"), job.compare)
        verdict, why = ("accepted", "") if same else ("wrong_answer", "")
    assert verdict is not None
    # who only runs a program wants its own standard error; the verdict and the exit status say the rest
    return _result(verdict, wall_s, mine, "" if job.run_only else why)


def _checker_step(job: Job, index: int, output: bytes) -> Step:
    test = job.tests[index]
    texts = {"input": bytes_of(test, "input"), "expected": bytes_of(test, "output"), "output": output}
    fields = {"code": job.checker, **{name: text.hex() for name, text in texts.items()}}
    return Step(profiles.kind_of(job.checker or ""), (Payload("checker", fields),), _CHECKER_LIMITS)


def _checked(wall_s: float, ending: Ending, check: _Check, *, sound: bool) -> CaseResult:
    """The verdict of a checker; one that cannot even read what is right is a fault of the data set, no wrong answer."""
    if check.score is None:
        verdict: CaseVerdict = "wrong_answer" if sound else "sandbox_error"
        return _result(verdict, wall_s, ending, f"the checker gave no verdict: {check.said}")
    return _result(
        "accepted" if check.score >= 1 else "wrong_answer", wall_s, ending, f"the checker says {check.score:g}"
    )


def _broken_limit(ending: Ending, said: dict[str, Any], limits: Limits) -> tuple[CaseVerdict | None, str]:
    """The verdict that an ending alone gives; None where the answer decides."""
    if ending.ended_for == "refused":
        return "runtime_error", "tried over and over what a program may not do"
    if ending.ended_for or ending.cpu_s > limits.cpu_s or ending.exit == -signal.SIGXCPU:
        wall = ending.ended_for == "wall"
        return "time_limit", f"more than {limits.wall_s} s" if wall else f"more than {limits.cpu_s} s of CPU"
    if said.get("error") == "compile":
        return "compile_error", str(said.get("message"))
    size = limits.output_kb * 1024
    if ending.exit == -signal.SIGXFSZ or len(ending.stdout) > size or len(ending.stderr) > size:
        return "output_limit", f"more than {limits.output_kb} KiB"
    if said.get("error") == "memory" or (ending.exit != 0 and any(sign in ending.stderr for sign in _NO_MEMORY)):
        return "memory_limit", f"more than {limits.memory_mb} MiB"
    if ending.exit != 0:
        return "runtime_error", str(said.get("message", f"exit status {ending.exit}"))
    return None, ""


_NO_MEMORY = (b"std::bad_alloc", b"heap out of memory", b"annot allocate memory")
"""What C++, Node and shells say before they end for want of memory."""


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


def _not_shut(wall_s: float, ending: Ending) -> CaseResult:
    return _result("sandbox_error", wall_s, ending, f"the jail was not shut (exit {ending.exit})")


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
