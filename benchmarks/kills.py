"""Kill a stage by SIGKILL again and again, go on with the same command each time, and compare with one left alone.

    PYTHONPATH=tests .venv/bin/python benchmarks/kills.py [--kills 20] [--seed 0] [--keep FOLDER]

Two small rl stages (recipes of tests/stage_runs.py): PPO with refills, adaptive sampling and rounds that two updates
share; GRPO with a reward model and a KL term. Launcher, trainer and the whole process group are struck in turn: at a
random instant, while a checkpoint is being written, and after verdicts were written and before they are learned from.
A stage's last kills come between its last save and the mark that it is done, at steps that are chosen: the trainer
stands still there until it is struck (tests/stage_instants.py). A line a kill; exit status 1 where weights, optimisers,
metrics, evaluations, rollouts or rewards are not those of the stage that was left alone, to the bit.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
from stage_instants import BEFORE_THE_MARK, STAND_STILL_AT, hooked
from stage_runs import STAGES, differences, state_differences, write_recipes

from qwq_rl.pipeline.processes import accelerate_command, environment
from qwq_rl.run_folder.checkpoints import damage_of, saved, update_of
from qwq_rl.run_folder.files import RunFolder, StageFolder, read_lines
from qwq_rl.run_folder.locks import LAUNCHER

OFTEN = ("--checkpoint.every=2", "--evaluate.every=8", "--evaluate.samples=1")
STRUCK = {
    "1_math_code": (
        *OFTEN, "--steps=24", "--algorithm=ppo", "--critic={lr: 0.001, minibatches: 2}", "--rollout.refill=2",
        "--rollout.sampling=adaptive", "--update.updates_per_rollout=2", "--checkpoint.every=3",
    ),
    "2_general": (*OFTEN, "--steps=18"),
}  # fmt: skip
"""The stages that are killed, and what is asked of them beside their recipes."""
VICTIMS = ("launcher", "trainer", "group")
LIMIT_S = 600.0
# As typed in a shell: the launcher is the trainer's parent, not a `qwq-rl run` that would see to an orphan itself.
ENVIRONMENT = {name: value for name, value in environment().items() if name != LAUNCHER}
Due = Callable[[], bool]


@dataclass
class Watched:
    """A stage in training: its command, and what it has written."""

    folder: StageFolder
    command: Sequence[str]
    steps: int
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self, stand_still_at: str | None = None) -> None:
        """Start the command in a process group of its own; its trainer stops at an instant, where one is given."""
        more = {STAND_STILL_AT: stand_still_at} | hooked(self.log.parents[1] / "hook") if stand_still_at else {}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=ENVIRONMENT | more, start_new_session=True
            )

    def updates(self) -> int:
        """How many updates are recorded."""
        return len(read_lines(self.folder.metrics))

    def trainer(self) -> psutil.Process | None:
        """The launcher's child that trains, where it is there already."""
        try:
            children = psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return None
        return next(iter(children), None)

    def begun(self) -> bool:
        """Whether the trainer of this very start has the stage's folder: by the lock's text, for asking takes it."""
        trainer = self.trainer()
        return trainer is not None and f'"pid": {trainer.pid},' in _text(self.folder.lock)

    def ended(self) -> bool:
        """Whether the launcher has ended."""
        return self.process.poll() is not None


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def anywhere(stage: Watched, draw: random.Random, goal: int) -> Due:
    """At any time from the start of the processes on."""
    until = time.monotonic() + draw.uniform(0.0, 30.0)
    return lambda: time.monotonic() >= until or (stage.begun() and stage.updates() > goal)


def training(stage: Watched, draw: random.Random, goal: int) -> Due:
    """So many updates on, and then somewhere within one."""
    return _somewhat_after(lambda: stage.begun() and stage.updates() >= goal, draw.uniform(0.0, 0.4))


def saving(stage: Watched, draw: random.Random, goal: int) -> Due:
    """While a checkpoint is there and not yet whole."""
    known = set(saved(stage.folder))

    def now() -> bool:
        fresh = [path for path in saved(stage.folder) if path not in known and update_of(path) > goal]
        return any(damage_of(path) is not None for path in fresh)

    return now


def judged(stage: Watched, draw: random.Random, goal: int) -> Due:
    """Just after verdicts were written down, before the update that learns from them is recorded."""
    verdict_log, sizes = stage.folder.path / "verdicts.jsonl", list[int]()

    def now() -> bool:
        if not stage.begun() or stage.updates() < goal or not verdict_log.exists():
            return False
        sizes.append(verdict_log.stat().st_size)
        return len(sizes) > 1 and sizes[-1] > sizes[-2]

    return now


def standing(stage: Watched) -> bool:
    """Whether the trainer stands still."""
    trainer = stage.trainer()
    try:
        return trainer is not None and trainer.status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


def _somewhat_after(reached: Callable[[], bool], seconds: float) -> Due:
    since: list[float] = []

    def now() -> bool:
        if not since and reached():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() >= since[0] + seconds

    return now


INSTANTS = {"training": training, "saving": saving, "verdicts written": judged, "anywhere": anywhere}


