"""What a stage leaves behind while it trains, step by step, and being asked to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from transformers import TrainerControl, TrainerState

from qwq_rl.config.recipe import Evaluate
from qwq_rl.run_folder.checkpoints import COMPLETE, progress_of, saved
from qwq_rl.run_folder.files import StageFolder, read_lines
from qwq_rl.stages.callbacks import Recorder, StopRequest
from qwq_rl.training.clock import Clock

EVALUATE = Evaluate(every=2, sets=("tiny/tuning",), samples=1)


@pytest.fixture
def folder(tmp_path: Path) -> StageFolder:
    return StageFolder(tmp_path / "0_stage")


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    """With the process's own handlers put back at the end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield StopRequest()
    for number, handler in before.items():
        signal.signal(number, handler)


class Stage:
    """A recorder that is told of updates as a trainer tells it."""

    def __init__(self, folder: StageFolder, stop: StopRequest, evaluate: Evaluate | None = None, keep: int = 1) -> None:
        self.evaluated: list[int] = []
        self.state = TrainerState(max_steps=5, is_world_process_zero=True)
        self.args: Any = SimpleNamespace(output_dir=str(folder.checkpoints), world_size=1)
        self.folder, self.clock = folder, Clock()
        self.recorder = Recorder(
            folder, "sft", self.clock, stop, 16, lambda logs: {"accuracy": logs.get("a")}, evaluate, self.evaluate, keep
        )

    def evaluate(self, evaluate: Evaluate, update: int) -> list[dict[str, Any]]:
        self.evaluated.append(update)
        return [{"update": update, "set": name} for name in evaluate.sets]

    def step(self, update: int) -> TrainerControl:
        self.state.global_step, control = update, TrainerControl()
        self.recorder.on_step_end(self.args, self.state, control)
        return control

    def log(self, update: int, **logs: Any) -> None:
        self.state.global_step = update
        self.recorder.on_log(self.args, self.state, TrainerControl(), logs)

    def save(self, update: int) -> None:
        (self.folder.checkpoints / f"checkpoint-{update}").mkdir(parents=True)
        self.state.global_step = update
        self.recorder.on_save(self.args, self.state, TrainerControl())


def test_an_update_is_one_line(folder: StageFolder, stop: StopRequest) -> None:
    Stage(folder, stop).log(3, loss=1.5, learning_rate=0.1, grad_norm=2.0, a=0.25)

    (line,) = read_lines(folder.metrics)
    measured = {"update": 3, "stage": "0_stage", "kind": "sft", "samples": 48, "loss": 1.5}
    assert line.items() >= {**measured, "learning_rate": 0.1, "gradient_norm": 2.0, "accuracy": 0.25}.items()
    assert set(line) - set(measured) == {
        "time", "wall_seconds", "cpu_seconds", "learning_rate", "gradient_norm", "accuracy",
    }  # fmt: skip


def test_the_closing_summary_of_a_trainer_is_no_update(folder: StageFolder, stop: StopRequest) -> None:
    Stage(folder, stop).log(5, train_loss=1.0, train_runtime=3.0)

    assert not folder.metrics.exists()


def test_a_number_that_there_is_not_is_left_out(folder: StageFolder, stop: StopRequest) -> None:
    Stage(folder, stop).log(1, loss=1.0, a=None)

    assert read_lines(folder.metrics)[0]["accuracy"] is None


def test_only_the_main_process_writes(folder: StageFolder, stop: StopRequest) -> None:
    stage = Stage(folder, stop, EVALUATE)
    stage.state.is_world_process_zero = False

    stage.log(1, loss=1.0)
    stage.step(2)
    stage.save(2)

    assert not folder.metrics.exists()
    assert stage.evaluated == [2]  # all take part: sharded weights are gathered
    assert not folder.evaluations.exists()
    assert not (folder.checkpoints / "checkpoint-2" / COMPLETE).exists()


def test_it_evaluates_when_it_is_due_and_after_the_last_update(folder: StageFolder, stop: StopRequest) -> None:
    stage = Stage(folder, stop, EVALUATE)

    for update in (1, 2, 3, 4, 5):
        stage.step(update)

    assert stage.evaluated == [2, 4, 5]
    assert [(line["update"], line["stage"]) for line in read_lines(folder.evaluations)] == [
        (2, "0_stage"), (4, "0_stage"), (5, "0_stage"),
    ]  # fmt: skip


@pytest.mark.parametrize(("at_start", "resumed_at", "expected"), [(True, 0, [0]), (True, 2, []), (False, 0, [])])
def test_it_evaluates_at_the_start_where_that_is_asked_for(
    folder: StageFolder, stop: StopRequest, at_start: bool, resumed_at: int, expected: list[int]
) -> None:
    stage = Stage(folder, stop, Evaluate(every=2, sets=("tiny/tuning",), samples=1, at_start=at_start))
    stage.state.global_step = resumed_at

    stage.recorder.on_train_begin(stage.args, stage.state, TrainerControl())

    assert stage.evaluated == expected


def test_the_last_update_is_saved_whatever_the_interval(folder: StageFolder, stop: StopRequest) -> None:
    stage = Stage(folder, stop)

    assert [stage.step(update).should_save for update in (1, 2, 3, 4, 5)] == [False] * 4 + [True]


def test_a_checkpoint_is_whole_before_an_older_one_goes(folder: StageFolder, stop: StopRequest) -> None:
    Accelerator(cpu=True)
    stage = Stage(folder, stop, keep=2)
    for update in (1, 2):
        stage.save(update)
    half = folder.checkpoints / "checkpoint-3"
    half.mkdir()

    assert [path.name for path in saved(folder)] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    half.rmdir()
    stage.save(3)

    assert [path.name for path in saved(folder)] == ["checkpoint-2", "checkpoint-3"]
    assert set(progress_of(folder.checkpoints / "checkpoint-3")) == {
        "cpu_seconds",
        "wall_seconds",
        "processes",
        "sharding",
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops_after_the_update(
    folder: StageFolder, stop: StopRequest, number: signal.Signals
) -> None:
    stop.listen()
    stage = Stage(folder, stop)
    before = stage.step(1)

    os.kill(os.getpid(), number)
    after = stage.step(2)

    assert (before.should_save, before.should_training_stop) == (False, False)
    assert (after.should_save, after.should_training_stop) == (True, True)
    assert stop.asked == number


def test_a_second_ctrl_c_does_not_wait(stop: StopRequest) -> None:
    stop.listen()
    os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_sigterm_is_no_more_than_the_first(stop: StopRequest) -> None:
    stop.listen()

    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)

    assert stop.asked == signal.SIGTERM
