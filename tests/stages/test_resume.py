"""A stage that was interrupted anywhere ends as one that never was: same metrics, rollouts and weights, to the bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import psutil
import pytest
from stage_runs import SmallRun, differences

from qwq_rl.errors import RunStateError
from qwq_rl.run_folder.checkpoints import COMPLETE, saved, update_of
from qwq_rl.run_folder.files import RunFolder, StageFolder, read_json, read_lines

NEEDED = {
    "0_cold_start": (),
    "1_control": ("0_cold_start",),
    "1_math_code": ("0_cold_start",),
    "2_reward_model": ("0_cold_start",),
    "2_general": ("1_math_code", "2_reward_model"),
}
# Checkpoints within a round of rollouts, which two updates share.
MID_ROUND = ("--steps=5", "--update.updates_per_rollout=2", "--checkpoint.every=1", "--checkpoint.keep=9")
TWO_PASSES = ("--steps=7", "--update.updates_per_rollout=2", "--update.epochs=2", "--checkpoint.every=3")


Finished = Callable[[str, Sequence[str]], StageFolder]


def begin(small: SmallRun, path: Path, stage: str) -> tuple[RunFolder, StageFolder]:
    run = small.beside(path, *NEEDED[stage])
    return run, run.stage(stage)


@pytest.fixture(scope="module")
def finished(small: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A stage that was trained with these options in one go; it is to be copied, not touched."""

    @cache
    def train(stage: str, options: tuple[str, ...]) -> StageFolder:
        if not options:
            return small.stage(stage)
        run, folder = begin(small, tmp_path_factory.mktemp("whole"), stage)
        assert small.train(run, stage, *options) == 0
        return folder

    return lambda stage, options: train(stage, tuple(options))


def copied(whole: StageFolder, run: RunFolder) -> StageFolder:
    shutil.copytree(whole.path, run.stage(whole.name).path)
    return run.stage(whole.name)


def as_killed_after(stage: StageFolder, update: int) -> None:
    """Turn a finished stage into one that was killed at some time after the checkpoint of `update`."""
    stage.done.unlink()
    shutil.rmtree(stage.final)
    for checkpoint in saved(stage):
        if update_of(checkpoint) > update:
            (checkpoint / COMPLETE).unlink()  # as a kill in the middle of saving leaves it
            (checkpoint / "optimizer.pt").unlink()
    with stage.metrics.open("a") as file:
        file.write('{"update": 99, "lo')


# --- killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "after", "options"),
    [
        ("1_control", 0, ()),
        ("1_control", 4, ()),
        ("1_math_code", 2, ()),
        ("1_math_code", 3, MID_ROUND),
        pytest.param("1_math_code", 4, MID_ROUND, marks=pytest.mark.slow),
        ("1_math_code", 3, TWO_PASSES),
        pytest.param("1_math_code", 6, TWO_PASSES, marks=pytest.mark.slow),
        ("2_reward_model", 4, ()),
        ("2_general", 2, ()),
    ],
)
def test_a_stage_goes_on_from_its_newest_whole_checkpoint(
    small: SmallRun, finished: Finished, tmp_path: Path, stage: str, after: int, options: Sequence[str]
) -> None:
    run, _ = begin(small, tmp_path, stage)
    whole = finished(stage, options)
    folder = copied(whole, run)
    as_killed_after(folder, after)

    assert small.train(run, stage, *options) == 0

    assert list(differences(whole, folder)) == []


@pytest.mark.parametrize(("stage", "options"), [("1_control", ()), ("1_math_code", MID_ROUND), ("2_general", ())])
def test_a_stage_killed_before_its_result_was_written_takes_no_further_update(
    small: SmallRun, finished: Finished, tmp_path: Path, stage: str, options: Sequence[str]
) -> None:
    run, _ = begin(small, tmp_path, stage)
    whole = finished(stage, options)
    folder = copied(whole, run)
    folder.done.unlink()
    shutil.rmtree(folder.final)

    assert small.train(run, stage, *options) == 0

    assert list(differences(whole, folder)) == []
    assert (read_json(folder.done) or {})["update"] == (read_json(whole.done) or {})["update"]


