"""A stage on two processes learns what it learns on one, however its weights are sharded, and loses none unnoticed."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from stage_runs import SmallRun, differences, rollout_lines
from transformers import AutoModelForCausalLM
from worlds import launched, sharded, start

from qwq_rl.errors import UserError
from qwq_rl.run_folder.checkpoints import COMPLETE, newest_complete, saved, update_of
from qwq_rl.run_folder.files import RunFolder, StageFolder, read_lines
from qwq_rl.stages.distributed import SILENCE

pytestmark = pytest.mark.slow

STAGE = "1_math_code"
# Five prompts for two processes, updates within a round, a reference, groups that are replaced by how others fared.
GRPO = (
    "--rollout.prompts=5",
    "--rollout.refill=2",
    "--update.updates_per_rollout=2",
    "--update.kl=0.001",
    "--checkpoint.every=1",
    "--checkpoint.keep=9",
)
PPO = (
    "--algorithm=ppo",
    "--critic={lr: 0.001, minibatches: 2}",
    "--rollout.prompts=3",
    "--update.updates_per_rollout=2",
    "--update.kl=0.001",
    "--limits.zero_rounds=null",
    "--checkpoint.every=1",
    "--checkpoint.keep=9",
)
# One prompt for two processes: the second has nothing to sample, to value or to learn from.
LONELY = tuple(option.replace("prompts=3", "prompts=1") for option in PPO)
ALGORITHMS = {"grpo": GRPO, "ppo": PPO, "lonely": LONELY}

WORLDS = ["cpu_ddp", *(pytest.param(f"cpu_zero{number}", marks=sharded) for number in (1, 2, 3))]

Trained = Callable[[str, str], StageFolder]


@pytest.fixture(scope="module")
def trained(small: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The stage trained in a world by an algorithm, once; it is to be copied, not touched."""

    @cache
    def train(world: str, algorithm: str) -> StageFolder:
        run = small.beside(tmp_path_factory.mktemp(f"{world}-{algorithm}"), "0_cold_start")
        if world == "one":
            assert small.train(run, STAGE, *ALGORITHMS[algorithm]) == 0
        else:
            launched(small, run, world, STAGE, *ALGORITHMS[algorithm])
        return run.stage(STAGE)

    return train


def samples(stage: StageFolder, update: int) -> list[tuple[Any, ...]]:
    return [
        (line["row"], line["group"], line["sample"], [one["token_ids"] for one in line["segments"]], line["reward"])
        for line in rollout_lines(stage, update)
    ]


def evaluations(stage: StageFolder) -> list[dict[str, Any]]:
    clocks = ("time", "cpu_seconds")
    return [{name: at for name, at in line.items() if name not in clocks} for line in read_lines(stage.evaluations)]


def assert_alike(found: StageFolder, expected: StageFolder, updates: int) -> None:
    """The same samples and rewards; losses, norms and values the same but for rounding."""
    assert samples(found, 1) == samples(expected, 1)
    assert {path.name for path in (found.path / "rollouts").iterdir()} == {
        path.name for path in (expected.path / "rollouts").iterdir()
    }
    assert evaluations(found)[0] == evaluations(expected)[0]
    for one, other in zip(read_lines(found.metrics)[:updates], read_lines(expected.metrics)[:updates], strict=True):
        assert one["groups"] == other["groups"]
        for name in ("loss", "gradient_norm", "kl", "clipped", "reward", "entropy"):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), (one["update"], name)
        for name, value in other.get("critic", {}).items():
            near = None if value is None else pytest.approx(value, rel=1e-4, abs=1e-6)
            assert one["critic"][name] == near, (one["update"], name)


# --- the same on one process and on two -------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
def test_grpo_on_two_processes_is_grpo_on_one(trained: Trained, world: str) -> None:
    assert_alike(trained(world, "grpo"), trained("one", "grpo"), updates=4)


