"""`qwq-rl run` from the command line to the closing summary, with processes that train nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qwq_rl.errors import RecipeError, UserError
from qwq_rl.pipeline.run import read_order
from qwq_rl.run_folder.files import RunFolder, read_json, write_lines

WHOLE_RUN = Path(__file__).parent.parent / "processes" / "whole_run.py"
PIPELINE = """
stages: [0_start, 1_math]
gates:
  - {stage: 0_start, set: tiny/tuning, require: [{measure: pass_at_1, domains: [math], above: 0.5}]}
evaluate: {sets: [tiny/final], samples: 2, max_tokens: 8}
release: 1_math
"""
START = """
kind: sft
model: {new: tiny}
data: [{source: DATA}]
batch: 4
max_length: 64
update: {lr: 4.0e-3}
steps: 4
evaluate: {every: 4, sets: [tiny/tuning], samples: 2}
checkpoint: {every: 4, keep: 1}
"""
MATH = """
kind: rl
model: {from: 0_start}
algorithm: grpo
data: [{source: tiny/math}]
domains: {math: {verifiers: {math: {}}}}
rollout: {prompts: 2, generations: 2, max_tokens: 8}
update: {lr: 1.0e-3}
steps: 4
evaluate: {every: 4, sets: [tiny/tuning], samples: 2}
checkpoint: {every: 4, keep: 1}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = tmp_path / "little"
    folder.mkdir()
    for name, text in {"pipeline": PIPELINE, "0_start": START, "1_math": MATH}.items():
        (folder / f"{name}.yaml").write_text(text.replace("DATA", str(folder / "rows.jsonl")))
    messages = [{"role": "user", "content": "1 + 1 = ?"}, {"role": "assistant", "content": "\\boxed{2}"}]
    row = {"id": "1", "domain": "math", "family": "sum", "messages": messages}
    write_lines(folder / "rows.jsonl", [row])
    return folder


def go(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(WHOLE_RUN), *arguments],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_run_ends_with_its_figures_and_where_things_lie(recipe: Path) -> None:
    status, output = go(recipe.parent, "little")
    assert status == 0, output
    run = RunFolder(recipe.parent / "runs" / "little")
    summary = read_json(run.summary)
    assert summary is not None
    assert list(summary["stages"]) == ["0_start", "1_math"]
    assert run.report.exists()
    assert "tiny/final math" in output
    assert "1_math - 0_start, tiny/final: math +0.00 [-0.72, +0.72]" in output
    assert re.search(r"took \d\.\d min, \d\.\d min of processor time", output)
    assert "runs/little/report.html" in output
    assert "runs/little/1_math/checkpoints/final" in output


def test_every_seed_is_run_and_one_that_collapses_is_reported(recipe: Path) -> None:
    status, output = go(recipe.parent, "little", "--name", "three", "--seeds", "0,1,2", LITTLE_COLLAPSES="1")
    assert status == 4, output
    run = recipe.parent / "runs" / "three"
    states = [read_json(run / f"seed-{seed}" / "pipeline.json") for seed in range(3)]
    assert [state and state["seed"] for state in states] == [0, 1, 2]
    assert [state and state["stages"]["1_math"]["status"] for state in states] == ["done", "waiting", "done"]
    summary = read_json(run / "summary.json")
    assert summary is not None
    assert summary["seeds"] == [0, 1, 2]
    assert (run / "report.html").exists()
    assert "seed 1 collapsed" in output
    assert "1 of 3 seeds did not pass a gate: seed 1" in output


def test_overrides_reach_the_stage_they_name(recipe: Path) -> None:
    status, output = go(recipe.parent, "little", "--0_start.steps=6", "--pipeline.evaluate.samples=4")
    assert status == 0, output
    assert "0_start: 6 updates" in output
    assert "1_math: 4 updates" in output


def test_every_mistake_is_said_before_anything_runs(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(recipe.parent)
    (recipe / "1_math.yaml").write_text(MATH.replace("algorithm: grpo", "algoritm: grpo"))
    (recipe / "0_start.yaml").write_text(START.replace("steps: 4", "steps: none"))
    with pytest.raises(RecipeError) as caught:
        read_order(["little"])
    assert "little/1_math.yaml:4" in str(caught.value)
    assert "little/0_start.yaml:8" in str(caught.value)
    assert not (recipe.parent / "runs").exists()


@pytest.mark.parametrize("seeds", ["0,x", "1,1", "-1", ""])
def test_seeds_that_are_none(recipe: Path, seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read_order([str(recipe), f"--seeds={seeds}"])
    assert caught.value.code == UserError.exit_status
    assert "--seeds" in capsys.readouterr().err


def test_the_seed_is_set_in_every_stage(recipe: Path) -> None:
    order = read_order([str(recipe), "--seeds=3", "--1_math.update.lr=2e-3"])
    plan = order.plan(3)
    assert {stage.seed for stage in plan.stages.values()} == {3}
    assert plan.overrides["1_math"] == ["--update.lr=2e-3", "--seed=3"]
    assert plan.train_arguments("1_math", Path("r"), 0)[-2:] == ["--update.lr=2e-3", "--seed=3"]


def test_a_disk_that_fills_up_is_called_one_and_loses_nothing(recipe: Path) -> None:
    mounted = ["unshare", "-rm", "sh", "-c"]
    if subprocess.run([*mounted, "mount -t tmpfs none /mnt"], capture_output=True, check=False).returncode:
        pytest.skip("no small file system can be mounted here (unshare -rm)")
    run = f"{sys.executable} {WHOLE_RUN} little --runs /mnt"
    script = f"""
        mount -t tmpfs -o size=40k none /mnt; {run}; echo status $?
        ls -A /mnt/little
        mount -o remount,size=40m /mnt; {run}; echo status $?
        cat /mnt/little/0_start/metrics.jsonl
    """
    done = subprocess.run([*mounted, script], cwd=recipe.parent, capture_output=True, text=True, check=False)
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert ".pipeline.json" not in done.stdout
    first, second = done.stdout.split("status 1\n")
    assert "✓ 0_start" in first
    assert "status 0\n" in second
    assert second.count('"update": ') == 4
