"""Stages in order, gates, kills and resumes: real processes that keep to the trainer's contract and train nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from conforms import conforms
from pipeline_recipes import PIPELINE, SHORT, STAGES, shorten, write_recipe

from qwq_rl.errors import RecipeError
from qwq_rl.pipeline.scheduler import StartCommands
from qwq_rl.run_folder.files import RunFolder, read_json, read_lines
from qwq_rl.run_folder.locks import holder
from qwq_rl.run_folder.schema import PipelineState

PROCESSES = Path(__file__).parent.parent / "processes"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe")


@pytest.fixture
def short_recipe(recipe: Path) -> Path:
    return shorten(recipe)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of the recipe; it is to be read or copied, not touched."""
    folder = tmp_path_factory.mktemp("whole")
    status, output = go(write_recipe(folder / "recipe"), RunFolder(folder / "run"), LITTLE_UPDATE_SECONDS=0.03)
    assert status == 0, output
    return RunFolder(folder / "run")


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """What `finished` copies."""
    folder = tmp_path_factory.mktemp("short")
    status, output = go(shorten(write_recipe(folder / "recipe")), RunFolder(folder / "run"))
    assert status == 0, output
    return RunFolder(folder / "run")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    folder = RunFolder(tmp_path / "run")
    yield folder
    for name in STAGES:  # whatever a failed test left alive
        who = holder(folder.stage(name).lock)
        if who is not None:
            os.kill(who.pid, signal.SIGKILL)


@pytest.fixture
def finished(run: RunFolder, short_run: RunFolder) -> RunFolder:
    """A finished run of the short recipe."""
    shutil.copytree(short_run.path, run.path)
    return run


