"""Calls of one program in one process: where it can keep nothing from one to the next, and with the same verdicts."""

from __future__ import annotations

from typing import Any

import pytest

from qwq_rl.sandbox import Job, Limits, LocalSandbox, Result
from qwq_rl.sandbox.inside.stateless import stateless


@pytest.fixture(scope="module")
def sandbox() -> Any:
    with LocalSandbox(remember=0) as one:
        yield one


def judged(sandbox: LocalSandbox, code: str, expected: list[Any], **fields: Any) -> tuple[Result, int]:
    """`f(0)`, `f(1)` and so on must return these; the result, and how many processes that took."""
    tests = [{"args": [place], "expected": value} for place, value in enumerate(expected)]
    sandbox.isolation  # noqa: B018  (starts it)
    assert sandbox._engine is not None
    pool = sandbox._engine.pools["lean"]
    before = pool.cases
    (result,) = sandbox.judge([Job("one", code, tests, entry_point="f", **fields)])
    return result, pool.cases - before


def test_calls_of_a_program_that_keeps_nothing_share_a_process(sandbox: LocalSandbox) -> None:
    code = "LIMIT = 10\ndef g(x, by=2): return x * by\ndef f(x): return max([g(y) for y in range(x + 1) if y < LIMIT])"

    result, processes = judged(sandbox, code, [0, 2, 4, 6])

    assert (result.verdict, result.passed, processes) == ("accepted", 4, 1)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param("def f(x, seen=[]):\n seen.append(x)\n return len(seen)", 1, id="a default"),
        pytest.param("seen = []\ndef f(x):\n seen.append(x)\n return len(seen)", 1, id="a global"),
        pytest.param("n = 0\ndef f(x):\n global n\n n += 1\n return n", 1, id="a rebound global"),
        pytest.param("def f(x):\n f.n = getattr(f, 'n', 0) + 1\n return f.n", 1, id="an attribute"),
        pytest.param("class A: n = 0\ndef f(x):\n A.n += 1\n return A.n", 1, id="a class"),
        pytest.param(
            "import math\ndef f(x):\n math.n = math.__dict__.get('n', 0) + 1\n return math.n", 1, id="a module"
        ),
        pytest.param("import random\ndef f(x): return random.random()", 0.8444218515250481, id="luck"),
    ],
)
def test_what_a_call_keeps_is_not_there_for_the_next(code: str, expected: float, sandbox: LocalSandbox) -> None:
    result, processes = judged(sandbox, code, [expected] * 3)

    assert (result.verdict, processes) == ("accepted", 3)


def test_a_wrong_value_fails_its_own_test_only(sandbox: LocalSandbox) -> None:
    result, _ = judged(sandbox, "def f(x): return x if x != 1 else 7", [0, 1, 2], mode="all")

    assert [case.verdict for case in result.cases] == ["accepted", "wrong_answer", "accepted"]
    assert "returned 7" in result.cases[1].stderr


def test_nothing_is_told_of_tests_after_the_first_failure(sandbox: LocalSandbox) -> None:
    result, _ = judged(sandbox, "def f(x): return x if x != 1 else 7", [0, 1, 2])

    assert [case.verdict for case in result.cases] == ["accepted", "wrong_answer", "skipped"]


@pytest.mark.parametrize(
    ("body", "verdict", "word"),
    [
        ("x // (1 - x)", "runtime_error", "ZeroDivisionError"),
        ("f", "runtime_error", "is not data"),
        ("sum(1 for _ in range(10 ** 12))", "time_limit", "CPU"),
        ("len([0] * 10 ** 9)", "memory_limit", "MiB"),
    ],
)
def test_a_call_that_does_not_return_is_judged_alone(body: str, verdict: str, word: str, sandbox: LocalSandbox) -> None:
    result, _ = judged(sandbox, f"def f(x): return 0 if x == 0 else {body}", [0, 1], limits=Limits(cpu_s=0.3))

    assert [case.verdict for case in result.cases] == ["accepted", verdict]
    assert word in result.cases[1].stderr


def test_calls_that_take_long_in_all_have_the_limit_of_a_case_each(sandbox: LocalSandbox) -> None:
    code = "def f(x):\n n = 0\n while n < 3_000_000: n += 1\n return n"

    result, processes = judged(sandbox, code, [3_000_000] * 4)

    assert (result.verdict, processes) == ("accepted", 5)


def test_two_tests_that_share_an_object_do_not_share_it_in_the_jail(sandbox: LocalSandbox) -> None:
    shared = [3, 1]
    tests = [{"args": [shared], "expected": [1, 3, 0]}] * 2
    code = "def f(xs):\n xs.sort()\n xs.append(0)\n return xs"

    (result,) = sandbox.judge([Job("one", code, tests, entry_point="f")])

    assert result.verdict == "accepted"


def test_saying_that_all_calls_were_made_makes_no_value_right(sandbox: LocalSandbox) -> None:
    values = r'{"value": 0}\n' * 3
    code = f"import os\nos.pwrite(3, b'{{\"calls\": 3}}', 0)\nos.write(3, b'{values}')\nos._exit(0)\ndef f(x): return 0"

    result, _ = judged(sandbox, code, [0, 1, 2])

    assert [case.verdict for case in result.cases] == ["accepted", "wrong_answer", "skipped"]


@pytest.mark.parametrize(
    "code",
    [
        "def f(x): print(x)",
        "def f(x): return input()",
        "def f(x): return eval(x)",
        "def f(x): return x.__class__",
        "def f(x): return __name__",
        "def f(x): return getattr(f, x)",
        "def f(x):\n try: return x\n except MemoryError: return 0",
        "def f(x):\n import sys\n return x",
        "def f(x):\n yield x",
        "def f(x): return id(x)",
        "def f(x, y=list()): return x",
        "def f(x, *, y={}): return x",
        "def f(x, y=(1, [])): return x",
        "import functools\n@functools.cache\ndef f(x): return x",
        "a = b = [1]\ndef f(x): return x",
        "a = (lambda: 1)\ndef f(x): return x",
        "def f(x):\n f.sort = x",
        "for x in range(3): pass",
        "def f(x) return x",
        "(" * 1000,
    ],
)
def test_what_might_keep_something_is_not_called_stateless(code: str) -> None:
    assert not stateless(code)


@pytest.mark.parametrize(
    "code",
    [
        '"""What."""\nMOD = 10**9 + 7\nPAIR = (-1, "a")\ndef f(xs: list[int], y=None) -> int: return sum(xs) % MOD',
        "def f(x):\n def g(y):\n  nonlocal x\n  x += y\n  return x\n return [g(1), g(2)]",
        "def f(s): return ' '.join(w.upper() for w in sorted(s.split(), key=lambda w: (len(w), w)))",
        "def f(n):\n a, b = 0, 1\n while n > 0:\n  a, b, n = b, a + b, n - 1\n return a",
    ],
)
def test_functions_over_plain_data_are(code: str) -> None:
    assert stateless(code)
