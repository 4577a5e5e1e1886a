"""Run the stages of one run folder, each as a process, in the order in which they need one another.

What is finished is not done again, so the same command goes on after any interruption. Only the files in the folder
(`done.json`, evaluations) decide what is finished, never what an earlier start had planned.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import yaml

from qwq_rl.errors import GateFailed, RecipeError, RunStateError, UserError
from qwq_rl.pipeline.changed_recipe import refuse_edited, set_aside
from qwq_rl.pipeline.plan import PipelinePlan
from qwq_rl.pipeline.processes import (
    GRACE_SECONDS,
    Process,
    ProcessEnd,
    StageProcess,
    accelerate_command,
    explain_failure,
    reported_status,
)
from qwq_rl.pipeline.state import GateResult, Record, Results
from qwq_rl.pipeline.terminal import Board, StageView, StageWatch
from qwq_rl.run_folder.files import RunFolder
from qwq_rl.run_folder.locks import hold, holder, refusal

POLL_SECONDS = 0.1
"""Seconds between two looks at the processes."""
SHOW_SECONDS = 0.5
"""Seconds between two redraws of the terminal."""
ACCELERATE = "accelerate.yaml"


K = TypeVar("K")


_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StageFailed(UserError):
    """A process of the run failed. The message has the last lines of its output and the path of its log."""

    exit_status = 1


class Interrupted(UserError):
    """The run was stopped by a signal. The exit status is 128 plus the number of the signal."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + number


@dataclass(frozen=True)
class StartCommands:
    """How processes are started: the words before the arguments of a trainer, and before those of an evaluation."""

    train: Sequence[str]
    evaluate: Sequence[str]
    processes: int = 1
    """The number of processes of a trainer; it refuses to run with fewer."""
    launched: bool = True
    """Whether `train` starts a launcher whose children do the training."""

    @staticmethod
    def of_recipe(folder: Path) -> StartCommands:
        """Start the trainer by `accelerate launch` with the recipe's `accelerate.yaml`, or without that file directly.

        For one process a launcher does nothing, and its imports take seconds at every stage.
        """
        config = folder / ACCELERATE
        evaluate = (sys.executable, "-m", "qwq_rl.evals.evaluate")
        if not config.exists():
            return StartCommands((sys.executable, "-m", "qwq_rl.train"), evaluate, launched=False)
        try:
            settings = yaml.safe_load(config.read_text())
            processes = int(settings["num_processes"])
        except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            raise RecipeError(
                f"{config}: `num_processes: N` must be there, as `accelerate config` writes it"
            ) from error
        return StartCommands((*accelerate_command(config), "-m", "qwq_rl.train"), evaluate, processes)


class StopSignals:
    """Inside the `with` block, Ctrl-C, SIGTERM and a closed terminal only set `number` (0: none yet) and `count`.

    A signal that the caller of the program ignored (nohup, a background job of a shell) stays ignored.
    """

    def __init__(self) -> None:
        self.number = 0
        self.count = 0
        self._old_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in _STOP_SIGNALS:
            handler = signal.getsignal(number)
            if handler is not signal.SIG_IGN:
                self._old_handlers[number] = handler
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        # The first signal decides the exit status.
        self.number = self.number or number
        self.count += 1


def run_stages(
    plan: PipelinePlan, folder: RunFolder, programs: StartCommands, board: Board, restart: str | None = None
) -> None:
    """Train and evaluate every stage of `plan` in `folder`; `restart` names a stage whose results are set aside first.

    Raises RunStateError if the folder is in use or the recipe of a trained stage was edited; GateFailed, StageFailed,
    Interrupted.
    """
    with hold(folder.lock, f"`qwq-rl run` in {folder.path}"):
        # A trainer may outlive a killed `qwq-rl run`: find it now, before any of its files is moved.
        for name in plan.names:
            owner = holder(folder.stage(name).lock)
            if owner is not None:
                raise RunStateError(refusal(folder.stage(name).lock, owner))
        seed = plan.stages[plan.names[0]].seed
        record = Record(folder, str(plan.folder), seed, plan.pipeline.release, plan.names)
        if restart is not None:
            set_aside(plan, folder, record, restart, board)
        refuse_edited(plan, folder, record)
        with StopSignals() as stop:
            _Runner(plan, folder, programs, board, record, stop).run()
        record.set_restart(None)


