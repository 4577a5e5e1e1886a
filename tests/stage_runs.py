"""Small stages for tests: their recipes, how one is run in this process, and what two runs of one differ in."""

from __future__ import annotations

import json
import re
import shutil
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from qwq_rl.data.tiny import sets
from qwq_rl.run_folder.checkpoints import newest_complete
from qwq_rl.run_folder.files import RunFolder, StageFolder, read_lines, write_lines

TAUGHT = ("chain", "shift", "echo", "greet")

COLD_START = """\
kind: sft
model: {new: tiny}
data: [{source: DEMONSTRATIONS}]
batch: 16
max_length: 128
update: {lr: 5.0e-3, matrix_lr: 0.03, optimizer: muon, warmup: 5}
steps: 70
evaluate: {every: 70, sets: [tiny/tuning], samples: 2, limit: 2}
checkpoint: {every: 35, keep: 1}
"""
"""A model that gives every kind of answer without thinking, right about one time in five."""

CONTROL = """\
kind: sft
model: {from: 0_cold_start}
data: [{source: DEMONSTRATIONS}]
batch: 8
max_length: 128
update: {lr: 1.0e-3, schedule: linear, warmup: 2}
steps: 6
evaluate: {every: 3, sets: [HELDOUT], samples: 2}
checkpoint: {every: 2, keep: 9}
"""

MATH_CODE = """\
kind: rl
model: {from: 0_cold_start}
algorithm: grpo
data:
  - {source: CHAINS, weight: 1}
  - {source: SHIFTS, weight: 1}
domains:
  math: {verifiers: {math: {}}}
  code: {verifiers: {code: {}}, weight: 0.5}
rollout: {prompts: 6, generations: 4, max_tokens: 32}
update: {lr: 1.0e-3, clip: [0.2, 0.28]}
steps: 4
evaluate: {every: 2, sets: [HELDOUT], samples: 2, at_start: true}
checkpoint: {every: 2, keep: 2}
"""

REWARD_MODEL = """\
kind: reward_model
model: {from: 0_cold_start}
data: [{source: tiny/preferences}]
batch: 8
max_length: 128
update: {lr: 1.0e-3, schedule: linear, warmup: 2}
steps: 6
checkpoint: {every: 2, keep: 9}
"""

GENERAL = """\
kind: rl
model: {from: 1_math_code}
algorithm: grpo
data:
  - {source: OPEN, weight: 2}
  - {source: ECHOES, weight: 1}
  - {source: CHAINS, weight: 1}
domains:
  math: {verifiers: {math: {}}}
  general: {verifiers: {constraints: {}}, reward_model: 0.3}
reward_model: {from: 2_reward_model}
rollout: {prompts: 4, generations: 4, max_tokens: 32}
update: {lr: 1.0e-3, clip: [0.2, 0.28], kl: 1.0e-3}
steps: 3
evaluate: {every: 3, sets: [HELDOUT], samples: 2}
checkpoint: {every: 1, keep: 2}
"""

STAGES = {
    "0_cold_start": COLD_START,
    "1_control": CONTROL,
    "1_math_code": MATH_CODE,
    "2_reward_model": REWARD_MODEL,
    "2_general": GENERAL,
}


