"""Callbacks of a stage in training: they write metrics, evaluations and complete checkpoints, and stop it cleanly."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qwq_rl.config.blocks import Evaluate
from qwq_rl.run_folder.checkpoints import drop_old, mark_complete, to_disk
from qwq_rl.run_folder.files import StageFolder, append_line
from qwq_rl.stages.distributed import sharding_of
from qwq_rl.training.clock import Clock

Line = dict[str, Any]
Evaluator = Callable[[Evaluate, int], list[Line]]
"""(what to evaluate, the number of the update) -> lines for evaluations.jsonl."""


class StopRequest:
    """Remembers that SIGINT or SIGTERM asked the trainer to save and stop. A SIGINT after that interrupts as usual."""

    def __init__(self) -> None:
        self.asked: int | None = None

    def listen(self) -> None:
        """Install the handler for both signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def agreed(self) -> bool:
        """Whether any process was asked to stop. All must stop after the same update, or some would wait for others."""
        asked = next((number for number in gather_object([self.asked]) if number is not None), None)
        self.asked = self.asked or asked
        return asked is not None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number


class Recorder(TrainerCallback):
    """Writes the records of one stage and evaluates it. Only the main process writes; all processes evaluate."""

    def __init__(
        self,
        folder: StageFolder,
        kind: str,
        clock: Clock,
        stop: StopRequest,
        samples_per_update: int,
        details: Callable[[Mapping[str, float]], Line],
        evaluate: Evaluate | None,
        evaluator: Evaluator | None,
        keep: int,
    ) -> None:
        self._folder, self._kind, self._clock, self._stop = folder, kind, clock, stop
        self._samples, self._details, self._keep = samples_per_update, details, keep
        self._evaluate, self._evaluator = evaluate, evaluator

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate before the first update, if the recipe says so."""
        if self._evaluate and self._evaluate.at_start and state.global_step == 0:
            self._run_evaluation(0, state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluate when it is due. Save at the last update and when a stop was requested."""
        last = state.global_step >= state.max_steps
        if self._evaluate and (state.global_step % self._evaluate.every == 0 or last):
            self._run_evaluation(state.global_step, state)
        stop = self._stop.agreed()
        control.should_save |= last or stop
        control.should_training_stop |= stop

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line for each update, but none for the summary that the trainer logs at the end."""
        if not state.is_world_process_zero or logs is None or "loss" not in logs:
            return
        # TRL logs None for a figure that does not exist, such as the reward if no response could be judged.
        numbers = {name: float(value) for name, value in logs.items() if value is not None}
        line: Line = {
            "update": state.global_step,
            "stage": self._folder.name,
            "kind": self._kind,
            "time": time.time(),
            "wall_seconds": round(self._clock.wall_seconds(), 3),
            "cpu_seconds": round(self._clock.cpu_seconds(), 3),
            "samples": state.global_step * self._samples,
            "loss": numbers["loss"],
            "learning_rate": numbers.get("learning_rate"),
            "gradient_norm": numbers.get("grad_norm"),
        }
        append_line(self._folder.metrics, line | self._details(numbers))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint complete, then delete older ones; in this order, so that a complete one always exists."""
        if state.is_world_process_zero:
            for path in (self._folder.metrics, self._folder.evaluations):
                if path.exists():
                    to_disk(path)  # these lines must survive a power failure just as the checkpoint does
            progress = {
                "cpu_seconds": self._clock.cpu_seconds(),
                "wall_seconds": self._clock.wall_seconds(),
                "processes": args.world_size,
                "sharding": sharding_of(AcceleratorState()),
            }
            mark_complete(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", progress)
            drop_old(self._folder, self._keep)

    def _run_evaluation(self, update: int, state: TrainerState) -> None:
        """Evaluate in every process; only the main process writes the lines."""
        if self._evaluate is None or self._evaluator is None:
            return
        with self._clock.paused():
            lines = self._evaluator(self._evaluate, update)
            for line in lines if state.is_world_process_zero else ():
                append_line(self._folder.evaluations, {"stage": self._folder.name, **line})
