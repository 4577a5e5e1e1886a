"""The trainer's command: what it leaves, how it ends, what it refuses. tests/stages/test_resume.py kills it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stage_runs import train
from transformers import AutoTokenizer

from qwq_rl.config.recipe import load_stage, recipe_hash, resolved_yaml
from qwq_rl.data.tiny import sets
from qwq_rl.errors import RecipeError, RunStateError, UserError
from qwq_rl.run_folder.checkpoints import mark_complete
from qwq_rl.run_folder.files import RunFolder, read_json, read_lines, write_lines
from qwq_rl.run_folder.locks import hold
from qwq_rl.stages.callbacks import StopRequest
from qwq_rl.stages.context import StageContext
from qwq_rl.stages.lineage import agreed_contract, stage_contract, tokenizer_items
from qwq_rl.stages.provenance import collect
from qwq_rl.train import _check_world, _finished, main, run_as_program
from qwq_rl.training.clock import Clock

RECIPE = """\
kind: sft
model: {new: tiny}
data: [{source: ROWS}]
batch: 4
max_length: 128
update: {lr: 1.0e-3}
steps: 3
evaluate: {every: 3, sets: [HELD_OUT], samples: 1}
checkpoint: {every: 2, keep: 1}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes") / "small"
    write_lines(folder / "rows.jsonl", sets.rows("general_demonstrations")[:40])
    write_lines(folder / "held_out.jsonl", [row for row in sets.rows("tuning") if row["family"] == "echo"][:2])
    text = RECIPE.replace("ROWS", str(folder / "rows.jsonl")).replace("HELD_OUT", str(folder / "held_out.jsonl"))
    (folder / "0_stage.yaml").write_text(text)
    return folder / "0_stage.yaml"


