"""The supervised stages: what they train on, and that what they train on is learnt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stage_runs import SmallRun
from transformers import AutoTokenizer

from qwq_rl.config.recipe import load_stage
from qwq_rl.data.sources import load_rows
from qwq_rl.errors import RowError, UserError
from qwq_rl.evals.evaluate import evaluate_model, load_model
from qwq_rl.run_folder.files import RunFolder, read_lines
from qwq_rl.stages.callbacks import StopRequest
from qwq_rl.stages.context import StageContext, ordered_rows
from qwq_rl.stages.muon import Muon
from qwq_rl.train import build_trainer
from qwq_rl.training.clock import Clock


def setting_of(small: SmallRun, path: Path, stage: str, *needed: str, world_size: int = 1) -> StageContext:
    run = small.beside(path, *needed) if needed else RunFolder(path)
    return StageContext(run, run.stage(stage), small.recipes, world_size, None, Clock(), StopRequest())


def test_a_cold_start_learns_what_it_is_shown(small: SmallRun) -> None:
    lines = read_lines(small.stage("0_cold_start").metrics)

    assert lines[-1]["loss"] < 0.3 * lines[0]["loss"]
    assert lines[-1]["accuracy"] > 0.7 > lines[0]["accuracy"]
    assert [line["samples"] for line in lines] == [16 * update for update in range(1, len(lines) + 1)]


def test_the_loss_is_of_the_answer_alone_thinking_included(small: SmallRun, tmp_path: Path) -> None:
    recipe = load_stage(small.recipes / "1_control.yaml")
    trainer = build_trainer(recipe, setting_of(small, tmp_path, "1_control", "0_cold_start"))
    tokenizer = trainer.processing_class

    batch = next(iter(trainer.get_train_dataloader()))

    rows = ordered_rows(recipe.data, recipe.seed, recipe.batch, recipe.steps)[: recipe.batch]  # type: ignore[union-attr]
    for row, ids, labels in zip(rows, batch["input_ids"], batch["labels"], strict=True):
        shown = tokenizer.decode([token for token in labels.tolist() if token != -100])
        assert f"<think>\n{shown}" == row["messages"][-1]["content"] + "<|im_end|>"
        assert tokenizer.decode(ids).startswith("<|im_start|>user\n" + row["messages"][0]["content"])


def test_rows_come_in_the_order_that_mixing_gives_them(small: SmallRun, tmp_path: Path) -> None:
    recipe = load_stage(small.recipes / "2_reward_model.yaml")
    trainer = build_trainer(recipe, setting_of(small, tmp_path, "2_reward_model", "0_cold_start"))
    tokenizer = trainer.processing_class
    rows = ordered_rows(recipe.data, recipe.seed, 8, 6)

    first = next(iter(trainer.get_train_dataloader()))["input_ids"]

    assert len(first) == 16
    for row, chosen, rejected in zip(rows, first[:8], first[8:], strict=False):
        assert row["chosen"] in tokenizer.decode(chosen)
        assert row["rejected"] in tokenizer.decode(rejected)
        assert "<think>" not in tokenizer.decode(chosen)


def test_a_reward_model_learns_to_prefer_what_it_was_shown(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "0_cold_start")

    assert small.train(run, "2_reward_model", "--steps=30", "--checkpoint.every=30") == 0

    lines = read_lines(run.stage("2_reward_model").metrics)
    assert sum(line["accuracy"] for line in lines[-8:]) / 8 > 0.6
    assert sum(line["loss"] for line in lines[-8:]) < sum(line["loss"] for line in lines[:8])


@pytest.mark.parametrize(("stage", "expected"), [("0_cold_start", True), ("1_control", False)])
def test_the_optimizer_is_the_recipes(small: SmallRun, tmp_path: Path, stage: str, expected: bool) -> None:
    needed = () if stage == "0_cold_start" else ("0_cold_start",)
    trainer = build_trainer(load_stage(small.recipes / f"{stage}.yaml"), setting_of(small, tmp_path, stage, *needed))

    assert isinstance(trainer.create_optimizer(), Muon) is expected


@pytest.mark.parametrize("stage", ["1_control", "2_reward_model"])
def test_a_row_that_is_too_long_is_named(small: SmallRun, tmp_path: Path, stage: str) -> None:
    run = small.beside(tmp_path, "0_cold_start")

    with pytest.raises(RowError, match=r"row \S+ has \d+ tokens, more than max_length 12: raise it, or drop the row"):
        small.train(run, stage, "--max_length=12")


def test_a_stage_that_starts_from_an_unfinished_one_says_so(small: SmallRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1_control starts from stage 0_cold_start, which has not finished in"):
        small.train(RunFolder(tmp_path), "1_control")


def test_a_batch_must_share_evenly_among_processes(small: SmallRun, tmp_path: Path) -> None:
    context = setting_of(small, tmp_path, "1_control", "0_cold_start", world_size=3)

    with pytest.raises(UserError, match="batch is 8, which 3 processes cannot share evenly"):
        build_trainer(load_stage(small.recipes / "1_control.yaml"), context)


def test_a_micro_batch_must_divide_the_batch(small: SmallRun, tmp_path: Path) -> None:
    context = setting_of(small, tmp_path, "1_control", "0_cold_start")

    with pytest.raises(UserError, match=r"update\.micro_batch is 3, which does not divide"):
        build_trainer(load_stage(small.recipes / "1_control.yaml", ["--update.micro_batch=3"]), context)


def test_what_is_recorded_of_an_evaluation_is_what_the_checkpoint_reaches(small: SmallRun) -> None:
    stage = small.stage("1_control")
    line = read_lines(stage.evaluations)[-1]
    model, tokenizer = load_model(stage.final)

    records = evaluate_model(
        model, tokenizer, load_rows(line["set"]), samples=line["samples"], max_tokens=128, greedy=False, seed=0
    )

    scores = [score for record in records for score in record.scores if record.domain == "code" and score is not None]
    assert line["update"] == 6
    assert line["domains"]["code"]["sampled"]["mean"] == pytest.approx(sum(scores) / len(scores))
    assert line["domains"]["code"]["prompts"] == 1


def test_the_final_folder_is_a_model_that_loads_and_nothing_else(small: SmallRun) -> None:
    final = small.stage("1_control").final
    names = {path.name for path in final.iterdir()}

    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not {"training_args.bin", "optimizer.pt", "trainer_state.json"} & names
    assert not final.with_name("final.partial").exists()
    assert AutoTokenizer.from_pretrained(final).chat_template
    assert json.loads((final / "config.json").read_text())["model_type"] == "qwen3"