def write_recipes(folder: Path) -> Path:
    """The stages' files and their rows in `folder`; returns it."""
    held_out = sets.rows("tuning")
    sources = {
        "HELDOUT": [next(row for row in held_out if row["family"] == family) for family in TAUGHT],
        "DEMONSTRATIONS": _terse_demonstrations(),
        "CHAINS": _prompts("math", "chain"),
        "SHIFTS": _prompts("code", "shift"),
        "ECHOES": _prompts("general", "echo"),
        "OPEN": _prompts("general", "greet"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in sources.items():
        write_lines(folder / f"{name}.jsonl", rows)
    for name, text in STAGES.items():
        filled = re.sub(r"\b[A-Z]{2,}\b", lambda found: str(folder / f"{found[0]}.jsonl"), text)
        (folder / f"{name}.yaml").write_text(filled)
    return folder


def _terse_demonstrations() -> list[dict[str, Any]]:
    found = []
    for domain in sets.DOMAINS:
        for row in sets.rows(f"{domain}_demonstrations"):
            *asked, answer = row["messages"]
            content = re.sub(r"(?s)<think>\n.*</think>", "<think>\n</think>", answer["content"])
            if row["family"] in TAUGHT:
                found.append({**row, "messages": [*asked, {**answer, "content": content}]})
    return found


def _prompts(domain: str, family: str) -> list[dict[str, Any]]:
    return [row for row in sets.rows(domain) if row["family"] == family][:200]


def train(recipe: Path, run: Path, *overrides: str) -> int:
    """`python -m qwq_rl.train RECIPE --run RUN OVERRIDES` in this process, which keeps its signals and warnings."""
    from qwq_rl.train import main

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with warnings.catch_warnings():
            return main([str(recipe), "--run", str(run), *overrides])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class SmallRun:
    """The recipes and what they left."""

    recipes: Path
    run: RunFolder

    def stage(self, name: str) -> StageFolder:
        """A stage of the run."""
        return self.run.stage(name)

    def beside(self, path: Path, *stages: str) -> RunFolder:
        """A new run in `path` that has the results of `stages` already."""
        for name in stages:
            shutil.copytree(self.stage(name).path, path / name)
        return RunFolder(path)

    def train(self, run: RunFolder, stage: str, *overrides: str) -> int:
        """Train a stage of these recipes in `run`; returns the exit status."""
        return train(self.recipes / f"{stage}.yaml", run.path, *overrides)


def differences(one: StageFolder, other: StageFolder) -> Iterator[str]:
    """Where two stages differ in what a restart must not change: metrics, evaluations, rollouts, final weights."""
    rollouts = {path.name for stage in (one, other) for path in (stage.path / "rollouts").glob("*")}
    for name in (one.metrics.name, one.evaluations.name, *(f"rollouts/{name}" for name in sorted(rollouts))):
        mine, theirs = _lines(one.path / name), _lines(other.path / name)
        if len(mine) != len(theirs):
            yield f"{name}: {len(mine)} lines and {len(theirs)}"
        yield from (f"{name}: {a} is not {b}" for a, b in zip(mine, theirs, strict=False) if a != b)
    weights = [load_file(stage.final / "model.safetensors") for stage in (one, other)]
    yield from (f"weight {name}" for name, value in weights[0].items() if not value.equal(weights[1][name]))


def state_differences(one: StageFolder, other: StageFolder) -> Iterator[str]:
    """Where the newest checkpoints of two stages differ in what training goes on from: weights, optimisers, counters.

    The generators of random numbers are left out: nothing that is trained on comes from them.
    """
    mine, theirs = (newest_complete(stage) for stage in (one, other))
    assert mine is not None
    assert theirs is not None
    files = {path.relative_to(place) for place in (mine, theirs) for path in place.rglob("*") if path.suffix in _STATES}
    for name in sorted(files):
        if not name.name.startswith("training_args"):
            yield from (f"{name}{where}" for where in _unequal(_state(mine / name), _state(theirs / name)))


_STATES = (".pt", ".bin", ".safetensors")


def _state(path: Path) -> Any:
    if not path.exists():
        return None
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=False)


def _unequal(one: Any, other: Any) -> Iterator[str]:
    """The places at which two nests of tensors and plain values differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        one, other = (_timeless(value) if "groups" in value else value for value in (one, other))
        yield from (f"/{name}{where}" for name in one for where in _unequal(one[name], other[name]))
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        yield from (f"/{at}{where}" for at in range(len(one)) for where in _unequal(one[at], other[at]))
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if not torch.equal(one, other):
            yield f": {one} is not {other}"
    elif one != other:
        yield f": {one} is not {other}"


def _lines(path: Path) -> list[Any]:
    return [_timeless(line) for line in read_lines(path)]


def _timeless(value: Any) -> Any:
    """A record without what a clock says, and without what depends on what a process has judged before."""
    if isinstance(value, dict):
        return {
            name: _timeless(item)
            for name, item in value.items()
            if name not in ("time", "seconds", "cpu_s", "wall_s", "cached") and not name.endswith("_seconds")
        }
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def rollout_lines(stage: StageFolder, update: int) -> list[dict[str, Any]]:
    """The rollouts of one update."""
    return [json.loads(line) for line in stage.rollouts(update).read_text().splitlines()]
