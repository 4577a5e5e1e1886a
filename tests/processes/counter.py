"""A process that keeps to the trainer's contract and trains nothing: for the tests of the pipeline.

    counter.py STAGE.yaml --run RUN [--a.b=c ...]

It locks its stage, resumes from its newest checkpoint, stops cleanly on SIGINT and SIGTERM, and writes what a trainer
writes. The environment says how it behaves: LITTLE_UPDATE_SECONDS; LITTLE_PASSES_AT (updates from which the tuning set
is solved); LITTLE_COLLAPSES (the seed that solves nothing); LITTLE_CRASH (STAGE=MESSAGE: raise at half of that stage);
LITTLE_STUBBORN (take no notice of signals).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from qwq_rl.config.recipe import Stage, load_stage, recipe_hash, resolved_yaml
from qwq_rl.run_folder.files import RunFolder, StageFolder, append_line, read_json, read_lines, write_json, write_lines
from qwq_rl.run_folder.locks import hold
from qwq_rl.stages.provenance import collect

ESTIMATE = {"low": 0.0, "high": 1.0}


def main() -> None:
    path, run = Path(sys.argv[1]), Path(sys.argv[3])
    stage, folder = load_stage(path, sys.argv[4:]), RunFolder(run).stage(path.stem)
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stopped.append(number))
    with hold(folder.lock, f"the trainer of {folder.name}"):
        train(stage, folder, path, stopped)


def train(stage: Stage, folder: StageFolder, path: Path, stopped: list[int]) -> None:
    folder.resolved.write_text(resolved_yaml(stage))
    write_json(folder.provenance, collect(folder.name, path, stage, 1, sys.argv, {}))
    start = read_json(folder.checkpoints / "state.json") or {"update": 0, "cpu_seconds": 0.0, "wall_seconds": 0.0}
    write_lines(folder.metrics, [line for line in read_lines(folder.metrics) if line["update"] <= start["update"]])
    for update in range(start["update"] + 1, stage.steps + 1):
        time.sleep(float(os.environ.get("LITTLE_UPDATE_SECONDS", "0.005")))
        crash(folder.name, update, stage.steps)
        if update == 10:
            append_line(folder.rollouts(update), {"id": "u10-g0-s0"})
        line = {"update": update, "stage": folder.name, "kind": stage.kind, "time": time.time(), "loss": 1 / update}
        append_line(folder.metrics, line | {"tokens": {"mean": 17.2}, "process": os.getpid()})
        stop = bool(stopped) and "LITTLE_STUBBORN" not in os.environ
        if update % stage.checkpoint.every == 0 or update == stage.steps or stop:
            save(folder, update)
        if stop:
            print("saved and stopped", flush=True)
            sys.exit(128 + stopped[0])
    if stage.kind != "reward_model":
        collapsed = os.environ.get("LITTLE_COLLAPSES") == str(stage.seed)
        update = -1 if collapsed else stage.steps
        append_line(
            folder.evaluations, evaluation(folder.name, stage.evaluate.sets[0], update) | {"update": stage.steps}
        )
    folder.final.mkdir(parents=True, exist_ok=True)
    spent = {"cpu_seconds": time.process_time(), "wall_seconds": 1.0}
    done = {"update": stage.steps, "checkpoint": "final", "recipe_hash": recipe_hash(stage)}
    write_json(folder.done, done | spent)


def save(folder: StageFolder, update: int) -> None:
    write_json(folder.checkpoints / "state.json", {"update": update, "cpu_seconds": 0.0, "wall_seconds": 0.0})


def crash(name: str, update: int, steps: int) -> None:
    stage, _, message = os.environ.get("LITTLE_CRASH", "").partition("=")
    if stage == name and update == steps // 2:
        raise ValueError(message)


def evaluation(name: str, data_set: str, update: int) -> dict[str, object]:
    solved = 1.0 if update >= int(os.environ.get("LITTLE_PASSES_AT", "0")) else 0.0
    area = {"sampled": {"mean": solved, **ESTIMATE}, "greedy": None, "pass_at_k": {"mean": solved, **ESTIMATE}}
    modes = {"math": {"worked": {"mean": solved, "share": 0.9}, "terse": {"mean": 0.2, "share": 0.1}}}
    areas = {"domains": {"math": area}, "families": {"math/chain": area}, "modes": modes}
    return {"update": update, "stage": name, "set": data_set, "time": time.time(), **areas}


if __name__ == "__main__":
    main()
