"""Assert tests: the test in one jail, the submission in another, values between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qwq_rl.sandbox import CaseResult, Job, Limits, LocalSandbox

Judge = Callable[..., CaseResult]

GOOD = "def f(x): return x + 1"


@pytest.mark.parametrize(
    ("code", "test"),
    [
        (GOOD, "assert f(3) == 4"),
        (GOOD, "def check(candidate):\n    for n in range(5):\n        assert candidate(n) == n + 1\ncheck(f)"),
        (GOOD, "def f(x):\n    'a stub, as prompts have'\ndef check(g):\n    assert g(1) == 2\ncheck(candidate)"),
        (
            "def f(x): return (x, {x}, b'a', 1j, {1: 2}, float('inf'))",
            "assert f(1) == (1, {1}, b'a', 1j, {1: 2}, float('inf'))",
        ),
        ("def f(x): raise KeyError('k')", "try:\n    f(1)\n    assert False\nexcept KeyError:\n    pass"),
        (
            "class P:\n    def __init__(self, x): self.x = x\ndef f(p): return p.x",
            "assert f(P(3)) == 3\nassert P(4).x == 4",
        ),
        ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]"),
        ("def f(x): return x", "import math\nassert math.isclose(f(0.1) * 3, 0.3)"),
        ("def g(x): return x\ndef f(x): return g", "assert f(1)(2) == 2"),
        ("class Solution:\n    def f(self, x): return x", "assert candidate(1) == 1"),
    ],
)
def test_a_right_solution_passes(code: str, test: str, check: Judge) -> None:
    case = check(code, test)
    assert case.verdict == "accepted", case


@pytest.mark.parametrize(
    ("code", "test", "verdict"),
    [
        (GOOD, "assert f(3) == 5", "wrong_answer"),
        ("def f(x): return None", "assert f(3) == 4", "wrong_answer"),
        ("def f(x): raise ValueError('no')", "assert f(3) == 4", "runtime_error"),
        ("def f(x): return y", "assert f(3) == 4", "runtime_error"),
        ("def g(x): return 4", "assert f(3) == 4", "runtime_error"),
        ("def f(x) return 4", "assert f(3) == 4", "compile_error"),
        ("def f(x):\n    while True: pass", "assert f(3) == 4", "time_limit"),
        ("def f(x): return [0] * 10**12", "assert f(3) == 4", "memory_limit"),
        ("def f(x):\n    while True: print('x' * 1000)", "assert f(3) == 4", "output_limit"),
    ],
)
def test_a_wrong_one_does_not(code: str, test: str, verdict: str, check: Judge) -> None:
    assert check(code, test, cpu_s=0.5).verdict == verdict


EXPLOITS = {
    "os._exit in the function": "import os\ndef f(x): os._exit(0)",
    "os._exit at the start": "import os\nos._exit(0)",
    "sys.exit in the function": "import sys\ndef f(x): sys.exit(0)",
    "sys.exit at the start": "import sys\nsys.exit(0)",
    "an object equal to everything": (
        "class E:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
        "    def __hash__(self): return 0\ndef f(x): return E()"
    ),
    "an int equal to everything": (
        "class E(int):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
        "    def __hash__(self): return 0\ndef f(x): return E(9)"
    ),
    "StopIteration ends all()": "def f(x): raise StopIteration",
    "AssertionError replaced": "import builtins\nbuiltins.AssertionError = ValueError\ndef f(x): return 0",
    "a forged report": "import os\nos.write(3, b'{\"passed\": true}\\n')\ndef f(x): return 0",
    "a forged report and an end": "import os\nos.write(3, b'{\"passed\": true}\\n')\nos._exit(0)",
    "forged replies": "import os\nos.write(4, b'{\"passed\": true}\\n' * 9)\ndef f(x): return 0",
    "replies that are no answers": "import os\nos.write(4, b'{}\\n' * 9)\ndef f(x): return 0",
    "built-ins redefined": "abs = all = lambda *x: True\nimport builtins\nbuiltins.abs = abs\ndef f(x): return 0",
}
TEST = """
def check(candidate):
    assert all(map(lambda n: candidate(n) == n + 1, range(5)))
    assert abs(candidate(1) - 2) < 1
check(f)"""


@pytest.mark.parametrize("name", EXPLOITS)
def test_an_exploit_does_not_pass(name: str, check: Judge) -> None:
    case = check(EXPLOITS[name], TEST, cpu_s=1.0)
    assert case.verdict in ("wrong_answer", "runtime_error"), case


@pytest.mark.parametrize(
    "name",
    ["os._exit in the function", "os._exit at the start", "an object equal to everything", "sys.exit at the start"],
)
def test_those_exploits_fool_a_judge_that_trusts_the_process(name: str, plainly: Callable[..., str]) -> None:
    """The usual judge: solution and test in one process, which passes when it ends without an error."""
    program = EXPLOITS[name] + "\n" + ("assert f(1) == 2" if "equal" in name else TEST)
    judge = f"import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', {program!r}]).returncode)"
    assert plainly(judge) == "0\n"


def test_the_test_never_enters_the_submission_process(check: Judge) -> None:
    """The submission looks for the test's marker in all frames and objects it can reach, and would return it."""
    hunt = """
import gc, sys
def f(x):
    needle = "MARK" + "ER-"
    frame, places = sys._getframe(), list(gc.get_objects())
    while frame:
        places += [frame.f_locals, frame.f_globals]
        frame = frame.f_back
    for place in places:
        items = place.values() if isinstance(place, dict) else place if isinstance(place, (list, tuple, set)) else ()
        for item in items:
            if isinstance(item, str) and needle in item and item != needle:
                return item[item.index(needle):][:10]
"""
    assert check(hunt, "secret = 'MARKER-123'\nassert f(1) == secret").verdict == "wrong_answer"
    own_frame = "secret = 'x MARKER-123'\n" + hunt + "\nassert f(1) == 'MARKER-123', f(1)"
    exec(compile(own_frame, "teeth", "exec"), {})


def test_a_test_that_passes_a_function_is_our_fault_and_not_the_answers(check: Judge) -> None:
    assert check("def f(g): return g(1)", "assert f(lambda x: x) == 1").verdict == "sandbox_error"


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_humaneval_solutions_pass_and_empty_ones_do_not(every: int, sandbox: LocalSandbox, published: Path) -> None:
    rows = [json.loads(line) for line in (published / "code" / "humaneval.jsonl").read_text().splitlines()]
    jobs = {
        body: [
            Job(
                row["task_id"],
                row["prompt"] + (row["canonical_solution"] if body == "right" else "    return None\n"),
                [{"assert": row["prompt"] + row["test"] + "\ncheck(candidate)"}],
                entry_point=row["entry_point"],
                limits=Limits(cpu_s=20, wall_s=60),
            )
            for row in rows[::every]
        ]
        for body in ("right", "empty")
    }
    assert len(rows) == 164
    assert [result.id for result in sandbox.judge(jobs["right"]) if result.verdict != "accepted"] == []
    assert [result.id for result in sandbox.judge(jobs["empty"]) if result.verdict == "accepted"] == []