@pytest.mark.parametrize(
    ("world", "options"),
    [
        ("cpu_ddp", "lonely"),
        pytest.param("cpu_zero2", "ppo", marks=sharded),
        pytest.param("cpu_zero3", "lonely", marks=sharded),
    ],
)
def test_ppo_on_two_processes_is_ppo_on_one(trained: Trained, world: str, options: str) -> None:
    assert_alike(trained(world, options), trained("one", options), updates=4)


@sharded
def test_supervised_stages_under_zero3_learn_what_one_process_learns_and_a_reward_model_judges_alike(
    small: SmallRun, tmp_path: Path
) -> None:
    one, two = (small.beside(tmp_path / name, "0_cold_start") for name in ("one", "two"))
    general = "--model.from=0_cold_start"

    for stage, options in (("1_control", ()), ("2_reward_model", ()), ("2_general", (general,))):
        assert small.train(one, stage, *options) == 0
        launched(small, two, "cpu_zero3", stage, *options)

        names = ("loss", "gradient_norm") if stage != "2_general" else ("reward", "loss", "gradient_norm")
        for line, other in zip(*(read_lines(run.stage(stage).metrics) for run in (two, one)), strict=True):
            for name in names:
                assert line[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), (stage, line["update"], name)


@pytest.mark.parametrize("world", WORLDS)
def test_the_result_is_one_folder_with_the_weights_that_one_process_learns(trained: Trained, world: str) -> None:
    found, expected = (
        AutoModelForCausalLM.from_pretrained(trained(where, "grpo").final).state_dict() for where in (world, "one")
    )

    assert found.keys() == expected.keys()
    # Adam's first steps are as large for a gradient that is nothing but rounding as for any other.
    far = [float((found[name] - expected[name]).abs().max()) for name in expected]
    near = [float((found[name] - expected[name]).abs().mean()) for name in expected]
    assert max(far) < 4.1e-3
    assert max(near) < 1e-4


def test_the_mark_of_a_checkpoint_says_which_world_wrote_it(trained: Trained) -> None:
    for path in saved(trained("cpu_ddp", "grpo")):
        said = (path / COMPLETE).read_text()
        assert '"processes": 2' in said
        assert '"sharding": "copies"' in said
        assert {"rounds-0.pt", "rounds-1.pt"} <= {file.name for file in path.iterdir()}


def test_what_stops_a_stage_stops_all_processes_alike(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "0_cold_start")

    # Cut off after two tokens, nothing is ever right.
    process = start(small, run, "cpu_ddp", STAGE, *GRPO, "--rollout.max_tokens=2", "--limits.zero_rounds=1")
    said = process.communicate(timeout=600)[0]

    assert process.returncode != 0
    assert said.count("update 1: every reward has been 0 since the stage began") == 2, said[-3000:]
    assert said.count("20 of 20 were cut off at rollout.max_tokens") == 2, said[-3000:]
    assert len(rollout_lines(run.stage(STAGE), 1)) == 20


# --- going on ---------------------------------------------------------------------------------------------------------


def as_killed_after(whole: StageFolder, run: RunFolder, update: int) -> StageFolder:
    """A copy of a finished stage as it is when all is killed some time after the checkpoint of `update`."""
    shutil.copytree(whole.path, run.stage(STAGE).path)
    stage = run.stage(STAGE)
    stage.done.unlink()
    shutil.rmtree(stage.final)
    for checkpoint in saved(stage):
        if update_of(checkpoint) > update:
            (checkpoint / COMPLETE).unlink()
    return stage


@sharded
@pytest.mark.parametrize(("world", "algorithm", "update"), [("cpu_zero2", "ppo", 3), ("cpu_zero3", "grpo", 3)])
def test_a_sharded_stage_goes_on_as_if_never_killed(
    small: SmallRun, trained: Trained, tmp_path: Path, world: str, algorithm: str, update: int
) -> None:
    whole, run = trained(world, algorithm), small.beside(tmp_path, "0_cold_start")
    stage = as_killed_after(whole, run, update)

    launched(small, run, world, STAGE, *ALGORITHMS[algorithm])

    assert list(differences(whole, stage)) == []


