"""Test sets in the forms their owners publish them."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from qwq_rl.sandbox import Job, Limits, LocalSandbox
from qwq_rl.sandbox.formats import FormatError, apps, code_contests, humaneval, livecodebench, mbpp


def rows_of(published: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (published / "code" / f"{name}.jsonl").read_text().splitlines()]


def packed(value: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(value)))).decode()


STDIN = [{"input": "2 3\n", "output": "5\n", "testtype": "stdin"}]
CALLS = [{"input": '[1, 2]\n"a"', "output": "[2, 1]", "testtype": "functional"}]


def test_livecodebench_stdin_tests_are_public_and_private() -> None:
    row = {"public_test_cases": json.dumps(STDIN), "private_test_cases": packed(STDIN), "metadata": "{}"}
    assert livecodebench(row) == {"tests": [{"input": "2 3\n", "output": "5\n"}] * 2}


def test_livecodebench_functions_take_a_json_value_a_line() -> None:
    row = {"public_test_cases": json.dumps(CALLS), "private_test_cases": "[]", "metadata": '{"func_name": "swap"}'}
    assert livecodebench(row) == {"tests": [{"args": [[1, 2], "a"], "expected": [2, 1]}], "entry_point": "swap"}


class Evil:
    def __reduce__(self) -> Any:
        return print, ("BROKEN",)


def test_a_pickle_that_does_something_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    evil = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    with pytest.raises(FormatError, match=r"asks for builtins\.print: only data is read"):
        livecodebench({"private_test_cases": evil})
    assert "BROKEN" not in capsys.readouterr().out
    pickle.loads(zlib.decompress(base64.b64decode(evil)))
    assert "BROKEN" in capsys.readouterr().out


def test_apps_has_programs_and_functions() -> None:
    program = {"input_output": json.dumps({"inputs": ["1\n", ["2", "3"]], "outputs": ["a\n", ["b", "c"]]})}
    tests = [{"input": "1\n", "output": "a\n"}, {"input": "2\n3", "output": "b\nc"}]
    assert apps(program) == {"tests": tests}
    function = {"input_output": json.dumps({"fn_name": "f", "inputs": [[1, 2], [3, 4]], "outputs": [[3], [7]]})}
    calls = [{"args": [1, 2], "expected": 3}, {"args": [3, 4], "expected": 7}]
    assert apps(function) == {"tests": calls, "entry_point": "f"}
    lists = {"input_output": json.dumps({"fn_name": "f", "inputs": [[1], [2]], "outputs": [[1], [1, 2]]})}
    assert [test["expected"] for test in apps(lists)["tests"]] == [[1], [1, 2]]


def test_code_contests_joins_its_three_sets() -> None:
    row = {name: {"input": [name], "output": ["x"]} for name in ("public_tests", "private_tests", "generated_tests")}
    assert [test["input"] for test in code_contests(row)["tests"]] == list(row)


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (livecodebench, {}, "hold no test"),
        (livecodebench, {"public_test_cases": "?"}, "public_test_cases is neither JSON nor compressed"),
        (livecodebench, {"public_test_cases": "[1"}, "public_test_cases is not JSON"),
        (apps, {"input_output": '{"inputs": ["a"], "outputs": []}'}, "1 inputs and 0 outputs"),
        (code_contests, {}, "hold no test"),
        (mbpp, {"test_list": []}, "test_list is empty"),
    ],
)
def test_a_bad_row_is_named(read: Any, row: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read(row)


def test_published_mbpp_solutions_pass_and_empty_ones_do_not(sandbox: LocalSandbox, published: Path) -> None:
    rows = rows_of(published, "mbpp_sample")
    good = [Job(str(row["id"]), row["canonical_solution"], **mbpp(row)) for row in rows]
    assert [result.id for result in sandbox.judge(good) if result.verdict != "accepted"] == []
    bad = [Job(str(row["id"]), "pass", **mbpp(row)) for row in rows]
    assert [result.id for result in sandbox.judge(bad) if result.verdict == "accepted"] == []


def test_published_livecodebench_rows_are_judged(sandbox: LocalSandbox, published: Path) -> None:
    swaps, seniors, winner = (livecodebench(row) for row in rows_of(published, "live_code_bench_v1_sample"))
    programs = [
        ("for _ in range(int(input())): print('NO' if input() in ('bca', 'cab') else 'YES')", swaps),
        ("class Solution:\n    def countSeniors(self, x): return sum(int(d[11:13]) > 60 for d in x)", seniors),
        ("n, s = int(input()), input()\nt, a = s.count('T'), s.count('A')\n"
         "print('T' if t > a or t == a and s[-1] == 'A' else 'A')", winner),
    ]  # fmt: skip
    good = [Job("p", code, **fields) for code, fields in programs]
    assert [result.verdict for result in sandbox.judge(good)] == ["accepted"] * 3
    wrong = [Job("p", code.replace("YES", "yes").replace("60", "61").replace("'T' if", "'A' if"), **fields)
             for code, fields in programs]  # fmt: skip
    assert [result.verdict for result in sandbox.judge(wrong)] == ["wrong_answer"] * 3


@pytest.mark.slow
def test_published_code_contests_outputs_compare_equal_to_themselves(sandbox: LocalSandbox, published: Path) -> None:
    """No solutions are published with the sample: a program that knows every answer stands in."""
    jobs = []
    for row in rows_of(published, "code_contests_sample"):
        if len(row["test"]) < 30_000:
            fields = code_contests(row)
            answers = {test["input"]: test["output"] for test in fields["tests"]}
            code = f"import sys\nprint({answers!r}[sys.stdin.read()], end='')"
            jobs += [Job("right", code, **fields), Job("wrong", f"{code}\nprint(1)", **fields)]
    assert len(jobs) > 10
    for result in sandbox.judge(jobs):
        assert result.verdict == ("accepted" if result.id == "right" else "wrong_answer")


CHANGES = [
    ("+", "-"),
    ("-", "+"),
    ("==", "!="),
    ("<", ">="),
    (">", "<="),
    (" and ", " or "),
    ("True", "False"),
    ("1", "2"),
]


@pytest.mark.slow
def test_humaneval_solutions_with_one_token_changed_pass_only_where_a_plain_run_passes(
    sandbox: LocalSandbox, published: Path
) -> None:
    rows, jobs = rows_of(published, "humaneval"), []
    for row in rows:
        body = row["canonical_solution"]
        for old, new in CHANGES:
            if old in body:
                jobs.append((row, row["prompt"] + body.replace(old, new, 1)))
    limits = Limits(cpu_s=2, wall_s=30)
    results = sandbox.judge([Job(row["task_id"], code, limits=limits, **humaneval(row)) for row, code in jobs])
    accepted = [job for job, result in zip(jobs, results, strict=True) if result.verdict == "accepted"]
    assert len(jobs) > 300
    assert [row["task_id"] for row, code in accepted if not passes_plainly(row, code)] == []


def passes_plainly(row: dict[str, Any], code: str) -> bool:
    names: dict[str, Any] = {}
    exec(code, names)
    exec(row["test"], names)
    try:
        names["check"](names[row["entry_point"]])
    except Exception:
        return False
    return True