def test_the_stage_clock_goes_on_where_the_checkpoint_left_it(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "1_math_code", "0_cold_start")
    folder = run.stage("1_math_code")
    as_killed_after(folder, 2)
    spent = read_json(folder.checkpoints / "checkpoint-2" / COMPLETE) or {}

    small.train(run, "1_math_code")

    lines = read_lines(folder.metrics)
    for clock in ("wall_seconds", "cpu_seconds"):
        times = [line[clock] for line in lines]
        assert times == sorted(times)
        assert times[2] >= spent[clock] > 0


# --- asked to stop ----------------------------------------------------------------------------------------------------


def signal_at(stage: StageFolder, update: int, number: signal.Signals) -> threading.Thread:
    """Send this process a signal when the stage has recorded `update`."""

    def wait() -> None:
        while len(read_lines(stage.metrics)) < update:
            time.sleep(0.005)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("stage", "number", "options"),
    [
        ("1_math_code", signal.SIGINT, TWO_PASSES),
        ("2_reward_model", signal.SIGTERM, ("--steps=9", "--checkpoint.every=9")),
    ],
)
def test_a_stage_that_is_asked_to_stop_saves_and_goes_on_later(
    small: SmallRun,
    finished: Finished,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    number: signal.Signals,
    options: Sequence[str],
) -> None:
    whole = finished(stage, options)
    run, folder = begin(small, tmp_path, stage)
    thread = signal_at(folder, 2, number)

    status = small.train(run, stage, *options)

    thread.join()
    assert status == 128 + number
    assert not folder.done.exists()
    assert update_of(saved(folder)[-1]) == len(read_lines(folder.metrics)) < len(read_lines(whole.metrics))
    assert "saved: the same command goes on" in capsys.readouterr().out
    assert small.train(run, stage, *options) == 0
    assert list(differences(whole, folder)) == []


# --- finished ---------------------------------------------------------------------------------------------------------


