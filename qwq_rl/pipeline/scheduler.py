"""Run the stages of one run folder, each as a process, in the order in which they need one another.

What is finished is not done again, so that the same command goes on after any interruption: what counts is what lies in
the folder (`done.json`, evaluations), never what an earlier start meant to do.
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
SHOW_SECONDS = 0.5
ACCELERATE = "accelerate.yaml"


K = TypeVar("K")


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StageFailed(UserError):
    """A process of the run failed; the message has its last words and where its log is."""

    exit_status = 1


class Interrupted(UserError):
    """The run was stopped by a signal; 128 and the signal's number is the exit status."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + number


@dataclass(frozen=True)
class StartCommands:
    """How the processes are started: the words before a trainer's own arguments, and before an evaluation's."""

    train: Sequence[str]
    evaluate: Sequence[str]
    processes: int = 1
    """How many processes a trainer has; it refuses to run as fewer."""
    launched: bool = True
    """Whether `train` starts a launcher, whose children train."""

    @staticmethod
    def of_recipe(folder: Path) -> StartCommands:
        """The trainer through `accelerate launch` by the recipe's own `accelerate.yaml`; without one, by itself.

        For one process a launcher does nothing, and takes seconds of importing at every stage.
        """
        own = folder / ACCELERATE
        evaluate = (sys.executable, "-m", "qwq_rl.evals.evaluate")
        if not own.exists():
            return StartCommands((sys.executable, "-m", "qwq_rl.train"), evaluate, launched=False)
        try:
            settings = yaml.safe_load(own.read_text())
            processes = int(settings["num_processes"])
        except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            raise RecipeError(f"{own}: `num_processes: N` must be there, as `accelerate config` writes it") from error
        return StartCommands((*accelerate_command(own), "-m", "qwq_rl.train"), evaluate, processes)


class StopSignals:
    """While it is entered, Ctrl-C, SIGTERM and a closed terminal only set `number` (0: not asked) and `count`.

    A signal that the caller of the program had ignored (nohup, a shell's background job) stays ignored.
    """

    def __init__(self) -> None:
        self.number = 0
        self.count = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.number = self.number or number
        self.count += 1


def run_stages(
    plan: PipelinePlan, folder: RunFolder, programs: StartCommands, board: Board, restart: str | None = None
) -> None:
    """Bring every stage of `plan` and its evaluations to their end in `folder`; `restart` throws a stage away first.

    Raises RunStateError where the folder is in use or a finished stage's recipe was edited, GateFailed, StageFailed,
    Interrupted.
    """
    with hold(folder.lock, f"`qwq-rl run` in {folder.path}"):
        for name in plan.names:
            who = holder(folder.stage(name).lock)
            if who is not None:
                raise RunStateError(refusal(folder.stage(name).lock, who))
        seed = plan.stages[plan.names[0]].seed
        record = Record(folder, str(plan.folder), seed, plan.pipeline.release, plan.names)
        if restart is not None:
            set_aside(plan, folder, record, restart, board)
        refuse_edited(plan, folder, record)
        with StopSignals() as stop:
            _Runner(plan, folder, programs, board, record, stop).run()
        record.set_restart(None)


