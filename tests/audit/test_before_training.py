"""The audit before an rl stage trains: what it stops, what it only tells, and that a resume does not pay twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stage_runs import SmallRun

from qwq_rl.audit.before_training import ROWS, audit_stage
from qwq_rl.config.recipe import RlRecipe, load_stage
from qwq_rl.errors import UserError
from qwq_rl.rewards.scorer import Scorer
from qwq_rl.run_folder.files import StageFolder, write_lines

RECIPE = """\
kind: rl
model: {from: 0_cold_start}
algorithm: grpo
data: [{source: rows.jsonl}]
domains:
  math: {verifiers: {math: VERIFIER}}
  words: {verifiers: {exact: {}}}
rollout: {prompts: 2, generations: 2, max_tokens: 8}
update: {lr: 1.0e-3, clip: [0.2, 0.28]}
steps: 2
evaluate: {every: 2, sets: [tiny/tuning], samples: 2}
checkpoint: {every: 2, keep: 1}
limits: LIMITS
"""


def rows(count: int, broken: int = 0) -> list[dict[str, Any]]:
    """Math rows, the first `broken` of them with a solution that is wrong, and one of words."""
    found: list[dict[str, Any]] = [
        {"id": f"m{at}", "domain": "math", "prompt": "?", "verifier": "math", "reference": str(at)}
        for at in range(count)
    ]
    for row in found[:broken]:
        row["solution"] = r"</think> \boxed{-1}"
    return [*found, {"id": "w", "domain": "words", "prompt": "?", "verifier": "exact", "reference": "hi"}]


class Stage:
    """A stage about to train."""

    def __init__(self, path: Path, verifier: str = "{}", limits: str = "{}") -> None:
        path.mkdir(exist_ok=True)
        (path / "recipe.yaml").write_text(RECIPE.replace("VERIFIER", verifier).replace("LIMITS", limits))
        recipe = load_stage(path / "recipe.yaml")
        assert isinstance(recipe, RlRecipe)
        self.recipe, self.folder = recipe, StageFolder(path)

    def audit(self, data: list[dict[str, Any]]) -> dict[str, Any]:
        audit_stage(data, Scorer(self.recipe.domains, self.recipe.gates), self.recipe, self.folder)
        record: dict[str, Any] = json.loads(self.folder.audit.read_text())
        return record


def test_sound_rows_pass_and_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = Stage(tmp_path / "s").audit(rows(40))

    assert (record["passed"], record["rows"], record["proven"], record["findings"]) == (True, 41, 41, [])
    assert "audit of the rows of s: passed" in capsys.readouterr().out


def test_more_broken_rows_than_allowed_stop_the_stage(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "s")

    with pytest.raises(UserError) as told:
        stage.audit(rows(40, broken=3))

    assert "math: of 3 of 40 rows a right answer is not, or not always, rewarded" in str(told.value)
    assert "m0 (row 1): its solution does not pass" in str(told.value)
    assert "limits.broken_share, now 0.05" in str(told.value)


def test_broken_rows_within_the_limit_are_told_and_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = Stage(tmp_path / "s").audit(rows(40, broken=2))

    assert (record["passed"], record["broken"]) == (False, 2)
    assert "2 solutions that do not pass" in capsys.readouterr().err


def test_the_limit_is_the_recipes(tmp_path: Path) -> None:
    assert Stage(tmp_path / "s", limits="{broken_share: 0.5}").audit(rows(40, broken=20))["broken"] == 20


def test_a_verifier_that_takes_anything_stops_the_stage(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def verify(problem, response): return True\n")

    with pytest.raises(UserError, match="math: in every row an answer that answers nothing passes"):
        Stage(tmp_path / "s", verifier=f"'{tmp_path}/own.py:verify'").audit(rows(5))


def test_the_same_rows_and_verifiers_are_audited_once(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def verify(problem, response):\n"
        f"    open('{tmp_path}/asked', 'a').write('x')\n"
        "    return response.answer == problem['reference']\n"
    )
    stage, asked = Stage(tmp_path / "s", verifier=f"'{tmp_path}/own.py:verify'"), tmp_path / "asked"
    stage.audit(rows(5))
    first = asked.stat().st_size
    stage.audit(rows(5))
    assert asked.stat().st_size == first

    stage.audit(rows(6))
    assert asked.stat().st_size > first


def test_what_was_refused_is_audited_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "s")
    for _ in range(2):
        with pytest.raises(UserError, match="the audit before training"):
            stage.audit(rows(4, broken=4))


def test_of_many_rows_the_first_that_training_sees_are_audited(tmp_path: Path) -> None:
    data = rows(ROWS + 50)
    assert Stage(tmp_path / "s").audit([*data, *data])["rows"] == ROWS + 1


def test_a_stage_whose_rows_are_broken_does_not_begin(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path / "run", "0_cold_start")
    write_lines(tmp_path / "rows.jsonl", rows(8, broken=8)[:8])
    options = (
        f"--data.0.source={tmp_path}/rows.jsonl",
        "--data.1.source=tiny/code",
        "--domains.code.verifiers.code={}",
    )

    with pytest.raises(UserError, match="of 8 of 8 rows a right answer is not"):
        small.train(run, "1_math_code", *options)

    assert not run.stage("1_math_code").metrics.exists()