@pytest.fixture(scope="module")
def run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of the recipe."""
    made = RunFolder(tmp_path_factory.mktemp("runs") / "small")
    assert train(recipe, made.path) == 0
    return made


def context(run: RunFolder, stage: str) -> StageContext:
    """Where a stage of the run begins."""
    return StageContext(run, run.stage(stage), run.path, 1, None, Clock(), StopRequest())


def test_a_stage_is_done_with_what_it_says_last(recipe: Path, run: RunFolder) -> None:
    stage = run.stage("0_stage")
    done = read_json(stage.done) or {}

    assert done["update"] == 3
    assert done["recipe_hash"] == recipe_hash(load_stage(recipe))
    assert run.path / done["checkpoint"] == stage.final
    assert done["cpu_seconds"] >= read_lines(stage.metrics)[-1]["cpu_seconds"] > 0
    newest = max(path.stat().st_mtime for path in stage.path.rglob("*") if path.is_file() and path != stage.lock)
    assert stage.done.stat().st_mtime == newest


def test_the_recipe_as_it_ran_is_the_recipe(recipe: Path, run: RunFolder) -> None:
    assert load_stage(run.stage("0_stage").resolved) == load_stage(recipe)


def test_where_it_came_from_is_recorded(recipe: Path, run: RunFolder) -> None:
    said = read_json(run.stage("0_stage").provenance) or {}
    stage = load_stage(recipe)

    tokenizer = AutoTokenizer.from_pretrained(run.stage("0_stage").final)
    contract = {**agreed_contract(stage, context(run, "0_stage")), **tokenizer_items(tokenizer)}

    assert said == collect("0_stage", recipe, stage, 1, ["qwq_rl.train", str(recipe), "--run", str(run.path)], contract)
    assert contract["eos"] == "<|im_end|>"
    assert contract["base"] == "tiny"


def test_the_contract_of_a_stage_tells_verifiers_and_templates_apart(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.stage("0_stage").final, tmp_path / "x")
    for name, parameters in (("one", "{}"), ("other", "{use: constraints}")):
        (tmp_path / f"{name}.yaml").write_text(
            f"{{kind: rl, model: {{from: {tmp_path / 'x'}}}, algorithm: grpo, data: [{{source: tiny/math}}], rollout: "
            "{prompts: 1, generations: 2, max_tokens: 8}, steps: 1, update: {lr: 1.0}, "
            f"domains: {{math: {{verifiers: {{math: {parameters}}}}}}}, "
            "evaluate: {every: 1, sets: [tiny/tuning], samples: 1}, checkpoint: {every: 1, keep: 1}}"
        )
    here = context(run, "1_stage")
    one, other = (stage_contract(load_stage(tmp_path / f"{name}.yaml"), here) for name in ("one", "other"))
    with (tmp_path / "x" / "chat_template.jinja").open("a") as file:
        file.write(" ")
    changed = stage_contract(load_stage(tmp_path / "one.yaml"), here)

    assert one["verifiers"].keys() == other["verifiers"].keys() == {"math.math"}
    assert one["verifiers"] != other["verifiers"]
    assert {name for name in one if one[name] != changed[name]} == {"chat_template"}


def test_other_limits_do_not_make_it_another_stage(tmp_path: Path) -> None:
    path = tmp_path / "1_stage.yaml"
    path.write_text(
        "{kind: rl, model: {from: x}, algorithm: grpo, data: [{source: tiny/math}], rollout: {prompts: 1, "
        "generations: 2, max_tokens: 8}, domains: {math: {verifiers: {math: {}}}}, steps: 9, "
        "update: {lr: 1.0}, evaluate: {every: 1, sets: [tiny/tuning], samples: 1}, checkpoint: {every: 1, keep: 1}}"
    )
    stage = RunFolder(tmp_path / "run").stage("1_stage")
    checkpoint = stage.checkpoints / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    mark_complete(checkpoint, {})
    stage.resolved.write_text(resolved_yaml(load_stage(path, ["--limits.zero_rounds=3"])))

    assert not _finished(stage, load_stage(path, ["--limits.entropy=0.1", "--limits.zero_rounds=null"]), path)
    with pytest.raises(RunStateError, match=r"update.lr: 1.0 -> 2.0"):
        _finished(stage, load_stage(path, ["--limits.entropy=0.1", "--update.lr=2"]), path)


def test_only_the_kept_checkpoints_are_there(run: RunFolder) -> None:
    names = sorted(path.name for path in run.stage("0_stage").checkpoints.iterdir() if path.is_dir())

    assert names == ["checkpoint-3", "final"]


def test_the_same_recipe_gives_the_same_run(recipe: Path, run: RunFolder, tmp_path: Path) -> None:
    from stage_runs import differences

    assert train(recipe, tmp_path / "again") == 0

    assert list(differences(run.stage("0_stage"), RunFolder(tmp_path / "again").stage("0_stage"))) == []


def test_another_seed_gives_another(recipe: Path, run: RunFolder, tmp_path: Path) -> None:
    assert train(recipe, tmp_path / "again", "--seed=1") == 0

    losses = [
        [line["loss"] for line in read_lines(RunFolder(p).stage("0_stage").metrics)]
        for p in (run.path, tmp_path / "again")
    ]
    assert losses[0] != losses[1]


def test_every_mistake_of_a_recipe_comes_before_anything_is_written(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        train(recipe, tmp_path / "run", "--batsh=3", "--steps=0")

    assert "batsh" in str(refused.value)
    assert "steps" in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_stage_that_somebody_trains_already_is_left_to_them(recipe: Path, tmp_path: Path) -> None:
    stage = RunFolder(tmp_path).stage("0_stage")

    with hold(stage.lock, "the trainer of 0_stage"), pytest.raises(RunStateError, match=f"pid {os.getpid()}"):
        train(recipe, tmp_path)

    assert not stage.metrics.exists()


def test_a_mistake_is_one_message_and_a_status(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", str(recipe.with_name("1_stage.yaml")), "--run", str(tmp_path)])

    assert run_as_program() == 2

    assert capsys.readouterr().err.startswith("error: ")


def test_a_run_without_a_name_is_called_after_its_recipe(
    recipe: Path, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "small").symlink_to(run.path)

    assert main([str(recipe)]) == 0

    assert "0_stage is finished already: runs/small/0_stage/checkpoints/final" in capsys.readouterr().out


@pytest.mark.parametrize(("asked", "runs"), [({"WORLD_SIZE": "2"}, 1), ({"QWQ_RL_PROCESSES": "2"}, 1)])
def test_fewer_processes_than_were_asked_for_are_refused(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, str], runs: int
) -> None:
    for name in ("WORLD_SIZE", "QWQ_RL_PROCESSES"):
        monkeypatch.delenv(name, raising=False)
    _check_world(1)
    for name, value in asked.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(UserError, match="2 processes were asked for and 1 run"):
        _check_world(runs)


def test_ctrl_c_before_training_is_no_traceback(recipe: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "qwq_rl.train", str(recipe), "--run", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lock = RunFolder(tmp_path).stage("0_stage").lock
    while not lock.exists() and process.poll() is None:
        time.sleep(0.01)

    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]

    assert process.returncode == 130, said
    assert "Traceback" not in said
