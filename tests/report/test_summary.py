"""A run's summary from the files of its folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conforms import conforms
from run_files import write_evaluation, write_run

from qwq_rl.report.summary import summarise, summarise_seeds
from qwq_rl.run_folder import schema
from qwq_rl.run_folder.files import RunFolder, read_json, write_json

WEAK, STRONG = [[1.0, 0.0], [0.0, 0.0]] * 6, [[1.0, 1.0], [1.0, 0.0]] * 6
CONTROL = [[1.0, 0.0]] * 12


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path, {"0_cold_start": WEAK, "1_math_code": STRONG, "1_control": CONTROL})


def test_every_finished_stage_has_its_figures_and_its_cost(run: Path) -> None:
    found = summarise(run)
    assert conforms(found, schema.Summary) == []
    assert (found["run"], found["seed"], found["release"]) == ("tiny", 0, "1_math_code")
    assert list(found["stages"]) == ["0_cold_start", "1_math_code", "1_control"]
    stage = found["stages"]["1_math_code"]
    assert (stage["updates"], stage["cpu_seconds"], stage["wall_seconds"]) == (10, 21.0, 30.0)
    score = stage["sets"]["tiny/final"]["domains"]["math"]
    assert (score["sampled"]["mean"], score["greedy"]["mean"], score["prompts"]) == (0.75, 1.0, 12)
    assert set(stage["sets"]["tiny/final"]["families"]) == {"math/chain", "math/story"}


def test_a_stage_is_compared_with_the_one_it_continues_from(run: Path) -> None:
    stages = summarise(run)["stages"]
    against = stages["1_math_code"]["against"]
    found = against["sets"]["tiny/final"]["domains"]["math"]
    assert against["stage"] == "0_cold_start"
    assert found["difference"]["mean"] == 0.5
    assert found["prompts"] == 12
    assert found["lower95"] > found["difference"]["low"]
    assert "against" not in stages["0_cold_start"]


def test_the_control_is_subtracted_from_what_it_controls(run: Path) -> None:
    control = summarise(run)["control"]
    assert (control["stage"], control["of"], control["cpu_seconds"]) == ("1_control", "1_math_code", [22.0, 21.0])
    assert control["sets"]["tiny/final"]["domains"]["math"]["difference"]["mean"] == 0.25


def test_a_control_that_is_not_done_is_no_control(tmp_path: Path) -> None:
    assert summarise(write_run(tmp_path, {"0_cold_start": WEAK, "1_math_code": STRONG}))["control"] is None


def test_overlapping_processes_count_their_wall_time_once(run: Path) -> None:
    assert summarise(run)["seconds"] == {"wall": 35.0, "cpu": 24.0}


def test_an_evaluation_of_an_earlier_update_is_left_out(run: Path) -> None:
    write_evaluation(RunFolder(run), "1_math_code", STRONG, update=9)
    stage = summarise(run)["stages"]["1_math_code"]
    assert stage["sets"] == {}
    assert stage["against"]["sets"] == {}


def test_the_agreement_is_that_of_the_released_stage(run: Path) -> None:
    path = RunFolder(run).evaluation("1_math_code", "tiny/final")
    agreement = {"reward_model_pairs": 0.9, "reward_model_auc": 0.8, "pairs": 20, "prompts": 10}
    write_json(path, (read_json(path) or {}) | {"agreement": agreement})
    assert summarise(run)["agreement"] == agreement


def test_a_stage_trained_alone_is_summarised_without_a_pipeline(run: Path) -> None:
    RunFolder(run).state.unlink()
    found = summarise(run)
    assert list(found["stages"]) == ["0_cold_start", "1_control", "1_math_code"]
    assert (found["seed"], found["release"], found["seconds"]["wall"]) == (0, None, 90.0)


def test_an_empty_run_has_an_empty_summary(tmp_path: Path) -> None:
    assert summarise(tmp_path)["stages"] == {}


def test_seeds_become_mean_and_range_and_a_collapsed_seed_stays_visible(run: Path) -> None:
    seeds = [run.parent / "tiny3" / f"seed-{seed}" for seed in (0, 1)]
    for seed in seeds:
        shutil.copytree(run, seed)
    write_evaluation(RunFolder(seeds[1]), "0_cold_start", STRONG)
    RunFolder(seeds[1]).stage("1_math_code").done.unlink()
    found = summarise_seeds(seeds)
    start = found["stages"]["0_cold_start"]["sets"]["tiny/final"]["domains"]["math"]
    trained = found["stages"]["1_math_code"]
    assert found["runs"] == ["tiny3-seed-0", "tiny3-seed-1"]
    assert start["sampled"] == {"mean": 0.5, "least": 0.25, "most": 0.75, "values": [0.25, 0.75]}
    assert start["prompts"]["values"] == [12, 12]
    assert trained["sets"]["tiny/final"]["domains"]["math"]["sampled"]["values"] == [0.75, None]
    assert trained["against"]["stage"] == "0_cold_start"
