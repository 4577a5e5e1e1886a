"""`qwq-rl sandbox run` and `doctor`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qwq_rl.sandbox.cli import main

JOB = {"id": "a", "code": "print(1)", "tests": [{"input": "", "output": "1"}]}


def test_a_file_of_jobs_becomes_a_file_of_results(tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text(
        json.dumps(JOB) + "\n\n" + json.dumps(JOB | {"id": "b", "code": "print(2)"}) + "\n"
    )
    assert main(["run", str(tmp_path / "jobs.jsonl"), "--out", str(tmp_path / "out.jsonl")]) == 0
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(result["id"], result["verdict"]) for result in results] == [("a", "accepted"), ("b", "wrong_answer")]


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"id": 1', "jobs.jsonl:2: not JSON"), (json.dumps(JOB | {"tests": 3}), "jobs.jsonl:2: tests: give a list")],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "jobs.jsonl").write_text(json.dumps(JOB) + "\n" + line + "\n")
    assert main(["run", str(tmp_path / "jobs.jsonl"), "--out", str(tmp_path / "out.jsonl")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "out.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_the_doctor_shows_both_sides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "network           succeeds         fails" in printed
    assert "isolation L" in printed


def test_the_sandbox_needs_the_standard_library_only() -> None:
    script = (
        "import qwq_rl.sandbox, sys; print([n for n in sys.modules if n.split('.')[0] in ('torch', 'numpy', 'yaml')])"
    )
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
