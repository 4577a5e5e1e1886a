"""Does the program in the answer pass the row's tests? It runs in a sandbox, here or on servers."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwq_rl.errors import UserError
from qwq_rl.sandbox import Job, JobError, LocalSandbox, Result, SandboxUnavailable
from qwq_rl.sandbox.http.client import RemoteSandbox
from qwq_rl.verifiers.contract import Problem, Response, Verdict
from qwq_rl.verifiers.verdicts import ALMOST, bad_reference, empty_answer, fault, no_answer, shown

LEVELS = ("L0", "L1", "L2", "L3", "L4")
URLS, TOKEN, REQUIRE = "QWQ_RL_SANDBOX_URLS", "QWQ_RL_SANDBOX_TOKEN", "QWQ_RL_SANDBOX_REQUIRE"
"""Environment variables that hold where a recipe says nothing."""
_KNOWN = {"tests", "entry_point", "limits", "prelude", "compare", "language", "checker"}
Sandbox = LocalSandbox | RemoteSandbox
_Key = tuple["Program", str]
"""A program and the reference that it is judged by."""
_STATUSES = {"wrong_answer": "wrong", "time_limit": "timeout"}
"""Sandbox verdicts that have another name as a status; the rest keep theirs."""
_REASON = 200
_ATTEMPT = "attempt: "
"""How the events of a result begin that tell of an attempt to get out of the jail."""


TAGS: dict[str, frozenset[str]] = {
    "python": frozenset({"python", "python3", "py", "py3"}),
    "cpp": frozenset({"cpp", "c++", "cc", "cxx", "cpp17", "c++17", "cpp20", "c++20"}),
    "javascript": frozenset({"javascript", "js", "node", "nodejs", "mjs"}),
    "bash": frozenset({"bash", "sh", "shell"}),
}
"""What a block of a language may be labelled."""
_OPENING = re.compile(r"([ \t]*)(`{3,}(?=[^`]*$)|~{3,})(.*)")
_CLOSING = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*")
_TAG = re.compile(r"[\s{.]*([\w+#]*)")


def code(
    *,
    cpu_s: float = 2.0,
    memory_mb: int = 256,
    partial: bool = False,
    unfenced: Literal["no_answer", "program"] = "no_answer",
    language: str | Sequence[str] = "python",
    require: str | None = None,
    urls: Sequence[str] | None = None,
    token_variable: str = TOKEN,
    sandbox: Callable[[], Sandbox] | None = None,
) -> CodeVerifier:
    """Build the verifier of programs.

    `cpu_s` and `memory_mb` hold where the row's own limits say nothing; with `partial` the score is the share of tests
    passed; an answer without a block of code is `no_answer`, or all of it the `program`; `language`, one or several,
    is what programs may be in where the row does not say. `require` is the isolation below which nothing is run
    (default: $QWQ_RL_SANDBOX_REQUIRE, or L2); L0 says that programs are trusted and may run without any.

    Judges with the servers at `urls` (default: $QWQ_RL_SANDBOX_URLS, separated by commas) and the token that the
    environment variable `token_variable` holds; without any, with one sandbox in this process. `sandbox` returns
    another one.

    A reference is `{"tests": [...], "entry_point": null | str, "limits": {...}, "compare": ..., "prelude": str,
    "language": str | [str, ...], "checker": str}`: tests, comparisons and checkers as in a sandbox job; the prelude is
    put before the program and before every assert test, where the entry point that it leaves to be written is the
    submission's.
    """
    require = require or os.environ.get(REQUIRE) or "L2"
    if require not in LEVELS:
        raise UserError(f"require is {require!r}: give one of {', '.join(LEVELS)}")
    if unfenced not in ("no_answer", "program"):
        raise UserError(f"unfenced is {unfenced!r}: give 'no_answer' or 'program'")
    if mistake := _no_languages(language):
        raise UserError(mistake)
    if sandbox is None:
        named = _urls(urls)
        sandbox = (
            functools.partial(remote_sandbox, named, token_variable, require)
            if named
            else functools.partial(shared_sandbox, require == "L0")
        )
    limits = {"cpu_s": cpu_s, "memory_mb": memory_mb}
    return CodeVerifier(limits, partial, unfenced == "program", language, require, sandbox)


@functools.cache
def shared_sandbox(unsafe: bool = False) -> LocalSandbox:
    """The sandbox of this process; it starts with the first job. `unsafe`: it may run programs without walls, too."""
    return LocalSandbox(allow_unsafe=unsafe)


@functools.cache
def remote_sandbox(urls: tuple[str, ...], token_variable: str, require: str) -> RemoteSandbox:
    """The client of these servers that all verifiers of this process share. Raises `UserError`."""
    try:
        return RemoteSandbox(urls, token=os.environ.get(token_variable) or None, require=require)
    except ValueError as error:
        raise UserError(f"the sandbox's servers: {error}") from error


def _urls(urls: Sequence[str] | None) -> tuple[str, ...]:
    """The servers to use, given or from the environment."""
    if isinstance(urls, str):
        raise UserError(f"urls is {urls!r}: give a list")
    given = os.environ.get(URLS, "").replace(",", " ").split() if urls is None else urls
    return tuple(given)


class CodeVerifier:
    """Judges programs; `batch` runs many at once, identical ones of the same row only once."""

    def __init__(
        self,
        limits: Mapping[str, Any],
        partial: bool,
        bare: bool,
        language: str | Sequence[str],
        require: str,
        sandbox: Callable[[], Sandbox],
    ) -> None:
        """Build one with `code`."""
        self._limits, self._partial, self._bare, self._language = limits, partial, bare, language
        self._require, self._sandbox = require, sandbox
        self.largest_failing_score = ALMOST if partial else 0.0
        """What a program that fails a test gets at most."""

    def __call__(self, problem: Problem, response: Response) -> Verdict:
        """Judge one response."""
        return self.batch([(problem, response)])[0]

    def batch(self, items: Sequence[tuple[Problem, Response]]) -> list[Verdict]:
        """One verdict an item, in order. Raises `UserError` where this machine cannot shut programs in as required."""
        started = time.perf_counter()
        jobs: dict[_Key, Job] = {}
        outlines: dict[int, tuple[str, str, Any]] = {}
        planned = [self._plan(problem, response, jobs, outlines) for problem, response in items]
        results = dict(zip(jobs, self._judged(list(jobs.values())), strict=True))
        seconds = (time.perf_counter() - started) / max(1, len(items))
        return [
            plan if isinstance(plan, Verdict) else self._verdict(results[plan], jobs[plan], plan[0].text, seconds)
            for plan in planned
        ]

    def _plan(
        self, problem: Problem, response: Response, jobs: dict[_Key, Job], outlines: dict[int, tuple[str, str, Any]]
    ) -> Verdict | _Key:
        """The key of the job that judges this response, added to `jobs`; or its verdict, where nothing is to be run."""
        reference: Any = problem.get("reference")
        if id(reference) not in outlines:  # responses of one group share it, and it may be large
            outlines[id(reference)] = (*_outline(reference), reference)
        name_of_reference, reason, _ = outlines[id(reference)]
        if reason:
            return bad_reference(shown(reason, _REASON))
        languages = self._languages(reference)
        name = reference.get("entry_point")
        entry_point = name if isinstance(name, str) else None
        program = extract_program(response.answer, languages, entry_point=entry_point, bare=self._bare)
        if program is None:
            blocks = " or ".join(f"```{language}" for language in languages)
            return (
                no_answer(f"there is no closed {blocks} block") if response.answer.strip() else empty_answer(response)
            )
        key = (program, name_of_reference)
        if key not in jobs:
            try:
                jobs[key] = self._job(str(len(jobs)), program, reference)
            except JobError as error:
                return bad_reference(shown(f"reference: {error}", _REASON))
        return key

    def _languages(self, reference: Mapping[str, Any]) -> tuple[str, ...]:
        """What a program may be in: calls and asserts are only for Python."""
        asked = reference.get("language") or self._language
        languages = (asked,) if isinstance(asked, str) else tuple(asked)
        tests = reference["tests"] if isinstance(reference["tests"], list | tuple) else ()
        calls = any(isinstance(test, Mapping) and not {"input", "input_b64"} & set(test) for test in tests)
        return ("python",) if calls and "python" in languages else languages

    def _job(self, name: str, program: Program, reference: Any) -> Job:
        prelude = reference.get("prelude") or ""
        before = prelude if not prelude or prelude.endswith("\n") else prelude + "\n"
        tests = reference["tests"]
        if before and isinstance(tests, list):
            tests = [
                {"assert": before + test["assert"]} if isinstance(test, Mapping) and set(test) == {"assert"} else test
                for test in tests
            ]
        limits = reference.get("limits") or {}
        return Job.from_dict(
            {
                "id": name,
                "code": before + program.text,
                "language": program.language,
                "tests": tests,
                "checker": reference.get("checker"),
                "entry_point": reference.get("entry_point"),
                "compare": reference.get("compare", "tokens"),
                "mode": "all" if self._partial else "first_failure",
                "limits": {**self._limits, **limits} if isinstance(limits, Mapping) else limits,
            }
        )

    def _judged(self, jobs: list[Job]) -> list[Result]:
        if not jobs:
            return []
        try:
            sandbox = self._sandbox()
            if isinstance(sandbox, LocalSandbox) and (level := sandbox.isolation) < self._require:
                raise UserError(
                    f"the sandbox reaches isolation {level} on this machine, and {self._require} is required: `qwq-rl "
                    f"sandbox doctor` shows what is missing; to accept {level}, set `require: {level}` or ${REQUIRE}"
                )
            return sandbox.judge(jobs)
        except (SandboxUnavailable, JobError) as error:
            raise UserError(str(error)) from error

    def _verdict(self, result: Result, job: Job, program: str, seconds: float) -> Verdict:
        reason = describe_result(result, job)
        if result.verdict == "sandbox_error":
            return fault(reason)
        accepted = result.verdict == "accepted"
        part = min(result.passed / result.total, ALMOST) if self._partial else 0.0
        score = 1.0 if accepted else part
        status = "correct" if accepted else _STATUSES.get(result.verdict, result.verdict)
        cpu_s = sum(case.cpu_s for case in result.cases)
        metrics = {"passed": float(result.passed), "total": float(result.total), "cpu_s": cpu_s}
        attempts = [event.removeprefix(_ATTEMPT) for event in result.events if event.startswith(_ATTEMPT)]
        if attempts:
            metrics["attempts"] = float(len(attempts))
            reason = f"{shown(reason, _REASON - 60)}; it tried to get out: {shown(', '.join(attempts), 40)}"
        return Verdict(score, status, reason, program, metrics, seconds)


def describe_result(result: Result, job: Job) -> str:
    """One line: that all passed, or which test did not and why."""
    if result.verdict == "accepted":
        return f"all {result.total} tests passed" if result.total > 1 else "the test passed"
    index = next(place for place, case in enumerate(result.cases) if case.verdict == result.verdict)
    case, test = result.cases[index], job.tests[index]
    name = f"test {index + 1} of {result.total}: {result.verdict.replace('_', ' ')}"
    said = case.stderr.strip().splitlines()
    if result.verdict == "wrong_answer" and "output" in test:
        return shown(f"{name}: printed {shown(repr(case.stdout))}, expected {shown(repr(test['output']))}", _REASON)
    expected = (
        f", expected {shown(json.dumps(test['expected']))}"
        if result.verdict == "wrong_answer" and "expected" in test
        else ""
    )
    return shown(f"{name}: {said[-1] if said else 'no message'}{expected}", _REASON)


def _outline(reference: object) -> tuple[str, str]:
    """A text that equal references share, and what is wrong with this one; empty where nothing is."""
    try:
        return hashlib.sha256(json.dumps(reference, sort_keys=True).encode()).hexdigest(), _misfit(reference)
    except (TypeError, ValueError) as error:
        return "", f"reference is not JSON: {error}"


def _misfit(reference: object) -> str:
    """What is wrong with the outline of a reference; empty where it is right."""
    if not isinstance(reference, Mapping):
        return 'reference: give {"tests": [...], "entry_point": null | str, "limits": {...}}'
    if "tests" not in reference:
        return "reference.tests is missing"
    unknown = sorted(set(reference) - _KNOWN)
    if unknown:
        return f"reference.{unknown[0]} is not a field: there are {', '.join(sorted(_KNOWN))}"
    if not isinstance(reference.get("prelude", ""), str | None):
        return f"reference.prelude is a {type(reference['prelude']).__name__}: give a string"
    return f"reference.{mistake}" if (mistake := _no_languages(reference.get("language", "python"))) else ""


def _no_languages(value: object) -> str:
    """What is wrong with a language or a list of them; empty where nothing is."""
    named = [value] if isinstance(value, str) else value
    if isinstance(named, list | tuple) and named and all(name in TAGS for name in named):
        return ""
    return f"language is {value!r}: give one or a list of {', '.join(TAGS)}"


@dataclass(frozen=True)
class Block:
    """A fenced block: its label in lower case, and what stands in it."""

    tag: str
    text: str


@dataclass(frozen=True)
class Program:
    """What is to be run."""

    text: str
    language: str


def extract_program(
    answer: str, languages: Sequence[str] = ("python",), *, entry_point: str | None = None, bare: bool = False
) -> Program | None:
    """The program that an answer ends on; None where there is none.

    Of the closed blocks labelled with one of the languages the last that defines `entry_point`, or else the last; where
    no block is labelled so, the same of those without a label, in the first language. Inside the last `<answer>` where
    that has any. With `bare`, a text without any fence is itself a program.
    """
    told = _inside_tag(answer.replace("\r\n", "\n"))
    known = {tag: language for language in languages for tag in TAGS[language]}
    for labels in (known, {"": languages[0]}):
        found = [block for block in blocks(told) if block.tag in labels]
        defining = [block for block in found if entry_point and _defines(block.text, entry_point)]
        if found:
            block = (defining or found)[-1]
            return Program(block.text, labels[block.tag])
    return Program(told, languages[0]) if bare and told.strip() and "```" not in told else None


def blocks(text: str) -> list[Block]:
    """The closed fenced blocks of a Markdown text, as CommonMark reads them; one line after the other."""
    found: list[Block] = []
    fence, indent, tag, held = "", 0, "", list[str]()
    for line in text.split("\n"):
        if not fence:
            if opening := _OPENING.fullmatch(line):
                fence, indent, held = opening[2], len(opening[1]), []
                label = _TAG.match(opening[3])
                tag = label[1].lower() if label else ""
        elif (closing := _CLOSING.fullmatch(line)) and closing[1].startswith(fence):
            found.append(Block(tag, "".join(f"{one}\n" for one in held)))
            fence = ""
        else:
            held.append(line[min(indent, len(line) - len(line.lstrip(" \t"))) :])
    return found


def _inside_tag(text: str) -> str:
    before, closed, _ = text.rpartition("</answer>")
    _, opened, inside = before.rpartition("<answer>")
    return inside if closed and opened else text


def _defines(program: str, name: str) -> bool:
    return (
        re.search(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(name)}\b|^{re.escape(name)}[ \t]*[:=]", program, re.M)
        is not None
    )
