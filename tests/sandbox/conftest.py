"""One warm sandbox for all of these tests, and short ways to ask it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qwq_rl.sandbox import CaseResult, Job, Limits, LocalSandbox

Run = Callable[..., CaseResult]


@pytest.fixture(scope="session")
def sandbox() -> Iterator[LocalSandbox]:
    with LocalSandbox() as shared:
        yield shared


@pytest.fixture
def run(sandbox: LocalSandbox) -> Run:
    """Run a stdin program: `run(code, input, output, cpu_s=..., ...)`."""

    def one(code: str, given: str = "", expected: str = "", **limits: Any) -> CaseResult:
        test = {"input": given, "output": expected}
        return sandbox.judge([Job("one", code, [test], limits=Limits(**limits))])[0].cases[0]

    return one


@pytest.fixture
def call(sandbox: LocalSandbox) -> Run:
    """Call the submission's `f`: `call(code, args, expected, compare=...)`."""

    def one(code: str, args: list[Any], expected: Any, **more: Any) -> CaseResult:
        job = Job("one", code, [{"args": args, "expected": expected}], entry_point="f", **more)
        return sandbox.judge([job])[0].cases[0]

    return one


@pytest.fixture
def check(sandbox: LocalSandbox) -> Run:
    """Run an assert test against the submission's `f`: `check(code, test)`."""

    def one(code: str, test: str, **limits: Any) -> CaseResult:
        job = Job("one", code, [{"assert": test}], entry_point="f", limits=Limits(**limits))
        return sandbox.judge([job])[0].cases[0]

    return one


@pytest.fixture
def plainly() -> Callable[..., str]:
    """What a program prints in a plain interpreter, without a jail."""

    def one(code: str, given: str = "") -> str:
        command = [sys.executable, "-I", "-S", "-c", code]
        ended = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=60, check=False, start_new_session=True
        )
        return ended.stdout

    return one