def strike(stage: Watched, victim: str, due: Due, stand_still_at: str | None = None) -> tuple[bool, str]:
    """Start the stage and kill when it is due; whether that came in time, and what was found.

    Raises SystemExit where something of it lives on, or where a living orphan is not named to the next start.
    """
    stage.start(stand_still_at)
    begin = time.monotonic()
    while not due() and not stage.ended():
        time.sleep(0.001)
        if time.monotonic() > begin + LIMIT_S:
            raise SystemExit(f"nothing to strike at in {LIMIT_S:.0f} s: see {stage.log}")
    if stage.ended():
        return False, f"it ended by itself before (exit status {stage.process.returncode})"
    found = f"{time.monotonic() - begin:5.1f} s after its start, {stage.updates():2d} updates recorded"
    below = psutil.Process(stage.process.pid).children(recursive=True)
    trainer = stage.trainer()
    if victim == "group" or trainer is None:
        os.killpg(stage.process.pid, signal.SIGKILL)
    elif victim == "trainer":
        trainer.kill()
    else:
        found += _kill_launcher(stage, trainer)
    stage.process.wait(timeout=60)
    _, alive = psutil.wait_procs(below, timeout=20)
    if alive:
        raise SystemExit(f"20 s after the kill there still are {[one.cmdline() for one in alive]}")
    late = stage.folder.done.exists()
    return not late, found + "; it had finished just before" * late


def _kill_launcher(stage: Watched, orphan: psutil.Process) -> str:
    """Kill the launcher alone. Its trainer, held still, has the stage, as the next start must say; then it goes too."""
    begun = stage.begun()
    stage.process.kill()
    orphan.suspend()
    stage.process.wait(timeout=60)
    said = ""
    if begun:
        again = subprocess.run(stage.command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
        said = again.stdout + again.stderr
    orphan.kill()
    if begun and (f"pid {orphan.pid}" not in said or "left by a launcher that died" not in said):
        raise SystemExit(f"the next start does not name the orphan {orphan.pid}: {said[-2000:]}")
    return "; the next start named the orphan" if begun else "; the orphan had not begun"


def run_to_its_end(stage: Watched) -> None:
    """Start the stage and wait; raises SystemExit where it fails."""
    stage.start()
    if stage.process.wait(timeout=LIMIT_S):
        raise SystemExit(f"{stage.folder.name} failed: see {stage.log}")


def watched(recipes: Path, run: Path, name: str, options: Sequence[str]) -> Watched:
    """The stage `name` of a run, to be started with these options; its steps are those of `--steps`."""
    # A little behind this process, which has to be in time.
    command = (
        "nice",
        "-n2",
        *accelerate_command(None),
        "-m",
        "qwq_rl.train",
        str(recipes / f"{name}.yaml"),
        "--run",
        str(run),
    )
    steps = next((int(one.removeprefix("--steps=")) for one in options if one.startswith("--steps=")), 0)
    return Watched(RunFolder(run).stage(name), (*command, *options), steps, run / f"{name}.log")


def struck(stage: Watched, kills: int, first: int, draw: random.Random) -> int:
    """Kill a stage so often, evenly over its updates, and up to three times at its end; how many kills were in time."""
    anytime, hits = kills - max(1, min(len(VICTIMS), kills // 3)), 0
    for at in range(kills):
        number = first + at
        victim, instants = VICTIMS[number % len(VICTIMS)], list(INSTANTS if at < anytime else BEFORE_THE_MARK)
        instant = instants[number % len(instants)]
        if at < anytime:
            goal = int((at + draw.random()) / anytime * (stage.steps - 3))
            hit, found = strike(stage, victim, INSTANTS[instant](stage, draw, goal))
        else:
            hit, found = strike(stage, victim, partial(standing, stage), BEFORE_THE_MARK[instant])
        hits += hit
        print(f"{number + 1:3d} {stage.folder.name:12} {victim:9} {instant:26} {found}", flush=True)
    return hits


def compared(whole: StageFolder, killed: StageFolder) -> int:
    """Say where the two differ; how often they do."""
    unlike = [*differences(whole, killed), *state_differences(whole, killed)]
    for one in unlike:
        print(f"    {one[:300]}")
    verdict = f"{len(unlike)} differences" if unlike else "the same, to the bit, as the stage left alone"
    print(f"{killed.name}: {len(read_lines(killed.metrics))} updates, {verdict}", flush=True)
    return len(unlike)


def main() -> int:
    """Run the stages undisturbed and killed; 1 where they differ."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a new folder for the runs, which stay")
    options = parser.parse_args()
    place = options.keep or Path(tempfile.mkdtemp(prefix="kills-"))
    recipes, draw = write_recipes(place / "recipes"), random.Random(options.seed)
    runs = [place / "undisturbed", place / "killed"]
    runs[0].mkdir()
    for name in STAGES:
        if name != "1_control":
            run_to_its_end(watched(recipes, runs[0], name, STRUCK.get(name, ())))
    shutil.copytree(runs[0], runs[1], ignore=lambda _, names: [name for name in names if name in STRUCK])
    before, hits, bad = 0, 0, 0
    for at, name in enumerate(STRUCK):
        whole, killed = (watched(recipes, run, name, STRUCK[name]) for run in runs)
        kills = len(range(at, options.kills, len(STRUCK)))
        hits += struck(killed, kills, before, draw)
        before += kills
        run_to_its_end(killed)
        bad += compared(whole.folder, killed.folder)
    print(f"{hits} of {options.kills} kills in time, {bad} differences")
    if options.keep is None and not bad:
        shutil.rmtree(place)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