class _Runner:
    """The scheduler: the living processes, and the choice of what to start next."""

    def __init__(
        self,
        plan: PipelinePlan,
        folder: RunFolder,
        programs: StartCommands,
        board: Board,
        record: Record,
        stop: StopSignals,
    ) -> None:
        self.plan, self.folder, self.programs = plan, folder, programs
        self.board, self.record, self.stop = board, record, stop
        self.results = Results(plan, folder, record)
        self.training: dict[str, Process] = {}
        self.evaluating: dict[tuple[str, tuple[str, ...]], Process] = {}
        self.watches: dict[str, StageWatch] = {}
        self.failure: UserError | None = None
        self.told_to_stop = False
        self.next_show = 0.0

    def run(self) -> None:
        """Start all that can be started, and again whenever a process has ended, until nothing is left to do."""
        try:
            self.start_what_can()
            while self.training or self.evaluating:
                self.show()
                time.sleep(POLL_SECONDS)
                if self.collect():
                    self.start_what_can()
                self.pass_on_stop()
        finally:
            self.end_all()
        if self.failure is not None:
            raise self.failure
        if self.stop.number:
            saved = "killed; what was saved before" if self.stop.count > 1 else "stopped; what was trained so far"
            raise Interrupted(f"{saved} is kept: the same command goes on from there", self.stop.number)
        assert all(self.record.stage(name)["status"] == "done" for name in self.plan.names)

    # What to do next

    def start_what_can(self) -> None:
        """Settle the gates of trained stages, then fill the free places, the most urgent work first."""
        # Gates first: a stage that passes them makes others ready.
        for name in self.waiting():
            if not self.stopping() and self.results.done(name) and not self.results.missing_gate_sets(name):
                self.settle(name)
        while not self.stopping() and self.free() > 0 and self.start_one():
            pass

    def waiting(self) -> list[str]:
        return [name for name in self.plan.names if self.record.stage(name)["status"] == "waiting"]

    def free(self) -> int:
        return self.plan.pipeline.parallel - len(self.training) - len(self.evaluating)

    def start_one(self) -> bool:
        """Start one process: an evaluation for a gate, else a stage, else a final evaluation. False if none is left."""
        for name in self.waiting():
            sets = self.not_running(name, self.results.missing_gate_sets(name))
            if sets:
                self.start_evaluation(name, sets)
                return True
        ready = [name for name in self.waiting() if not self.results.done(name) and self.results.all_need_done(name)]
        if ready:
            self.start_stage(max(ready, key=self.plan.urgency))
            return True
        return self.start_final_evaluation()

    def start_final_evaluation(self) -> bool:
        """Start the evaluation of a finished stage on all its missing sets in one process. False if nothing is missing.

        For the last stage each set gets its own process: no stage waits for a place any more.
        """
        unfinished = [name for name in self.plan.names if self.record.stage(name)["status"] != "done"]
        finished = [name for name in self.plan.names if name not in unfinished]
        missing = {name: self.not_running(name, self.results.missing_final_sets(name)) for name in finished}
        incomplete = [name for name in finished if missing[name]]
        if incomplete:
            name, is_last = incomplete[0], not unfinished and len(incomplete) == 1
            self.start_evaluation(name, missing[name][:1] if is_last else missing[name])
        return bool(incomplete)

    def not_running(self, name: str, sets: Sequence[str]) -> tuple[str, ...]:
        running = {data_set for stage, evaluated in self.evaluating for data_set in evaluated if stage == name}
        return tuple(data_set for data_set in sets if data_set not in running)

    # Gates

    def settle(self, name: str) -> None:
        """Judge the gates of a trained stage: it is done, is trained longer, or fails."""
        done = self.results.done(name)
        assert done is not None
        gates = self.results.judge_gates(name)
        self.record.trained(name, done)
        self.record.judged(name, gates)
        failed = [gate for gate in gates if not gate.passed]
        if failed:
            self.lengthen_or_fail(name, failed)
            return
        self.record.update(name, status="done", finished=self.record.stage(name)["finished"] or time.time())
        passed = f", {len(gates)} gate measures passed" if gates else ""
        self.board.say(f"✓ {name}: {done['update']} updates, {done['cpu_seconds']:.0f} s CPU{passed}")

    def lengthen_or_fail(self, name: str, failed: Sequence[GateResult]) -> None:
        """Train a stage longer that did not pass its gates, or end the run with a message on what can be done."""
        extension, times = self.plan.extension(name), self.record.stage(name)["extended"]
        details = "".join(f"\n  {gate.describe()}" for gate in failed)
        if extension is not None and times < extension.times:
            self.record.update(name, extended=times + 1)
            count = f"extension {times + 1} of at most {extension.times}"
            self.board.say(
                f"{name} falls short of its gate:{details}\n  training {extension.steps} steps longer, {count}"
            )
            return
        self.record.update(name, status="failed", finished=time.time())
        after_extensions = f" after {times} extensions" if times else ""
        self.failure = GateFailed(
            f"{self.folder.path}: {name} fails its gate{after_extensions}:{details}\n"
            "A stage that starts from it would not learn. Change how it is trained"
            f" ({self.plan.folder / name}.yaml) and run again with `--from {name}`, try another seed (`--seeds`),"
            f" or change the gate ({self.plan.folder / 'pipeline.yaml'})."
        )

    # Processes

    def start_stage(self, name: str) -> None:
        """Start the trainer of a stage, which goes on from its newest checkpoint if there is one."""
        entry, folder = self.record.stage(name), self.folder.stage(name)
        arguments = self.plan.train_arguments(name, self.folder.path, entry["extended"])
        started = entry["started"] or time.time()
        self.record.update(name, status="running", started=started, finished=None, attempts=entry["attempts"] + 1)
        processes = {"QWQ_RL_PROCESSES": str(self.programs.processes)}
        command = [*self.programs.train, *arguments]
        job = StageProcess(f"train {name}", command, folder.log, self.programs.launched, processes)
        self.training[name] = Process(job)
        self.watches[name] = StageWatch(folder, self.plan.extended(name, entry["extended"]).steps)

    def start_evaluation(self, name: str, sets: tuple[str, ...]) -> None:
        """Start the evaluation of a stage's final checkpoint on `sets`, sampled and greedy."""
        settings = self.plan.pipeline.evaluate
        arguments = ["--run", str(self.folder.path), "--stage", name, "--sets", ",".join(sets), "--greedy"]
        arguments += ["--samples", str(settings.samples), "--max-tokens", str(settings.max_tokens)]
        log = self.folder.evaluation(name, sets[0]).with_suffix(".log")
        job = StageProcess(f"evaluate {name}", [*self.programs.evaluate, *arguments], log, launched=False)
        self.evaluating[name, sets] = Process(job)

    def collect(self) -> bool:
        """Record the processes that have ended. Returns whether there were any."""
        ended_training = _take_ended(self.training)
        for name, ended in ended_training.items():
            del self.watches[name]
            self.record.add_job(ended)
            # Waiting for its gates: only `settle` may call the stage done.
            self.record.update(name, status="waiting")
            self.check_trained(name, ended)
        ended_evaluating = _take_ended(self.evaluating)
        for (name, sets), ended in ended_evaluating.items():
            self.record.add_job(ended)
            self.check_evaluated(name, sets, ended)
        return bool(ended_training or ended_evaluating)

    def check_trained(self, name: str, ended: ProcessEnd) -> None:
        if self.stopping() or (ended.status == 0 and self.results.done(name) is not None):
            return
        self.record.update(name, status="failed", finished=ended.finished)
        self.fail(ended, f"{ended.job.name} ended without finishing the stage")

    def check_evaluated(self, name: str, sets: Sequence[str], ended: ProcessEnd) -> None:
        missing = [data_set for data_set in sets if self.results.evaluation(name, data_set) is None]
        if not self.stopping() and (ended.status != 0 or missing):
            self.fail(ended, f"{ended.job.name} ended without writing its results on {', '.join(missing)}")

    def fail(self, ended: ProcessEnd, silent: str) -> None:
        """Keep the reason why the run cannot go on. The exit status is the trainer's own if it has a meaning for us."""
        if ended.status == 0:
            self.failure = StageFailed(f"{silent}; its log: {ended.job.log}")
            return
        self.failure = StageFailed(explain_failure(ended))
        status = reported_status(ended.job.log, ended.log_offset)
        if status in (RunStateError.exit_status, UserError.exit_status, GateFailed.exit_status):
            self.failure.exit_status = status

    def stopping(self) -> bool:
        return self.failure is not None or self.stop.number != 0

    def pass_on_stop(self) -> None:
        """After a failure or a signal, ask every process to save and stop. After a second signal, kill them."""
        if not self.stopping():
            return
        processes = [*self.training.values(), *self.evaluating.values()]
        if processes and not self.told_to_stop:
            self.told_to_stop = True
            why = "stopping because of a failure" if self.failure else "stopping"
            self.board.say(f"{why}: waiting for {len(processes)} processes to save; Ctrl-C once more kills them")
        # At every look again: a launcher may have started more processes since. `interrupt` signals each only once.
        for process in processes:
            if self.stop.count > 1:
                process.kill()
            else:
                process.interrupt()

    def end_all(self) -> None:
        """Stop all processes that still run, which happens only if an error of our own ends `run`."""
        deadline = time.monotonic() + GRACE_SECONDS
        while self.training or self.evaluating:
            for process in (*self.training.values(), *self.evaluating.values()):
                process.interrupt() if time.monotonic() < deadline else process.kill()
            time.sleep(POLL_SECONDS)
            _take_ended(self.training)
            _take_ended(self.evaluating)

    # The terminal

    def show(self) -> None:
        """Redraw the rows, but so seldom that the trainers do not become slower."""
        now = time.time()
        if now < self.next_show:
            return
        self.next_show = now + SHOW_SECONDS
        views = []
        for name in self.plan.names:
            if name in self.training:
                views.append(self.watches[name].view(now - self.training[name].started))
            else:
                entry = self.record.stage(name)
                views.append(StageView(name, entry["status"], seconds=entry["wall_seconds"]))
        others = [
            (f"{process.job.name} on {', '.join(sets)}", now - process.started)
            for (_, sets), process in self.evaluating.items()
        ]
        self.board.show(views, others)


def _take_ended(processes: dict[K, Process]) -> dict[K, ProcessEnd]:
    """Remove the processes that have ended from `processes`, and return how each ended."""
    ended = {key: end for key, process in processes.items() if (end := process.poll()) is not None}
    for key in ended:
        del processes[key]
    return ended