def start(recipe: Path, run: RunFolder, *arguments: str, **environment: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROCESSES / "run.py"), str(recipe), str(run.path), *arguments],
        env=os.environ | {name: str(value) for name, value in environment.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, output


def go(recipe: Path, run: RunFolder, *arguments: str, **environment: object) -> tuple[int, str]:
    return finish(start(recipe, run, *arguments, **environment))


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def updates(run: RunFolder, name: str) -> list[int]:
    return [line["update"] for line in read_lines(run.stage(name).metrics)]


def processes(run: RunFolder, name: str) -> set[int]:
    return {line["process"] for line in read_lines(run.stage(name).metrics)}


def edit(recipe: Path, name: str, old: str, new: str) -> None:
    path = recipe / f"{name}.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def assert_whole(run: RunFolder, stages: tuple[str, ...] = STAGES) -> None:
    """Every stage is done, every update was made once, and every evaluation is there."""
    state = read_json(run.state)
    assert state is not None
    assert conforms(state, PipelineState) == []
    assert {name: entry["status"] for name, entry in state["stages"].items()} == dict.fromkeys(stages, "done")
    for name in stages:
        assert updates(run, name) == list(range(1, 21))
        assert run.evaluation(name, "tiny/final").exists() == (name != "reward")


def test_every_stage_is_trained_once_and_evaluated(recipe: Path, run: RunFolder, whole_run: RunFolder) -> None:
    assert_whole(whole_run)
    shutil.copytree(whole_run.path, run.path)
    status, output = go(recipe, run)
    assert status == 0, output
    state = read_json(run.state)
    assert state is not None
    assert [entry["attempts"] for entry in state["stages"].values()] == [1] * 5
    assert all(run.evaluation(name, "tiny/harder").exists() for name in STAGES if name != "reward")
    evaluations = [job["name"] for job in state["jobs"] if job["name"].startswith("evaluate")]
    assert set(evaluations) == {f"evaluate {name}" for name in STAGES if name != "reward"}
    assert len(evaluations) <= 8


def test_a_stage_waits_for_what_it_needs_and_independent_ones_overlap(whole_run: RunFolder) -> None:
    state = read_json(whole_run.state)
    assert state is not None
    spans = {name: (entry["started"], entry["finished"]) for name, entry in state["stages"].items()}
    assert all(spans[name][0] >= spans["start"][1] for name in STAGES[1:])
    assert spans["general"][0] >= max(spans["reasoning"][1], spans["reward"][1])
    assert spans["reward"][0] < spans["reasoning"][1]  # beside each other
    assert spans["control"][0] >= min(spans["reward"][1], spans["reasoning"][1])  # nothing waits for the control


@pytest.mark.slow
def test_never_more_processes_than_allowed(recipe: Path, run: RunFolder) -> None:
    (recipe / "pipeline.yaml").write_text(PIPELINE.replace("parallel: 2", "parallel: 1"))
    assert go(recipe, run)[0] == 0
    state = read_json(run.state)
    assert state is not None
    spans = sorted((job["started"], job["finished"]) for job in state["jobs"])
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_a_stage_is_lengthened_until_it_passes_its_gate(short_recipe: Path, run: RunFolder) -> None:
    status, output = go(short_recipe, run, LITTLE_PASSES_AT=40)
    assert "extension 2 of at most 2" in output
    state = read_json(run.state)
    assert state is not None
    assert state["stages"]["start"]["extended"] == 2
    assert state["stages"]["start"]["gates"][0]["passed"] is True
    assert updates(run, "start") == list(range(1, 41))
    assert status == 0
    assert len(processes(run, "start")) == 3


def test_a_gate_that_stays_shut_ends_the_run_and_says_why(short_recipe: Path, run: RunFolder) -> None:
    for _ in range(2):  # the second start says so at once
        status, output = go(short_recipe, run, LITTLE_PASSES_AT=1000)
        assert status == 4
        assert "start fails its gate after 2 extensions" in output
        assert "pass_at_k of math/chain failed: 0.000, must be above 0" in output
        assert "--from start" in output
        assert updates(run, "start") == list(range(1, 41))
        assert updates(run, "reasoning") == []
    state = read_json(run.state)
    assert state is not None
    assert state["stages"]["start"]["status"] == "failed"
    assert state["stages"]["start"]["attempts"] == 3


@pytest.mark.slow
def test_a_gate_on_a_set_that_the_stage_did_not_see_is_evaluated(short_recipe: Path, run: RunFolder) -> None:
    text = (short_recipe / "pipeline.yaml").read_text()
    (short_recipe / "pipeline.yaml").write_text(text.replace("set: tiny/tuning", "set: tiny/other"))
    assert go(short_recipe, run)[0] == 0
    state = read_json(run.state)
    assert state is not None
    assert [job["name"] for job in state["jobs"][:2]] == ["train start", "evaluate start"]
    assert run.evaluation("start", "tiny/other").exists()


def test_an_edited_recipe_shows_the_difference_and_asks(recipe: Path, run: RunFolder, whole_run: RunFolder) -> None:
    shutil.copytree(whole_run.path, run.path)
    edit(recipe, "reasoning", "lr: 1.0e-3", "lr: 2.0e-3")
    status, output = go(recipe, run)
    assert status == 3
    assert "update.lr: 0.001 -> 0.002" in output
    assert "--from reasoning" in output
    status, output = go(recipe, run, "--from", "reasoning")
    assert status == 0, output
    assert_whole(run)
    assert updates(RunFolder(run.path), "reasoning.old-1") == list(range(1, 21))
    assert (run.path / "general.old-1" / "evaluations" / "tiny-final.json").exists()
    assert not (run.path / "start.old-1").exists()
    assert not (run.path / "control.old-1").exists()


def test_a_stage_that_is_not_done_goes_on_under_other_limits(short_recipe: Path, run: RunFolder) -> None:
    process = start(short_recipe, run, LITTLE_UPDATE_SECONDS=0.05)
    wait_until(lambda: len(updates(run, "reasoning")) > 12)
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    edit(short_recipe, "reasoning", "steps: 20", "limits: {fault_share: 0.5}\nsteps: 20")
    status, output = go(short_recipe, run)
    assert status == 0, output
    assert updates(run, "reasoning") == list(range(1, 21))


@pytest.mark.slow
def test_a_restart_that_was_interrupted_goes_on(short_recipe: Path, run: RunFolder) -> None:
    assert go(short_recipe, run)[0] == 0
    process = start(short_recipe, run, "--from", "reasoning", LITTLE_UPDATE_SECONDS=0.05)
    wait_until(lambda: (run.path / "reasoning.old-1").exists() and len(updates(run, "reasoning")) > 12)
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    first = processes(run, "reasoning")
    status, output = go(short_recipe, run, "--from", "reasoning")
    assert status == 0, output
    assert first < processes(run, "reasoning")
    assert_whole(run, SHORT)
    assert not (run.path / "reasoning.old-2").exists()


def test_other_evaluation_settings_evaluate_again_and_train_nothing(short_recipe: Path, finished: RunFolder) -> None:
    trained = processes(finished, "reasoning")
    text = (short_recipe / "pipeline.yaml").read_text()
    (short_recipe / "pipeline.yaml").write_text(text.replace("samples: 8", "samples: 3"))
    assert go(short_recipe, finished)[0] == 0
    found = read_json(finished.evaluation("reasoning", "tiny/final"))
    assert found is not None
    assert found["settings"]["samples"] == 3
    assert processes(finished, "reasoning") == trained


def test_a_result_that_somebody_removed_is_made_again(short_recipe: Path, finished: RunFolder) -> None:
    finished.stage("reasoning").final.rmdir()
    status, output = go(short_recipe, finished)
    assert status == 0, output
    assert finished.stage("reasoning").final.is_dir()
    assert_whole(finished, SHORT)


@pytest.mark.parametrize("name", ["pipeline.json", "start/done.json", "evaluations/start/tiny-final.json"])
def test_a_torn_record_is_named_and_the_run_goes_on_without_it(
    short_recipe: Path, finished: RunFolder, name: str
) -> None:
    torn = finished.path / name
    torn.write_text(torn.read_text()[:40])
    status, output = go(short_recipe, finished)
    assert status == 3
    assert f"{torn}: this file is damaged" in output
    assert "Traceback" not in output
    torn.unlink()
    assert go(short_recipe, finished)[0] == 0
    assert_whole(finished, SHORT)


def test_an_unknown_stage_to_start_from(short_recipe: Path, run: RunFolder) -> None:
    status, output = go(short_recipe, run, "--from", "resoning")
    assert status == 2
    assert "reasoning" in output


def test_ctrl_c_saves_and_the_same_command_goes_on(short_recipe: Path, run: RunFolder) -> None:
    process = start(short_recipe, run, LITTLE_UPDATE_SECONDS=0.05)
    wait_until(lambda: len(updates(run, "start")) > 5)
    process.send_signal(signal.SIGINT)
    status, output = finish(process)
    assert status == 130
    assert "the same command goes on" in output
    assert "Traceback" not in output
    assert "saved and stopped" in run.stage("start").log.read_text()
    assert holder(run.stage("start").lock) is None
    assert 5 < len(updates(run, "start")) < 20
    assert go(short_recipe, run)[0] == 0
    assert len(processes(run, "start")) == 2
    assert_whole(run, SHORT)


@pytest.mark.slow
def test_ctrl_c_twice_kills(short_recipe: Path, run: RunFolder) -> None:
    process = start(short_recipe, run, LITTLE_UPDATE_SECONDS=0.2, LITTLE_STUBBORN=1)
    wait_until(lambda: updates(run, "start"))
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    assert holder(run.stage("start").lock) is None


@pytest.mark.slow
def test_sigterm_stops_as_cleanly(short_recipe: Path, run: RunFolder) -> None:
    process = start(short_recipe, run, LITTLE_UPDATE_SECONDS=0.05)
    wait_until(lambda: len(updates(run, "start")) > 2)
    process.terminate()
    assert finish(process)[0] == 143
    assert "saved and stopped" in run.stage("start").log.read_text()


def test_a_second_start_names_the_first(short_recipe: Path, run: RunFolder) -> None:
    process = start(short_recipe, run, LITTLE_UPDATE_SECONDS=0.1)
    wait_until(lambda: updates(run, "start"))
    status, output = go(short_recipe, run)
    process.kill()
    finish(process)
    assert status == 3
    assert f"is still alive (pid {process.pid}" in output


def test_a_killed_launcher_leaves_a_trainer_that_is_named_and_not_joined(short_recipe: Path, run: RunFolder) -> None:
    process = start(short_recipe, run, LITTLE_UPDATE_SECONDS=0.1)
    wait_until(lambda: len(updates(run, "start")) > 2)
    who = holder(run.stage("start").lock)
    assert who is not None
    process.kill()
    finish(process)
    status, output = go(short_recipe, run)
    assert status == 3
    assert "the trainer of start is still alive" in output
    assert "left by a launcher that died" in output
    stop = re.search(r"`kill (\d+)`", output)
    assert stop is not None
    os.kill(int(stop[1]), signal.SIGTERM)
    wait_until(lambda: holder(run.stage("start").lock) is None)
    assert go(short_recipe, run)[0] == 0
    assert_whole(run, SHORT)


def test_a_killed_trainer_is_reported_and_the_same_command_goes_on(short_recipe: Path, run: RunFolder) -> None:
    process = start(short_recipe, run, LITTLE_UPDATE_SECONDS=0.05)
    wait_until(lambda: len(updates(run, "start")) > 12)
    who = holder(run.stage("start").lock)
    assert who is not None
    os.kill(who.pid, signal.SIGKILL)
    status, output = finish(process)
    assert status == 1
    assert "train start was killed (SIGKILL" in output
    assert go(short_recipe, run)[0] == 0
    assert_whole(run, SHORT)


def test_a_trainer_whose_accelerate_was_killed_is_stopped(short_recipe: Path, run: RunFolder) -> None:
    process = start(short_recipe, run, LITTLE_UPDATE_SECONDS=0.05)
    wait_until(lambda: len(updates(run, "start")) > 2)
    who = holder(run.stage("start").lock)
    assert who is not None
    os.kill(psutil.Process(who.pid).ppid(), signal.SIGKILL)
    assert finish(process)[0] == 1
    assert holder(run.stage("start").lock) is None
    assert "saved and stopped" in run.stage("start").log.read_text()


def test_a_crash_is_one_message_and_the_others_are_stopped(recipe: Path, run: RunFolder) -> None:
    status, output = go(recipe, run, LITTLE_CRASH="reward=the pairs are torn", LITTLE_UPDATE_SECONDS=0.05)
    assert status == 1
    assert "train reward failed (exit status 1)" in output, output
    assert "ValueError: the pairs are torn" in output
    assert "CalledProcessError" not in output
    assert str(run.stage("reward").log) in output
    assert "saved and stopped" in run.stage("reasoning").log.read_text()
    assert go(recipe, run)[0] == 0
    assert_whole(run)


def test_a_full_disk_is_called_one(short_recipe: Path, run: RunFolder) -> None:
    rollouts = run.stage("start").rollouts(10)
    rollouts.parent.mkdir(parents=True)
    rollouts.symlink_to("/dev/full")
    status, output = go(short_recipe, run)
    assert status == 1
    assert "the disk is full" in output


def test_a_recipe_may_say_how_its_stages_are_launched(tmp_path: Path) -> None:
    assert StartCommands.of_recipe(tmp_path).processes == 1
    own = tmp_path / "accelerate.yaml"
    own.write_text("distributed_type: MULTI_GPU\nnum_processes: 4\n")
    programs = StartCommands.of_recipe(tmp_path)
    assert programs.processes == 4
    assert f"--config_file={own}" in programs.train
    own.write_text("distributed_type: [MULTI_GPU")
    with pytest.raises(RecipeError, match=r"accelerate.yaml: `num_processes: N` must be there"):
        StartCommands.of_recipe(tmp_path)


@pytest.mark.slow
def test_the_same_command_finishes_whatever_was_killed(recipe: Path, run: RunFolder) -> None:
    """SIGKILL of launcher, trainer or the whole group, at ever later instants, until a run comes to its end."""
    for attempt in range(12):
        process = start(recipe, run, LITTLE_UPDATE_SECONDS=0.03)
        time.sleep(0.6 + 0.37 * attempt)
        victims = [who for name in STAGES if (who := holder(run.stage(name).lock)) is not None]
        what = attempt % 3
        if what in (0, 2):
            process.kill()
        for who in victims if what in (1, 2) else ():
            os.kill(who.pid, signal.SIGKILL)
        finish(process)
        for name in STAGES:
            orphan = holder(run.stage(name).lock)
            if orphan is not None:
                os.kill(orphan.pid, signal.SIGTERM)
        wait_until(lambda: all(holder(run.stage(name).lock) is None for name in STAGES))
    status, output = go(recipe, run)
    assert status == 0, output
    assert_whole(run)


@pytest.mark.slow
def test_through_accelerate(recipe: Path, run: RunFolder) -> None:
    status, output = go(recipe, run, "--accelerate")
    assert status == 0, output
    assert_whole(run)
    assert "were not passed to `accelerate launch`" not in run.stage("start").log.read_text()
    edit(recipe, "general", "lr: 1.0e-3", "lr: 2.0e-3")
    process = start(recipe, run, "--accelerate", "--from", "general", LITTLE_UPDATE_SECONDS=0.3)
    wait_until(lambda: (run.path / "general.old-1").exists() and updates(run, "general"))
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    assert "saved and stopped" in run.stage("general").log.read_text()
    status, output = go(recipe, run, "--accelerate", LITTLE_CRASH="general=torn")
    assert status == 1
    assert output.count("Traceback") == 1
    assert "ValueError: torn" in output