def test_a_finished_stage_takes_no_further_step_and_says_so(
    small: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small.beside(tmp_path, "1_math_code", "0_cold_start")
    before = {path: path.read_bytes() for path in run.stage("1_math_code").path.rglob("*") if path.is_file()}

    assert small.train(run, "1_math_code") == 0

    assert "1_math_code is finished already" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before


def test_a_stage_with_more_steps_goes_on_as_if_it_had_been_that_long(
    small: SmallRun, finished: Finished, tmp_path: Path
) -> None:
    run = small.beside(tmp_path, "1_math_code", "0_cold_start")

    assert small.train(run, "1_math_code", "--steps=6") == 0

    assert list(differences(finished("1_math_code", ("--steps=6",)), run.stage("1_math_code"))) == []
    assert (read_json(run.stage("1_math_code").done) or {})["update"] == 6


@pytest.mark.parametrize(
    ("override", "said"),
    [("--update.lr=0.5", "update.lr: 0.001 -> 0.5"), ("--steps=3", "steps: 4 -> 3"), ("--seed=3", "seed: 0 -> 3")],
)
def test_a_finished_stage_refuses_another_recipe(small: SmallRun, tmp_path: Path, override: str, said: str) -> None:
    run = small.beside(tmp_path, "1_math_code", "0_cold_start")

    with pytest.raises(RunStateError, match="finished with another recipe") as refused:
        small.train(run, "1_math_code", override, "--evaluate.every=2", "--checkpoint.every=2")

    assert said in str(refused.value)
    assert run.stage("1_math_code").done.exists()


def test_a_stage_that_is_half_through_refuses_another_recipe(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "1_math_code", "0_cold_start")
    as_killed_after(run.stage("1_math_code"), 2)
    metrics = run.stage("1_math_code").metrics.read_bytes()

    with pytest.raises(RunStateError, match=r"begun with another recipe:\nupdate.lr: 0.001 -> 0.5"):
        small.train(run, "1_math_code", "--update.lr=0.5")

    assert run.stage("1_math_code").metrics.read_bytes() == metrics


def test_a_stage_without_a_checkpoint_may_change_its_recipe(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "2_general", "1_math_code", "2_reward_model")
    folder = run.stage("2_general")
    as_killed_after(folder, 0)
    scale = read_json(folder.path / "preference.json")

    assert small.train(run, "2_general", "--seed=5") == 0

    assert {line["update"] for line in read_lines(folder.metrics)} == {1, 2, 3}
    assert read_json(folder.path / "preference.json") != scale


# --- real kills -------------------------------------------------------------------------------------------------------


def start(small: SmallRun, run: RunFolder, stage: str, options: Sequence[str]) -> subprocess.Popen[str]:
    recipe = small.recipes / f"{stage}.yaml"
    command = [sys.executable, "-m", "qwq_rl.train", str(recipe), "--run", str(run.path), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both(small: SmallRun, tmp_path: Path, root: Path) -> None:
    run, folder = begin(small, tmp_path, "1_control")
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += [f"--config_file={root / 'recipes/accelerate/cpu_ddp.yaml'}", "-m", "qwq_rl.train"]
    options = ["--run", str(run.path), "--steps=400", "--checkpoint.every=400", "--evaluate.every=400"]
    process = subprocess.Popen(
        [*launch, str(small.recipes / "1_control.yaml"), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while len(read_lines(folder.metrics)) < 3 and process.poll() is None:
        time.sleep(0.01)
    ranks = [child for child in psutil.Process(process.pid).children() if "qwq_rl.train" in child.cmdline()]
    last = max(ranks, key=lambda rank: int(rank.environ()["RANK"]))

    last.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]

    assert len(ranks) == 2
    assert said.count("1_control stopped at update") == 2, said
    assert update_of(saved(folder)[-1]) == len(read_lines(folder.metrics)) < 400
    assert (saved(folder)[-1] / COMPLETE).exists()


def strike(process: subprocess.Popen[str], stage: StageFolder, update: int, number: signal.Signals) -> str:
    """Wait until the stage has recorded `update`, send the signal, and return what the process had printed."""
    while len(read_lines(stage.metrics)) < update and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(number)
    return process.communicate(timeout=120)[0]


KILLS = {
    "0_cold_start": ("--steps=60", "--evaluate.every=20", "--checkpoint.every=9"),
    "1_math_code": ("--steps=24", "--evaluate.every=8", "--checkpoint.every=5", "--update.updates_per_rollout=2"),
    "2_reward_model": ("--steps=60", "--checkpoint.every=9"),
    "2_general": ("--steps=16", "--evaluate.every=8", "--checkpoint.every=5"),
}
STEPS = {stage: int(options[0].removeprefix("--steps=")) for stage, options in KILLS.items()}


@pytest.mark.slow
@pytest.mark.parametrize("stage", list(KILLS))
def test_a_process_killed_at_a_random_update_and_started_again_ends_the_same(
    small: SmallRun, finished: Finished, tmp_path: Path, stage: str
) -> None:
    options, steps = KILLS[stage], STEPS[stage]
    whole = finished(stage, options)
    run, folder = begin(small, tmp_path, stage)
    update = random.randrange(1, steps - 1)

    process = start(small, run, stage, options)
    strike(process, folder, update, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, f"killed at {update}"
    again = start(small, run, stage, options)
    said = again.communicate(timeout=300)[0]

    assert again.returncode == 0, said
    assert list(differences(whole, folder)) == [], f"killed at {update}"


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "number"), [("0_cold_start", signal.SIGTERM), ("1_math_code", signal.SIGINT)])
def test_a_process_that_is_asked_to_stop_exits_with_the_signal_and_goes_on(
    small: SmallRun, finished: Finished, tmp_path: Path, stage: str, number: signal.Signals
) -> None:
    options, steps = KILLS[stage], STEPS[stage]
    whole = finished(stage, options)
    run, folder = begin(small, tmp_path, stage)

    process = start(small, run, stage, options)
    said = strike(process, folder, steps // 3, number)
    assert process.returncode == 128 + number, said
    assert f"{stage} stopped at update" in said
    again = start(small, run, stage, options)
    said = again.communicate(timeout=300)[0]

    assert again.returncode == 0, said
    assert list(differences(whole, folder)) == []
