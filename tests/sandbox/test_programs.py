"""Honest programs, however awkward, must pass."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest

from qwq_rl.sandbox import CaseResult, Job, LocalSandbox

Judge = Callable[..., CaseResult]

PROGRAMS = {
    "input": "a = input()\nb = input()\nprint(b, a)",
    "readline": "import sys\na = sys.stdin.readline().strip()\nb = sys.stdin.readline().strip()\nprint(b, a)",
    "binary readline": "import sys\nr = sys.stdin.buffer.readline\na, b = r(), r()\nprint((b + a).decode())",
    "lines": "import sys\nx = [l.strip() for l in sys.stdin]\nprint(x[1], x[0])",
    "read": "import sys\nx = sys.stdin.read().split()\nprint(x[1], x[0])",
    "open 0": "x = open(0).read().split()\nprint(x[1], x[0])",
    "open stdin by name": "x = open('/dev/stdin').read().split()\nprint(x[1], x[0])",
    "os.read": "import os\nx = os.read(0, 100).decode().split()\nos.write(1, f'{x[1]} {x[0]}'.encode())",
    "until EOFError": "x = []\ntry:\n    while True: x.append(input())\nexcept EOFError: print(*x[::-1])",
    "stdout.buffer": "import sys\nx = sys.stdin.buffer.read().split()\nsys.stdout.buffer.write(x[1] + b' ' + x[0])",
    "unflushed": "import sys\na, b = input(), input()\nsys.stdout.write(b + ' ')\nsys.stdout.write(a)",
    "sys.exit": "import sys\na, b = input(), input()\nprint(b, a)\nsys.exit(0)",
    "exit": "a, b = input(), input()\nprint(b, a)\nexit()",
    "raise SystemExit": "a, b = input(), input()\nprint(b, a)\nraise SystemExit",
    "main guard": "def main():\n    a, b = input(), input()\n    print(b, a)\nif __name__ == '__main__':\n    main()",
    "late thread": (
        "import threading, time\na, b = input(), input()\n"
        "def late():\n    time.sleep(0.1)\n    print(b, a)\nthreading.Thread(target=late).start()"
    ),
    "atexit": "import atexit\na, b = input(), input()\natexit.register(lambda: print(b, a))",
    "globals": "x = 0\ndef f():\n    global x\n    x = input(), input()\nf()\nprint(*x[::-1])",
    "deep recursion": (
        "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 26)\n"
        "def depth(n): return 0 if n == 0 else 1 + depth(n - 1)\n"
        "def main():\n    a, b = input(), input()\n    assert depth(50000) == 50000\n    print(b, a)\n"
        "t = threading.Thread(target=main)\nt.start()\nt.join()"
    ),
    "stack limit": (
        "import resource\nhard = resource.getrlimit(resource.RLIMIT_STACK)[1]\n"
        "resource.setrlimit(resource.RLIMIT_STACK, (hard, hard))\na, b = input(), input()\nprint(b, a)"
    ),
    "dataclass": (
        "from dataclasses import dataclass\nimport pickle\n@dataclass\nclass P:\n    x: str\n"
        "a, b = P(input()), P(input())\nprint(pickle.loads(pickle.dumps(b)).x, a.x)"
    ),
    "module that is not warm": (
        "import xml.dom.minidom as m\na, b = input(), input()\nd = m.parseString(f'<r><i>{a}</i></r>')\n"
        "print(b, d.getElementsByTagName('i')[0].firstChild.data)"
    ),
    "asyncio": (
        "import asyncio\nasync def main():\n    a, b = input(), input()\n    await asyncio.sleep(0)\n    print(b, a)\n"
        "asyncio.run(main())"
    ),
    "alarm": "import signal\nsignal.alarm(5)\na, b = input(), input()\nprint(b, a)",
    "dev null": "print('x', file=open('/dev/null', 'w'))\na, b = input(), input()\nprint(b, a)",
    "much on stderr": "import sys\na, b = input(), input()\nprint('x' * 10**5, file=sys.stderr)\nprint(b, a)",
    "redirected stdout": (
        "import io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()):\n    print('hidden')\n"
        "a, b = input(), input()\nprint(b, a)"
    ),
    "numpy": (
        "try:\n    import numpy as np\n    assert np.arange(4).reshape(2, 2).T.tolist() == [[0, 2], [1, 3]]\n"
        "except ImportError: pass\na, b = input(), input()\nprint(b, a)"
    ),
    "compressed": (
        "import bz2, lzma, zlib\na, b = input(), input()\n"
        "for m in (bz2, lzma, zlib): assert m.decompress(m.compress(b'x')) == b'x'\nprint(b, a)"
    ),
    "a database in memory": (
        "import sqlite3\nc = sqlite3.connect(':memory:')\nc.execute('create table t (x)')\n"
        "c.execute('insert into t values (?), (?)', (input(), input()))\n"
        "print(*[x for x, in c.execute('select x from t')][::-1])"
    ),
    "a pool of threads": (
        "from concurrent.futures import ThreadPoolExecutor as P\na, b = input(), input()\n"
        "with P(4) as p: print(*p.map(str, [b, a]))"
    ),
    "decimals and dates": (
        "import datetime, decimal, fractions\na, b = input(), input()\n"
        "assert decimal.Decimal('0.1') * 3 == decimal.Decimal('0.3')\n"
        "assert datetime.date(2024, 2, 29).weekday() == 3\nprint(b, a)"
    ),
    "much output, then exit": "import os, sys\na, b = input(), input()\nprint(b, a)\nsys.stdout.flush()\nos._exit(0)",
    "aborted on purpose and caught": (
        "import os, signal\na, b = input(), input()\nsignal.signal(signal.SIGUSR1, lambda *_: print(b, a))\n"
        "os.kill(os.getpid(), signal.SIGUSR1)"
    ),
    "windows line ends": "a, b = input(), input()\r\nprint(b, a)\r\n",
    "handled memory": "a, b = input(), input()\ntry: bytearray(1 << 40)\nexcept MemoryError: print(b, a)",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_honest_program_passes(name: str, run: Judge) -> None:
    case = run(PROGRAMS[name], "one\ntwo\n", "two one\n")
    assert case.verdict == "accepted", case


@pytest.mark.parametrize("without", [["cgroups"], ["cgroups", "namespaces"]], ids=["L3", "L2"])
def test_honest_programs_pass_on_weaker_machines(without: list[str]) -> None:
    given = [{"input": "one\ntwo\n", "output": "two one\n"}]
    with LocalSandbox(without=without) as weaker:
        for result in weaker.judge([Job(name, code, given) for name, code in PROGRAMS.items()]):
            assert result.verdict == "accepted", result


def test_many_bytes_go_in_and_out(sandbox: LocalSandbox) -> None:
    given = "7\n" * 1_000_000
    code = "import sys\nsys.stdout.write(sys.stdin.read())"
    job = Job.from_dict(
        {"id": "p", "code": code, "tests": [{"input": given, "output": given}], "compare": "exact"}
        | {"limits": {"output_kb": 4096, "cpu_s": 10}}
    )
    assert sandbox.judge([job])[0].verdict == "accepted"


def test_bytes_that_are_not_text_survive(sandbox: LocalSandbox) -> None:
    blob = base64.b64encode(bytes(range(256))).decode()
    for code in (
        "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())",
        "import sys\nfor s in sys.stdin, sys.stdout: s.reconfigure(newline='')\nprint(sys.stdin.read(), end='')",
    ):
        job = Job("p", code, [{"input_b64": blob, "output_b64": blob}], compare="exact")
        assert sandbox.judge([job])[0].verdict == "accepted"


def test_exactly_the_allowed_output_passes(run: Judge) -> None:
    assert run("print('x' * 1023)", "", "x" * 1023, output_kb=1).verdict == "accepted"
    assert run("print('x' * 1024)", "", "x" * 1024, output_kb=1).verdict == "output_limit"


def test_randomness_and_hashes_are_the_same_every_time(sandbox: LocalSandbox) -> None:
    job = Job("p", "import random\nprint(random.random(), hash('a'), {'a', 'b', 'c'})", [{"input": "", "output": "?"}])
    with LocalSandbox(1) as other:
        first, second = sandbox.judge([job])[0], other.judge([job])[0]
    assert first.cases[0].stdout == second.cases[0].stdout


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("print(1", "compile_error"),
        ("a\0b", "compile_error"),
        ("(" * 100_000, "compile_error"),
        ("return 1", "compile_error"),
        ("1 / 0", "runtime_error"),
        ("eval('1 +')", "runtime_error"),
        ("import sys\nprint('two one')\nsys.exit(3)", "runtime_error"),
        ("import os\nprint('two one', flush=True)\nos.kill(os.getpid(), 9)", "runtime_error"),
        ("import numpy_is_not_here", "runtime_error"),
        ("print('two')", "wrong_answer"),
        ("", "wrong_answer"),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", "memory_limit"),
        ("x = bytearray(1 << 40)", "memory_limit"),
    ],
)
def test_what_went_wrong_is_named(code: str, verdict: str, run: Judge) -> None:
    assert run(code, "", "two one\n").verdict == verdict


def test_an_exception_is_shown_without_the_sandbox_in_it(run: Judge) -> None:
    case = run("def g():\n    return 1 / 0\ng()", "", "")
    assert "ZeroDivisionError" in case.stderr
    assert 'File "main.py", line 2, in g' in case.stderr
    assert "sandbox" not in case.stderr


def test_the_first_failure_ends_a_job_and_the_rest_is_skipped(sandbox: LocalSandbox) -> None:
    tests = [{"input": str(n), "output": "1"} for n in (1, 1, 2, 1)]
    result = sandbox.judge([Job("p", "print(input())", tests)])[0]
    assert [case.verdict for case in result.cases] == ["accepted", "accepted", "wrong_answer", "skipped"]
    assert (result.verdict, result.passed, result.total) == ("wrong_answer", 2, 4)


def test_all_cases_run_where_that_is_asked(sandbox: LocalSandbox) -> None:
    tests = [{"input": str(n), "output": "1"} for n in (2, 1, 2, 1)]
    result = sandbox.judge([Job("p", "print(input())", tests, mode="all")])[0]
    assert (result.verdict, result.passed) == ("wrong_answer", 2)


def test_results_come_in_the_jobs_order(sandbox: LocalSandbox) -> None:
    jobs = [
        Job(str(n), f"import time\ntime.sleep({(5 - n) / 50})\nprint({n})", [{"input": "", "output": f"{n}"}])
        for n in range(5)
    ]
    results = sandbox.judge(jobs)
    assert [result.id for result in results] == list("01234")
    assert {result.verdict for result in results} == {"accepted"}


def test_no_jobs_give_no_results(sandbox: LocalSandbox) -> None:
    assert sandbox.judge([]) == []


def test_a_busy_machine_makes_no_false_time_outs(sandbox: LocalSandbox) -> None:
    spin = "import time\nwhile time.process_time() < 0.1: pass\nprint(1)"
    with LocalSandbox(6) as crowded:
        results = crowded.judge([Job(str(n), spin, [{"input": "", "output": "1"}]) for n in range(12)])
    assert {result.verdict for result in results} == {"accepted"}


def test_a_case_says_what_it_used(run: Judge) -> None:
    case: CaseResult = run(
        "x = bytearray(b'1') * (50 << 20)\nimport time\nwhile time.process_time() < 0.2: pass", "", ""
    )
    assert case.verdict == "accepted"
    assert case.memory_mb > 50
    assert 0.2 <= case.cpu_s < 1.0
