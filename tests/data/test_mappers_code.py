"""Published programming problems become rows that judge their own solutions right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwq_rl.audit.audit import audit
from qwq_rl.data.mappers import resolve_mapper
from qwq_rl.data.row import checks_of
from qwq_rl.data.sources import load_rows
from qwq_rl.rewards.scorer import grader

ROWS: dict[str, dict[str, Any]] = {
    "mbpp": {
        "task_id": 7,
        "text": "Write a function to double.",
        "code": "def double(x):\n    return 2 * x",
        "test_list": ["assert double(2) == 4", "assert double(0) == 0"],
        "test_setup_code": "",
        "challenge_test_list": [],
    },
    "apps": {
        "problem_id": 7,
        "question": "Print the sum.",
        "solutions": json.dumps(["print(sum(map(int, input().split())))"]),
        "input_output": json.dumps({"inputs": ["1 2\n"], "outputs": ["3\n"]}),
        "starter_code": "",
    },
    "taco": {
        "question": "Return the sum.",
        "solutions": json.dumps(["class Solution:\n    def add(self, a, b):\n        return a + b"]),
        "input_output": json.dumps({"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}),
        "starter_code": "class Solution:\n    def add(self, a, b):\n        ",
    },
    "code_contests": {
        "name": "7_A. Sum",
        "description": "Print the sum.",
        "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
        "private_tests": {"input": [], "output": []},
        "generated_tests": {"input": ["5 5\n"], "output": ["10\n"]},
        "solutions": {"language": [2, 3], "solution": ["int main() {}", "print(sum(map(int, input().split())))"]},
        "time_limit": {"seconds": 0, "nanos": 500_000_000},
        "memory_limit_bytes": 256_000_000,
    },
}
LIVE = {
    "question_id": "7_A",
    "question_content": "Return the sum.",
    "starter_code": "class Solution:\n    def add(self, a: int, b: int) -> int:\n        ",
    "public_test_cases": json.dumps([{"input": "1\n2", "output": "3", "testtype": "functional"}]),
    "private_test_cases": "[]",
    "metadata": json.dumps({"func_name": "add"}),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_as_published_judges_its_solution_right(name: str) -> None:
    row = resolve_mapper(name)(ROWS[name])

    assert (row["domain"], row["family"]) == ("code", name)
    assert audit([(1, row)], grader(), opened=True).findings == ()
    assert row["solution"] is not None


def test_a_livecodebench_row_shows_its_starter_code_and_calls_its_method() -> None:
    row = resolve_mapper("livecodebench")(LIVE)
    (check,) = checks_of(row)

    assert check.reference["tests"] == [{"args": [1, 2], "expected": 3}]
    assert check.reference["entry_point"] == "add"
    assert LIVE["starter_code"] in row["prompt"][0]["content"]
    program = "```python\nclass Solution:\n    def add(self, a, b):\n        return a + b\n```"
    assert audit([(1, {**row, "solution": f"so\n</think>\n{program}"})], grader(), opened=True).findings == ()


def test_limits_of_code_contests_are_kept_but_for_the_shortest() -> None:
    (check,) = checks_of(resolve_mapper("code_contests")(ROWS["code_contests"]))

    assert check.reference["limits"] == {"cpu_s": 1.0, "memory_mb": 244}
    assert check.reference["language"] == ["python", "cpp"]


@pytest.mark.parametrize(
    ("file", "mapper", "count"),
    [
        ("mbpp_sample", "mbpp", 20),
        ("live_code_bench_v1_sample", "livecodebench", 3),
        ("code_contests_sample", "code_contests", 20),
    ],
)
def test_every_published_row_maps(published: Path, file: str, mapper: str, count: int) -> None:
    rows = load_rows(str(published / f"code/{file}.jsonl"), mapper=mapper, kind="rl")

    assert len(rows) == count
    assert len({row["id"] for row in rows}) == count


def test_mbpp_solutions_pass_their_checks(published: Path) -> None:
    rows = load_rows(str(published / "code/mbpp_sample.jsonl"), mapper="mbpp", kind="rl")

    assert audit(enumerate(rows), grader(), opened=True).findings == ()
