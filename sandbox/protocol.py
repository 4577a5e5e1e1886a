"""The job, its limits and its result (docs/contracts.md, "A sandbox job and its result"), with their checks."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from qwq_rl.sandbox.inside.values import encode

Compare = Literal["exact", "tokens", "float", "unordered"]
Mode = Literal["first_failure", "all"]
CaseVerdict = Literal[
    "accepted",
    "wrong_answer",
    "time_limit",
    "memory_limit",
    "output_limit",
    "runtime_error",
    "compile_error",
    "skipped",
    "sandbox_error",
]
LANGUAGES = ("python", "cpp", "javascript", "bash")
LEVELS = ("L0", "L1", "L2", "L3", "L4")
TEST_SHAPES = 'a test is {"input", "output"}, {"args", "expected"} or {"assert"}'


class JobError(ValueError):
    """A job is malformed; the text names the field and what would be right."""


@dataclass(frozen=True)
class Limits:
    """What one test case may use."""

    cpu_s: float = 2.0
    """CPU seconds. This limit decides about time-outs."""
    wall_s: float = 10.0
    """Seconds of wall time. A backstop only, and so larger: a busy machine must not cause false time-outs."""
    memory_mb: int = 256
    """Address space beyond that of a bare interpreter, in MiB."""
    output_kb: int = 1024
    """KiB of standard output, and the same again of standard error."""

    @classmethod
    def from_dict(cls, value: object) -> Limits:
        """Read limits; missing ones keep their defaults. Raises `JobError`."""
        settings = _mapping(value, "limits")
        _refuse_unknown(settings, cls, "limits.")
        bounds = {"cpu_s": (0.01, 3600.0), "wall_s": (0.01, 86400.0), "memory_mb": (16, 65536), "output_kb": (1, 65536)}
        for name, limit in settings.items():
            low, high = bounds[name]
            whole = isinstance(low, int)  # bounds written as integers mark limits that take whole numbers only
            if not _is_number(limit) or (whole and not isinstance(limit, int)) or not low <= limit <= high:
                raise JobError(f"limits.{name} is {limit!r}: give {'a whole' if whole else 'a'} number {low} to {high}")
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """The limits as JSON."""
        return {"cpu_s": self.cpu_s, "wall_s": self.wall_s, "memory_mb": self.memory_mb, "output_kb": self.output_kb}


@dataclass(frozen=True)
class Job:
    """One program and the tests that judge it."""

    id: str
    code: str
    tests: Sequence[Mapping[str, Any]] = ()
    language: str = "python"
    """`python`, or `cpp`, `javascript`, `bash`, which are for stdin programs only."""
    entry_point: str | None = None
    """The function that `args` tests call and assert tests see as `candidate`. A method of `Solution` works too."""
    compare: Compare = "tokens"
    """How results are compared.

    Output: `exact` compares bytes; `tokens` compares words separated by white space; `float` does that with numbers
    equal to 1e-6; `unordered` allows lines in any order. Returned values: `exact` and `tokens` require equal values of
    equal types; `float` compares numbers to 1e-6; `unordered` allows a list's elements in any order.
    """
    mode: Mode = "first_failure"
    limits: Limits = field(default_factory=Limits)
    tests_ref: str | None = None
    """Instead of `tests`: the hash of a test set that was put into the sandbox before."""
    checker: str | None = None
    """For stdin programs: Python code that decides about an output, instead of `compare` (inside/checker.py)."""
    run_only: bool = False
    """Nothing is judged: each test is an `input` alone. `accepted` means that the program ended well, within limits."""

    def __post_init__(self) -> None:
        """Check every field. Raises `JobError` for the first wrong one."""
        if not isinstance(self.id, str):
            raise JobError(f"id is {self.id!r}: give a string")
        if not isinstance(self.code, str):
            raise JobError(f"code is a {type(self.code).__name__}: give a string")
        if self.language not in LANGUAGES:
            raise JobError(f"language is {self.language!r}: give one of {', '.join(LANGUAGES)}")
        if self.compare not in get_args(Compare):
            raise JobError(f"compare is {self.compare!r}: give one of {', '.join(get_args(Compare))}")
        if self.mode not in get_args(Mode):
            raise JobError(f"mode is {self.mode!r}: give one of {', '.join(get_args(Mode))}")
        if not (self.entry_point is None or (isinstance(self.entry_point, str) and self.entry_point.isidentifier())):
            raise JobError(f"entry_point is {self.entry_point!r}: give a function's name or null")
        if not isinstance(self.run_only, bool):
            raise JobError(f"run_only is {self.run_only!r}: give true or false")
        if self.checker is not None and ((mistake := _python_mistake(self.checker)) is not None or self.run_only):
            raise JobError(f"checker: {mistake or 'there is nothing to check with run_only'}")
        if self.tests_ref is not None:
            # the tests themselves were checked when they were put into the sandbox
            if not (isinstance(self.tests_ref, str) and not self.tests):
                raise JobError(f"tests_ref is {self.tests_ref!r}: give the hash of a test set, and no tests")
            return
        if isinstance(self.tests, str | bytes) or not isinstance(self.tests, Sequence) or not self.tests:
            raise JobError("tests: give a list of at least one test")
        for index, test in enumerate(self.tests):
            self._check(test, f"tests[{index}]")

    def _check(self, test: object, where: str) -> None:
        if self.run_only:
            if not isinstance(test, Mapping) or set(test) not in ({"input"}, {"input_b64"}):
                raise JobError(f'{where}: with run_only a test is {{"input"}} alone')
            bytes_of(test, "input", where)
            return
        check_test(test, self.entry_point, where)
        assert isinstance(test, Mapping)
        # programs in other languages, and checkers, know standard input and output only
        if (self.language != "python" or self.checker is not None) and not set(test) & {"input", "input_b64"}:
            reason = f"language {self.language!r}" if self.language != "python" else "a checker"
            raise JobError(f'{where}: with {reason} a test is {{"input", "output"}}')

    @classmethod
    def from_dict(cls, value: object) -> Job:
        """Read a job. Raises `JobError` that names the field."""
        settings = _mapping(value, "a job")
        _refuse_unknown(settings, cls, "")
        for name in ("id", "code", "tests"):
            if name not in settings and not (name == "tests" and "tests_ref" in settings):
                raise JobError(f"{name} is missing")
        return cls(**{**settings, "limits": Limits.from_dict(settings.get("limits", {}))})

    def to_dict(self) -> dict[str, Any]:
        """The job as JSON. `tests_ref`, `checker` and `run_only` appear only if they are set."""
        optional = {"tests_ref": self.tests_ref, "checker": self.checker, "run_only": self.run_only or None}
        return {
            "id": self.id,
            "code": self.code,
            "language": self.language,
            **({} if self.tests_ref else {"tests": [dict(test) for test in self.tests]}),
            **{name: value for name, value in optional.items() if value is not None},
            "entry_point": self.entry_point,
            "compare": self.compare,
            "mode": self.mode,
            "limits": self.limits.to_dict(),
        }


@dataclass(frozen=True)
class CaseResult:
    """The result of one test case."""

    verdict: CaseVerdict
    cpu_s: float = 0.0
    wall_s: float = 0.0
    memory_mb: float = 0.0
    """Peak resident memory in MiB, including that of the bare interpreter."""
    stdout: str = ""
    """For people: the first 64 KiB, with bytes that are not UTF-8 replaced. The comparison uses all bytes."""
    stderr: str = ""
    """The last 8 KiB. It ends with what went wrong, except with `run_only`, where it is the program's text only."""
    exit: int | None = None
    """Exit status; minus the signal's number if a signal ended the program; null if the case did not run."""

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> CaseResult:
        """Read one case of a result."""
        return cls(**value)

    def to_dict(self) -> dict[str, Any]:
        """The case as JSON."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass(frozen=True)
class Result:
    """The verdict on one job."""

    id: str
    verdict: CaseVerdict
    """The verdict of the first case that was not accepted. `sandbox_error` only if no case failed in another way."""
    passed: int
    total: int
    isolation: str
    """L0: none. L1: no network, files, processes or signals (seccomp). L2: also Landlock. L3: also namespaces and a
    separate file tree. L4: also control groups."""
    cases: tuple[CaseResult, ...]
    """One per test, in order. In mode `first_failure` the cases after the first failure are `skipped`."""
    runtime: str = ""
    cached: bool = False
    events: tuple[str, ...] = ()
    """Other things that happened: `attempt: KIND` for a refused system call that only an escape attempt makes, and
    sandbox faults that were repaired."""

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Result:
        """Read a result."""
        cases = tuple(CaseResult.from_dict(case) for case in value["cases"])
        return cls(**{**value, "cases": cases, "events": tuple(value.get("events", ()))})

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "id": self.id,
            "verdict": self.verdict,
            "passed": self.passed,
            "total": self.total,
            "isolation": self.isolation,
            "cached": self.cached,
            "runtime": self.runtime,
            "cases": [case.to_dict() for case in self.cases],
            "events": list(self.events),
        }


def check_test(test: object, entry_point: str | None, where: str) -> None:
    """Raise `JobError` unless `test` has one of the three shapes."""
    if not isinstance(test, Mapping):
        raise JobError(f"{where} is a {type(test).__name__}: {TEST_SHAPES}")
    names = set(test)
    if names == {"args", "expected"}:
        if not isinstance(test["args"], list | tuple):
            raise JobError(f"{where}.args is a {type(test['args']).__name__}: give a list")
        if entry_point is None:
            raise JobError(f"entry_point is null, but {where} calls a function: give its name")
        for name in ("args", "expected"):
            if not _is_json(test[name]):
                raise JobError(f"{where}.{name} holds something that JSON has no form for")
    elif names == {"assert"}:
        if not isinstance(test["assert"], str):
            raise JobError(f"{where}.assert is a {type(test['assert']).__name__}: give Python text")
        if (mistake := _python_mistake(test["assert"])) is not None:
            raise JobError(f"{where}.assert is not Python: {mistake}")
    elif len(names) == 2 and len(names & {"input", "input_b64"}) == 1 and len(names & {"output", "output_b64"}) == 1:
        bytes_of(test, "input", where)
        bytes_of(test, "output", where)
    else:
        raise JobError(f"{where} has the keys {', '.join(sorted(map(str, names))) or '(none)'}: {TEST_SHAPES}")


def tests_hash(tests: Sequence[Mapping[str, Any]]) -> str:
    """The hash that names a test set: SHA-256 of its JSON with sorted keys and without spaces."""
    try:
        text = json.dumps(list(tests), sort_keys=True, separators=(",", ":"))
    except ValueError:  # Python refuses to write integers of more than 4300 digits
        text = json.dumps(encode(list(tests)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def bytes_of(test: Mapping[str, Any], name: str, where: str = "test") -> bytes:
    """The bytes of a test's `input` or `output`, stored as text or, as `NAME_b64`, in base64. Raises `JobError`."""
    if name in test:
        text = test[name]
        if not isinstance(text, str):
            raise JobError(f"{where}.{name} is a {type(text).__name__}: give a string")
        return text.encode("utf-8", "surrogateescape")
    encoded = test[name + "_b64"]
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise JobError(f"{where}.{name}_b64 is not base64") from None


_MAX_MISTAKES = 4096
_mistakes: dict[bytes, str | None] = {}
"""Cached results of `_python_mistake` by the hash of the text, since the texts may be long."""


def _python_mistake(text: object) -> str | None:
    """The parser's error message for Python text; None if the text parses. Cached: many jobs share their texts."""
    if not isinstance(text, str):
        return f"it is a {type(text).__name__}, give Python text"
    text_hash = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    mistake = _mistakes.get(text_hash, "unknown")
    if mistake != "unknown":
        return mistake
    mistake = None
    try:
        compile(text, "test", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        mistake = str(error)[:500]
    if len(_mistakes) >= _MAX_MISTAKES:
        _mistakes.clear()  # in one step, because several threads use it without a lock
    _mistakes[text_hash] = mistake
    return mistake


def _is_number(value: object) -> bool:
    # bool is a subclass of int
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_json(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_json(item) for name, item in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise JobError(f"{where} is a {type(value).__name__}: give an object")
    return value


def _refuse_unknown(settings: Mapping[str, Any], owner: type, prefix: str) -> None:
    field_names = [item.name for item in fields(owner)]
    for name in settings:
        if name not in field_names:
            raise JobError(f"{prefix}{name} is not a field: there are {', '.join(field_names)}")