def test_copies_go_on_with_another_number_of_processes_after_a_round(
    small: SmallRun, trained: Trained, tmp_path: Path
) -> None:
    run = small.beside(tmp_path, "0_cold_start")
    stage = as_killed_after(trained("cpu_ddp", "grpo"), run, update=2)

    assert small.train(run, STAGE, *GRPO) == 0

    assert_alike(stage, trained("one", "grpo"), updates=4)


def test_copies_do_not_within_a_round(small: SmallRun, trained: Trained, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "0_cold_start")
    as_killed_after(trained("cpu_ddp", "grpo"), run, update=3)

    with pytest.raises(UserError, match="saved by 2 processes in the middle of a round, and 1 cannot go on with it"):
        small.train(run, STAGE, *GRPO)


@sharded
def test_a_sharded_checkpoint_is_refused_by_another_world(small: SmallRun, trained: Trained, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "0_cold_start")
    as_killed_after(trained("cpu_zero2", "ppo"), run, update=2)

    with pytest.raises(UserError, match="saved by 2 processes with ZeRO-2, and 1 process with whole copies cannot"):
        small.train(run, STAGE, *PPO)


# --- signals and losses -----------------------------------------------------------------------------------------------


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The trainers that a launcher started, by rank."""
    trainers = [child for child in psutil.Process(process.pid).children() if "qwq_rl.train" in child.cmdline()]
    return sorted(trainers, key=lambda child: int(child.environ()["RANK"]))


def wait_for(stage: StageFolder, update: int, process: subprocess.Popen[str]) -> None:
    while len(read_lines(stage.metrics)) < update and process.poll() is None:
        time.sleep(0.005)


@pytest.fixture
def long(small: SmallRun, tmp_path: Path) -> Iterator[tuple[RunFolder, StageFolder, subprocess.Popen[str]]]:
    """A stage on two processes that is past its third update and far from its last."""
    run = small.beside(tmp_path, "0_cold_start")
    options = (*GRPO[:-2], "--steps=400", "--evaluate.every=400", "--checkpoint.every=2")
    process = start(small, run, "cpu_ddp", STAGE, *options)
    wait_for(run.stage(STAGE), 3, process)
    yield run, run.stage(STAGE), process
    for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
        child.kill()
    process.kill()


def test_a_lost_process_ends_the_stage_with_its_name(
    long: tuple[RunFolder, StageFolder, subprocess.Popen[str]],
) -> None:
    _, stage, process = long
    lost = ranks_of(process)[1]
    struck = time.monotonic()

    lost.kill()
    said = process.communicate(timeout=SILENCE + 30)[0]

    assert time.monotonic() - struck < 40  # the launcher gives 30 s to those that are left
    assert f"error: process 1 (pid {lost.pid} on " in said, said[-3000:]
    assert process.returncode != 0
    assert newest_complete(stage) is not None


def test_a_stopped_process_ends_the_stage_with_its_name(
    long: tuple[RunFolder, StageFolder, subprocess.Popen[str]],
) -> None:
    _, _, process = long
    stopped = ranks_of(process)[1]

    stopped.suspend()
    said = process.communicate(timeout=SILENCE + 240)[0]

    assert f"error: process 1 (pid {stopped.pid} on " in said, said[-3000:]
    assert "has given no sign of life" in said
    assert process.returncode != 0


def test_a_signal_to_one_process_stops_all_after_the_same_update(
    long: tuple[RunFolder, StageFolder, subprocess.Popen[str]],
) -> None:
    _, stage, process = long

    ranks_of(process)[1].send_signal(signal.SIGTERM)
    said = process.communicate(timeout=300)[0]

    assert said.count(f"{STAGE} stopped at update") == 2, said[-3000:]
    last = newest_complete(stage)
    assert last is not None
    assert update_of(last) == len(read_lines(stage.metrics)) < 400