class _Runner:
    """The scheduler: which processes live, and what is to be done next."""

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
        """Start what can be started whenever something has ended, until nothing is left to do."""
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
        """Settle the gates of trained stages, then fill the free places, the most urgent first."""
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
        """Start the most urgent that can be: an evaluation that a gate waits for, a stage, an evaluation."""
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
        """Evaluate a finished stage on all its sets at once; the sets of the last one are shared out."""
        unfinished = [name for name in self.plan.names if self.record.stage(name)["status"] != "done"]
        finished = [name for name in self.plan.names if name not in unfinished]
        missing = {name: self.not_running(name, self.results.missing_final_sets(name)) for name in finished}
        left = [name for name in finished if missing[name]]
        if left:
            name, last = left[0], not unfinished and len(left) == 1
            self.start_evaluation(name, missing[name][:1] if last else missing[name])
        return bool(left)

    def not_running(self, name: str, sets: Sequence[str]) -> tuple[str, ...]:
        running = {one for stage, evaluated in self.evaluating for one in evaluated if stage == name}
        return tuple(one for one in sets if one not in running)

    # Gates

    def settle(self, name: str) -> None:
        """Let a trained stage pass its gates, lengthen it, or fail."""
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
        """Train a stage longer that fell short of its gate, or give up, saying by how much and what can be done."""
        extension, times = self.plan.extension(name), self.record.stage(name)["extended"]
        words = "".join(f"\n  {gate.describe()}" for gate in failed)
        if extension is not None and times < extension.times:
            self.record.update(name, extended=times + 1)
            which = f"extension {times + 1} of at most {extension.times}"
            self.board.say(
                f"{name} falls short of its gate:{words}\n  training {extension.steps} steps longer, {which}"
            )
            return
        self.record.update(name, status="failed", finished=time.time())
        longer = f" after {times} extensions" if times else ""
        self.failure = GateFailed(
            f"{self.folder.path}: {name} fails its gate{longer}:{words}\n"
            "A stage that starts from it would not learn. Change how it is trained"
            f" ({self.plan.folder / name}.yaml) and run again with `--from {name}`, try another seed (`--seeds`),"
            f" or change the gate ({self.plan.folder / 'pipeline.yaml'})."
        )

    # Processes

    def start_stage(self, name: str) -> None:
        """Train a stage, from its newest checkpoint where there is one."""
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
        """Evaluate a stage's checkpoint on `sets`, sampled and greedy."""
        settings = self.plan.pipeline.evaluate
        arguments = ["--run", str(self.folder.path), "--stage", name, "--sets", ",".join(sets), "--greedy"]
        arguments += ["--samples", str(settings.samples), "--max-tokens", str(settings.max_tokens)]
        log = self.folder.evaluation(name, sets[0]).with_suffix(".log")
        job = StageProcess(f"evaluate {name}", [*self.programs.evaluate, *arguments], log, launched=False)
        self.evaluating[name, sets] = Process(job)

    def collect(self) -> bool:
        """Take up what has ended; whether anything has."""
        ended_training = _take_ended(self.training)
        for name, ended in ended_training.items():
            del self.watches[name]
            self.record.add_job(ended)
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
        missing = [one for one in sets if self.results.evaluation(name, one) is None]
        if not self.stopping() and (ended.status != 0 or missing):
            self.fail(ended, f"{ended.job.name} ended without writing its results on {', '.join(missing)}")

    def fail(self, ended: ProcessEnd, silent: str) -> None:
        """Remember why the run cannot go on. The exit status is the trainer's own where it is one of ours."""
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
        """Once asked to stop, ask every process to save and stop; asked a second time, kill them."""
        if not self.stopping():
            return
        processes = [*self.training.values(), *self.evaluating.values()]
        if processes and not self.told_to_stop:
            self.told_to_stop = True
            why = "stopping because of a failure" if self.failure else "stopping"
            self.board.say(f"{why}: waiting for {len(processes)} processes to save; Ctrl-C once more kills them")
        for process in processes:
            if self.stop.count > 1:
                process.kill()
            else:
                process.interrupt()

    def end_all(self) -> None:
        """Where an error of our own ends the run: leave no process behind."""
        deadline = time.monotonic() + GRACE_SECONDS
        while self.training or self.evaluating:
            for process in (*self.training.values(), *self.evaluating.values()):
                process.interrupt() if time.monotonic() < deadline else process.kill()
            time.sleep(POLL_SECONDS)
            _take_ended(self.training)
            _take_ended(self.evaluating)

    # The terminal

    def show(self) -> None:
        """Redraw the board, seldom enough to cost the trainers nothing."""
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
        others = [(f"{p.job.name} on {', '.join(sets)}", now - p.started) for (_, sets), p in self.evaluating.items()]
        self.board.show(views, others)


def _take_ended(processes: dict[K, Process]) -> dict[K, ProcessEnd]:
    """Remove the processes that have ended, and return how they did."""
    ended = {key: end for key, process in processes.items() if (end := process.poll()) is not None}
    for key in ended:
        del processes[key]
    return ended
