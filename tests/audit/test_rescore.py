"""`qwq-rl rescore`: the recorded rollouts of a run judged by another verifier, and what would have changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conforms import conforms
from recorded_run import ROWS, recorded_run, rollout

from qwq_rl.audit.rescore import main, signs
from qwq_rl.audit.rescored import response_of
from qwq_rl.errors import RowError, RunStateError, UserError
from qwq_rl.run_folder import schema_audit
from qwq_rl.run_folder.files import RunFolder, write_lines

OWN = """\
def lenient(problem, response):
    return problem["reference"] in response.text

def refuses(problem, response):
    return None

def exactly(word):
    return lambda problem, response: response.answer == word
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return recorded_run(tmp_path / "run", tmp_path / "rows.jsonl")


def summary(capsys: pytest.CaptureFixture[str], run: Path, *arguments: str) -> dict[str, Any]:
    assert main([str(run), "--json", *arguments]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert conforms(found, schema_audit.Rescored) == []
    return found


def test_the_same_verifier_agrees_with_itself(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = summary(capsys, run, "--verifier", "math")

    assert (found["rollouts"], found["disagree"], found["unfound"]) == (8, 0, 0)
    assert found["domains"]["math"]["reward"] == {"old": 0.25, "new": 0.25}
    assert found["domains"]["math"]["groups"] == {"total": 4, "signs_changed": 0, "vanished": 0, "appeared": 0}


def test_another_verifier_shows_what_it_would_have_changed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = summary(capsys, run, "--verifier", f"{run.parent}/own.py:lenient", "--domain", "math")

    assert (found["rollouts"], found["disagree"]) == (8, 4)
    area = found["domains"]["math"]
    assert area["statuses"] == [
        {"old": "wrong", "new": "correct", "rollouts": 4},
        {"old": "correct", "new": "correct", "rollouts": 2},
        {"old": "wrong", "new": "wrong", "rollouts": 2},
    ]
    assert area["score"] == {"old": 0.25, "new": 0.75}
    assert area["reward"] == {"old": 0.25, "new": 0.75}
    # The first group was mixed and passes as a whole, the second failed as a whole and is mixed.
    assert area["groups"] == {"total": 4, "signs_changed": 4, "vanished": 2, "appeared": 2}


def test_a_reward_keeps_the_preference_that_was_recorded(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = summary(
        capsys, run, "--verifier", f"{run.parent}/own.py:exactly", "--param", "word=nay", "--check", "exact"
    )

    assert found["domains"]["general"]["reward"] == {"old": 0.375, "new": 0.375}
    assert found["domains"]["general"]["groups"]["signs_changed"] == 2


def test_disagreements_are_written_with_both_verdicts(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert main([str(run), "--verifier", f"{run.parent}/own.py:lenient", "--domain", "math", "--out", str(out)]) == 0

    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["id"], line["old"]["score"], line["new"]["score"]) for line in lines] == [
        ("u1-g0-s1", 0.0, 1.0),
        ("u1-g1-s0", 0.0, 1.0),
        ("u2-g0-s1", 0.0, 1.0),
        ("u2-g1-s0", 0.0, 1.0),
    ]
    assert [conforms(line, schema_audit.Disagreement) for line in lines] == [[]] * 4
    assert (lines[0]["reference"], lines[0]["reward"]) == ("4", {"old": 0.0, "new": 1.0})


def test_the_text_shows_examples_once_with_their_number(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--verifier", f"{run.parent}/own.py:lenient", "--domain", "math"]) == 0
    told = capsys.readouterr().out
    assert "4 disagreements (50.0%)" in told
    assert "4  wrong -> correct" in told
    assert told.count("u1-g0-s1, row m1, 2 times") == 1
    assert "u2-g0-s1" not in told
    assert "reference 4" in told


def test_in_a_domain_of_several_checks_those_of_its_name_are_judged_again(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = RunFolder(run).stage("1_math_code")
    other = rollout(3, 0, 0, "g1", "</think> hi", 1.0)
    other["verdicts"] = {"constraints": other["verdicts"]["exact"]}
    write_lines(stage.rollouts(3), [other])

    assert summary(capsys, run, "--verifier", "exact", "--domain", "general")["rollouts"] == 4


def test_a_rule_of_the_domain_is_judged_again_with_its_reference(run: Path, tmp_path: Path) -> None:
    stage = RunFolder(run).stage("1_math_code")
    rule = "checks: [{verifier: language_consistency, role: gate, reference: en}]"
    recipe = stage.resolved.read_text().replace("{math: {}}}", "{math: {}}, " + rule + "}")
    assert rule in recipe
    stage.resolved.write_text(recipe)
    for update in (1, 2):
        lines = [json.loads(line) for line in stage.rollouts(update).read_text().splitlines()]
        said = {"score": 0.0, "status": "wrong", "reason": "", "answer": None, "metrics": {}, "seconds": 0.0}
        for line in lines:
            line["verdicts"] |= {"language_consistency": said} if line["domain"] == "math" else {}
        write_lines(stage.rollouts(update), lines)
    out = tmp_path / "out.jsonl"
    assert main([str(run), "--verifier", "language_consistency", "--out", str(out)]) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(found) == 8
    assert {(line["check"], line["reference"], line["new"]["score"]) for line in found} == {
        ("language_consistency", "en", 1.0)
    }


@pytest.mark.parametrize(("updates", "number"), [("1", 4), ("2-", 4), ("-1", 4), ("1-2", 8)])
def test_updates_choose_the_rollouts(run: Path, capsys: pytest.CaptureFixture[str], updates: str, number: int) -> None:
    assert summary(capsys, run, "--verifier", "math", "--updates", updates)["rollouts"] == number


def test_a_verdict_that_cannot_be_given_is_no_reward(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    area = summary(capsys, run, "--verifier", f"{run.parent}/own.py:refuses", "--check", "math")["domains"]["math"]
    assert area["faults"] == {"old": 0, "new": 8}
    assert area["reward"]["new"] is None
    assert area["groups"]["vanished"] == 2


def test_rows_that_are_gone_are_counted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(run.parent / "rows.jsonl", ROWS[1:])
    found = summary(capsys, run, "--verifier", "math")
    assert (found["rollouts"], found["unfound"]) == (4, 4)


def test_data_that_is_gone_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.parent / "rows.jsonl").unlink()
    with pytest.raises(RowError, match="of 8 the row is not found"):
        main([str(run), "--verifier", "math"])
    assert "a source of 1_math_code cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--verifier", "own.py:lenient"], r"--check \(exact, math\) or --domain \(general, math\)"),
        (["--verifier", "math", "--check", "maths"], "did you mean `math`"),
        (["--verifier", "math", "--domain", "maths"], "did you mean `math`"),
        (["--verifier", "math", "--updates", "x"], "write it as 12"),
        (["--verifier", "math", "--updates", "3-1"], "the first comes after the last"),
        (["--verifier", "math", "--updates", "7-"], "no rollouts of these --updates; the last recorded one is 2"),
        (["--verifier", "math", "--out", "."], r"--out \. is a folder"),
        (["--verifier", "maths"], "did you mean `math`"),
    ],
)
def test_a_mistake_says_what_would_be_right(
    run: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], what: str
) -> None:
    monkeypatch.chdir(run.parent)
    with pytest.raises(UserError, match=what):
        main([str(run), *arguments])


