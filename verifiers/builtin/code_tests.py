"""Judges programs: runs the one in the answer against the row's tests, in a sandbox on this machine or on servers."""

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
"""The isolation levels of the sandbox, from none to the strongest."""
URLS, TOKEN, REQUIRE = "QWQ_RL_SANDBOX_URLS", "QWQ_RL_SANDBOX_TOKEN", "QWQ_RL_SANDBOX_REQUIRE"
"""Environment variables that are used if the recipe gives no value."""
_KNOWN = {"tests", "entry_point", "limits", "prelude", "compare", "language", "checker"}
"""The fields that a reference may have."""
Sandbox = LocalSandbox | RemoteSandbox
_Key = tuple["Program", str]
"""A program and the hash of the reference that it is judged by."""
_STATUSES = {"wrong_answer": "wrong", "time_limit": "timeout"}
"""Sandbox verdicts whose status has another name. The others keep their names."""
_REASON = 200
"""The most characters of a reason."""
_ATTEMPT = "attempt: "
"""How an event of a result starts if the program made an attempt to break out of the jail."""


TAGS: dict[str, frozenset[str]] = {
    "python": frozenset({"python", "python3", "py", "py3"}),
    "cpp": frozenset({"cpp", "c++", "cc", "cxx", "cpp17", "c++17", "cpp20", "c++20"}),
    "javascript": frozenset({"javascript", "js", "node", "nodejs", "mjs"}),
    "bash": frozenset({"bash", "sh", "shell"}),
}
"""Language -> the labels that its fenced blocks may have."""
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

    `cpu_s` and `memory_mb` apply if the row gives no limits. With `partial` the score is the share of tests passed.
    With `unfenced` an answer without a block of code is `no_answer`, or the whole answer is the `program`. `language`,
    one or several, is what programs may be written in if the row does not say. `require` is the isolation below which
    nothing is run (default: $QWQ_RL_SANDBOX_REQUIRE, or L2). L0 means that programs are trusted and may run without
    isolation.

    The servers at `urls` judge (default: $QWQ_RL_SANDBOX_URLS, separated by commas), with the token in the environment
    variable `token_variable`. Without servers, one sandbox in this process judges. `sandbox` is a function that returns
    another sandbox to use.

    A reference is `{"tests": [...], "entry_point": null | str, "limits": {...}, "compare": ..., "prelude": str,
    "language": str | [str, ...], "checker": str}`. Tests, comparisons and checkers are as in a sandbox job. The prelude
    is put before the program and before every assert test. If the prelude leaves the entry point to be written, the one
    of the submission is used there.
    """
    require = require or os.environ.get(REQUIRE) or "L2"
    if require not in LEVELS:
        raise UserError(f"require is {require!r}: give one of {', '.join(LEVELS)}")
    if unfenced not in ("no_answer", "program"):
        raise UserError(f"unfenced is {unfenced!r}: give 'no_answer' or 'program'")
    if mistake := _language_mistake(language):
        raise UserError(mistake)
    if sandbox is None:
        server_urls = _urls(urls)
        sandbox = (
            functools.partial(remote_sandbox, server_urls, token_variable, require)
            if server_urls
            else functools.partial(shared_sandbox, require == "L0")
        )
    limits = {"cpu_s": cpu_s, "memory_mb": memory_mb}
    return CodeVerifier(limits, partial, unfenced == "program", language, require, sandbox)


@functools.cache
def shared_sandbox(unsafe: bool = False) -> LocalSandbox:
    """The sandbox of this process, which starts with the first job. `unsafe`: it may run programs without isolation."""
    return LocalSandbox(allow_unsafe=unsafe)


@functools.cache
def remote_sandbox(urls: tuple[str, ...], token_variable: str, require: str) -> RemoteSandbox:
    """The client of these servers, shared by all verifiers of this process. Raises `UserError`."""
    try:
        return RemoteSandbox(urls, token=os.environ.get(token_variable) or None, require=require)
    except ValueError as error:
        raise UserError(f"the sandbox's servers: {error}") from error


def _urls(urls: Sequence[str] | None) -> tuple[str, ...]:
    """The servers to use: those of the recipe, else those of the environment."""
    if isinstance(urls, str):
        raise UserError(f"urls is {urls!r}: give a list")
    server_urls = os.environ.get(URLS, "").replace(",", " ").split() if urls is None else urls
    return tuple(server_urls)


class CodeVerifier:
    """Judges programs. `batch` runs many at once, and identical programs of the same row only once."""

    def __init__(
        self,
        limits: Mapping[str, Any],
        partial: bool,
        bare: bool,
        language: str | Sequence[str],
        require: str,
        sandbox: Callable[[], Sandbox],
    ) -> None:
        """Use `code` to build one."""
        self._limits, self._partial, self._bare, self._language = limits, partial, bare, language
        self._require, self._sandbox = require, sandbox
        self.largest_failing_score = ALMOST if partial else 0.0
        """The highest score of a program that fails a test."""

    def __call__(self, problem: Problem, response: Response) -> Verdict:
        """Judge one response."""
        return self.batch([(problem, response)])[0]

    def batch(self, items: Sequence[tuple[Problem, Response]]) -> list[Verdict]:
        """One verdict per item, in order. Raises `UserError` if this machine cannot isolate programs as required."""
        started = time.perf_counter()
        jobs: dict[_Key, Job] = {}
        checked: dict[int, tuple[str, str, Any]] = {}
        plans = [self._plan(problem, response, jobs, checked) for problem, response in items]
        results = dict(zip(jobs, self._run_jobs(list(jobs.values())), strict=True))
        seconds = (time.perf_counter() - started) / max(1, len(items))
        return [
            plan if isinstance(plan, Verdict) else self._verdict(results[plan], jobs[plan], plan[0].text, seconds)
            for plan in plans
        ]

    def _plan(
        self, problem: Problem, response: Response, jobs: dict[_Key, Job], checked: dict[int, tuple[str, str, Any]]
    ) -> Verdict | _Key:
        """The key of the job that judges this response, added to `jobs`; or a verdict, if nothing must be run."""
        reference: Any = problem.get("reference")
        if id(reference) not in checked:  # all responses of a group share it, and it may be large
            # The reference itself is kept too: its id could be used again if it were freed.
            checked[id(reference)] = (*_check_reference(reference), reference)
        reference_hash, reason, _ = checked[id(reference)]
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
        key = (program, reference_hash)
        if key not in jobs:
            try:
                jobs[key] = self._job(str(len(jobs)), program, reference)
            except JobError as error:
                return bad_reference(shown(f"reference: {error}", _REASON))
        return key

    def _languages(self, reference: Mapping[str, Any]) -> tuple[str, ...]:
        """The languages that a program may be in. Tests that call functions or assert work only in Python."""
        allowed = reference.get("language") or self._language
        languages = (allowed,) if isinstance(allowed, str) else tuple(allowed)
        tests = reference["tests"] if isinstance(reference["tests"], list | tuple) else ()
        has_calls = any(isinstance(test, Mapping) and not {"input", "input_b64"} & set(test) for test in tests)
        return ("python",) if has_calls and "python" in languages else languages

    def _job(self, name: str, program: Program, reference: Any) -> Job:
        prelude = reference.get("prelude") or ""
        prefix = prelude if not prelude or prelude.endswith("\n") else prelude + "\n"
        tests = reference["tests"]
        if prefix and isinstance(tests, list):
            tests = [
                # An assert may use what the prelude defines.
                {"assert": prefix + test["assert"]} if isinstance(test, Mapping) and set(test) == {"assert"} else test
                for test in tests
            ]
        limits = reference.get("limits") or {}
        return Job.from_dict(
            {
                "id": name,
                "code": prefix + program.text,
                "language": program.language,
                "tests": tests,
                "checker": reference.get("checker"),
                "entry_point": reference.get("entry_point"),
                "compare": reference.get("compare", "tokens"),
                # The share of tests passed needs the result of every test.
                "mode": "all" if self._partial else "first_failure",
                "limits": {**self._limits, **limits} if isinstance(limits, Mapping) else limits,
            }
        )

    def _run_jobs(self, jobs: list[Job]) -> list[Result]:
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
        partial_score = min(result.passed / result.total, ALMOST) if self._partial else 0.0
        score = 1.0 if accepted else partial_score
        status = "correct" if accepted else _STATUSES.get(result.verdict, result.verdict)
        cpu_s = sum(case.cpu_s for case in result.cases)
        metrics = {"passed": float(result.passed), "total": float(result.total), "cpu_s": cpu_s}
        attempts = [event.removeprefix(_ATTEMPT) for event in result.events if event.startswith(_ATTEMPT)]
        if attempts:
            metrics["attempts"] = float(len(attempts))
            reason = f"{shown(reason, _REASON - 60)}; it tried to get out: {shown(', '.join(attempts), 40)}"
        return Verdict(score, status, reason, program, metrics, seconds)


def describe_result(result: Result, job: Job) -> str:
    """One line: all tests passed, or which test failed and why."""
    if result.verdict == "accepted":
        return f"all {result.total} tests passed" if result.total > 1 else "the test passed"
    index = next(position for position, case in enumerate(result.cases) if case.verdict == result.verdict)
    case, test = result.cases[index], job.tests[index]
    name = f"test {index + 1} of {result.total}: {result.verdict.replace('_', ' ')}"
    error_lines = case.stderr.strip().splitlines()
    if result.verdict == "wrong_answer" and "output" in test:
        return shown(f"{name}: printed {shown(repr(case.stdout))}, expected {shown(repr(test['output']))}", _REASON)
    expected = (
        f", expected {shown(json.dumps(test['expected']))}"
        if result.verdict == "wrong_answer" and "expected" in test
        else ""
    )
    return shown(f"{name}: {error_lines[-1] if error_lines else 'no message'}{expected}", _REASON)


def _check_reference(reference: object) -> tuple[str, str]:
    """A hash that equal references share, and what is wrong with this reference (empty if nothing is)."""
    try:
        return hashlib.sha256(json.dumps(reference, sort_keys=True).encode()).hexdigest(), _reference_mistake(reference)
    except (TypeError, ValueError) as error:
        return "", f"reference is not JSON: {error}"


def _reference_mistake(reference: object) -> str:
    """What is wrong with the fields of a reference; empty if nothing is. `Job.from_dict` checks the tests later."""
    if not isinstance(reference, Mapping):
        return 'reference: give {"tests": [...], "entry_point": null | str, "limits": {...}}'
    if "tests" not in reference:
        return "reference.tests is missing"
    unknown = sorted(set(reference) - _KNOWN)
    if unknown:
        return f"reference.{unknown[0]} is not a field: there are {', '.join(sorted(_KNOWN))}"
    if not isinstance(reference.get("prelude", ""), str | None):
        return f"reference.prelude is a {type(reference['prelude']).__name__}: give a string"
    return f"reference.{mistake}" if (mistake := _language_mistake(reference.get("language", "python"))) else ""


def _language_mistake(value: object) -> str:
    """What is wrong with a language or a list of languages; empty if nothing is."""
    languages = [value] if isinstance(value, str) else value
    if isinstance(languages, list | tuple) and languages and all(name in TAGS for name in languages):
        return ""
    return f"language is {value!r}: give one or a list of {', '.join(TAGS)}"


@dataclass(frozen=True)
class Block:
    """A fenced block: its label in lower case, and the text in it."""

    tag: str
    text: str


@dataclass(frozen=True)
class Program:
    """A program to run."""

    text: str
    language: str


def extract_program(
    answer: str, languages: Sequence[str] = ("python",), *, entry_point: str | None = None, bare: bool = False
) -> Program | None:
    """The program that an answer gives; None if there is none.

    Of the closed blocks labelled with one of the languages, it is the last that defines `entry_point`, else the last.
    If no block has such a label, the same rule applies to blocks without a label, and the first language is assumed. If
    there is an `<answer>`, only the text in the last one counts. With `bare`, a text without any fence is itself a
    program.
    """
    text = _inside_tag(answer.replace("\r\n", "\n"))
    language_of_tag = {tag: language for language in languages for tag in TAGS[language]}
    for language_of in (language_of_tag, {"": languages[0]}):
        candidates = [block for block in blocks(text) if block.tag in language_of]
        defining = [block for block in candidates if entry_point and _defines(block.text, entry_point)]
        if candidates:
            block = (defining or candidates)[-1]
            return Program(block.text, language_of[block.tag])
    return Program(text, languages[0]) if bare and text.strip() and "```" not in text else None


def blocks(text: str) -> list[Block]:
    """The closed fenced blocks of a Markdown text, found line by line as CommonMark defines them."""
    closed_blocks: list[Block] = []
    fence, indent, tag, block_lines = "", 0, "", list[str]()
    for line in text.split("\n"):
        if not fence:
            if opening := _OPENING.fullmatch(line):
                fence, indent, block_lines = opening[2], len(opening[1]), []
                label = _TAG.match(opening[3])
                tag = label[1].lower() if label else ""
        elif (closing := _CLOSING.fullmatch(line)) and closing[1].startswith(fence):
            closed_blocks.append(Block(tag, "".join(f"{block_line}\n" for block_line in block_lines)))
            fence = ""
        else:
            # CommonMark removes the indentation of the opening fence from every line of the block.
            block_lines.append(line[min(indent, len(line) - len(line.lstrip(" \t"))) :])
    return closed_blocks


def _inside_tag(text: str) -> str:
    """The text in the last closed `<answer>`; without one, the whole text."""
    before, closed, _ = text.rpartition("</answer>")
    _, opened, inside = before.rpartition("<answer>")
    return inside if closed and opened else text


def _defines(program: str, name: str) -> bool:
    return (
        re.search(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(name)}\b|^{re.escape(name)}[ \t]*[:=]", program, re.M)
        is not None
    )
