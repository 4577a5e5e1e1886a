"""Mappers: published rows become rows of ours, and a wrong mapper is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qwq_rl.audit.audit import audit, passes
from qwq_rl.audit.probes import as_solution
from qwq_rl.data.mappers import gsm8k, humaneval, resolve_mapper
from qwq_rl.data.row import checks_of
from qwq_rl.data.sources import load_rows
from qwq_rl.errors import RowError
from qwq_rl.rewards.scorer import grader

HUMANEVAL = {
    "task_id": "HumanEval/900",
    "prompt": 'def double(x):\n    """Return twice x."""\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "METADATA = {}\n\n\ndef check(candidate):\n"
    "    assert candidate(2) == 4, 'two'\n    assert True, 'always'\n    assert candidate(-1) == -2\n",
}


def test_gsm8k_takes_the_answer_after_the_marks_without_commas() -> None:
    row = gsm8k({"question": "How many?", "answer": "500 * 3 = <<500*3=1500>>1500 of them\n#### 1,500"})

    assert row["checks"] == [{"verifier": "math", "reference": "1500", "role": "score"}]
    assert row["solution"] == "500 * 3 = 1500 of them\n</think>\n\n\\boxed{1500}"


def test_gsm8k_gives_a_question_one_id_wherever_it_stands() -> None:
    first = gsm8k({"question": "How many?", "answer": "#### 1"})
    again = gsm8k({"question": "How many?", "answer": "#### 2"})
    other = gsm8k({"question": "How few?", "answer": "#### 1"})

    assert first["id"] == again["id"] != other["id"]


def test_gsm8k_refuses_a_row_without_an_answer() -> None:
    with pytest.raises(ValueError, match="#### ANSWER"):
        gsm8k({"question": "How many?", "answer": "three"})


def test_humaneval_makes_each_assert_one_test() -> None:
    (check,) = checks_of(humaneval(HUMANEVAL))

    assert check.verifier == "code"
    assert check.reference["entry_point"] == "double"
    assert check.reference["tests"] == [{"assert": "assert double(2) == 4"}, {"assert": "assert double(-1) == -2"}]


def test_humaneval_keeps_a_test_with_a_loop_whole() -> None:
    looped = "def check(candidate):\n    for x in range(3):\n        assert candidate(x) == 2 * x\n"

    (check,) = checks_of(humaneval({**HUMANEVAL, "test": looped}))

    assert check.reference["tests"] == [{"assert": looped + "check(double)"}]


def test_humaneval_refuses_a_row_without_a_check() -> None:
    with pytest.raises(ValueError, match="no function `check"):
        humaneval({**HUMANEVAL, "test": "assert double(1) == 2"})


def test_every_row_of_gsm8k_maps(published: Path) -> None:
    rows = load_rows(str(published / "math/gsm8k_train.jsonl"), mapper="gsm8k", kind="rl")

    assert len(rows) == 7473
    assert rows[0]["checks"][0]["reference"] == "72"
    assert all(re.fullmatch(r"-?\d+(\.\d+)?", row["checks"][0]["reference"]) for row in rows)


def test_gsm8k_solutions_pass_their_checks(published: Path) -> None:
    rows = load_rows(str(published / "math/gsm8k_test.jsonl"), mapper="gsm8k", kind="rl", limit=200)

    assert audit(enumerate(rows), grader(), opened=True).findings == ()


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_humaneval_solutions_pass_their_checks(every: int, published: Path) -> None:
    rows = load_rows(str(published / "code/humaneval.jsonl"), mapper="humaneval", kind="rl")

    assert len(rows) == 164
    rows = rows[3::every] if every > 1 else rows
    scored = grader().score([(row, as_solution(row["solution"], opened=True)) for row in rows])
    assert [row["id"] for row, one in zip(rows, scored, strict=True) if not passes(one)] == []


def test_humaneval_answers_without_the_prompts_helpers_pass_too(published: Path) -> None:
    rows = load_rows(str(published / "code/humaneval.jsonl"), mapper="humaneval", kind="rl")
    (encoded,) = [row for row in rows if row["id"] == "HumanEval/38"]
    program = "def decode_cyclic(s):\n    return encode_cyclic(encode_cyclic(s))"

    answered = {**encoded, "solution": f"Twice more.\n</think>\n```python\n{program}\n```"}

    assert audit([(1, answered)], grader(), opened=True).findings == ()


def test_a_function_of_a_file_or_a_module_is_a_mapper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab_mapper.py").write_text("def sums(row):\n    return {**row, 'domain': 'math'}\n")
    monkeypatch.syspath_prepend(tmp_path)

    for name in (f"{tmp_path}/lab_mapper.py:sums", "lab_mapper:sums"):
        assert resolve_mapper(name)({"id": "a"}) == {"id": "a", "domain": "math"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gsm8", "mapper `gsm8` is unknown; did you mean `gsm8k`?"),
        ("no_such_lab:sums", "module `no_such_lab` cannot be imported: ModuleNotFoundError"),
        ("no/such.py:sums", "there is no file no/such.py"),
        ("qwq_rl.data.mappers:gsm8", "mappers.py has no `gsm8`; did you mean `gsm8k`?"),
    ],
)
def test_a_wrong_mapper_is_named(name: str, said: str) -> None:
    with pytest.raises(RowError) as caught:
        resolve_mapper(name)

    assert said in str(caught.value)


def test_a_mapper_file_that_cannot_be_imported_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module\n")

    with pytest.raises(RowError, match=r"broken\.py cannot be imported: ModuleNotFoundError"):
        resolve_mapper(f"{tmp_path}/broken.py:sums")