def test_a_run_or_stage_without_rollouts_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunStateError, match="there are 1_math_code"):
        main([f"{run}@2_general", "--verifier", "math"])
    with pytest.raises(RunStateError, match="no such folder"):
        main([str(tmp_path / "none"), "--verifier", "math"])
    (tmp_path / "seeds" / "seed-0").mkdir(parents=True)
    with pytest.raises(RunStateError, match="name one of its seeds"):
        main([str(tmp_path / "seeds"), "--verifier", "math"])


def test_a_response_without_text_is_decoded() -> None:
    line = rollout(1, 0, 0, "m1", "", 1.0)
    line["segments"][0]["text"] = None

    response = response_of(line, "<|im_end|>", lambda ids: f"{len(ids)} </think> 7<|im_end|>")

    assert (response.reasoning, response.answer, response.token_ids) == ("2", "7", (1, 2))


def test_the_last_turn_holds_the_answer() -> None:
    line = rollout(1, 0, 0, "m1", "</think> first", 1.0)
    line["segments"] += [{"role": "environment", "text": "tool"}, {**line["segments"][0], "text": "x</think> last"}]

    response = response_of(line, "<|im_end|>", str)

    assert response.answer == "last"
    assert response.text == "</think> first<|im_end|>x</think> last"


def test_signs_are_those_of_the_distance_to_the_groups_mean() -> None:
    assert signs([1.0, 0.0, 0.0, None]) == [1, -1, -1, 0]
    assert signs([0.1, 0.1, 0.1]) == [0, 0, 0]
    assert signs([None, None]) == [0, 0]
