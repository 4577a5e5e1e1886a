"""Struck by SIGKILL at any step of writing what it leaves, a stage ends as one left alone: the very step is chosen."""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections.abc import Callable
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from stage_instants import BEFORE_THE_MARK, strike_at
from stage_runs import SmallRun, differences, state_differences

from qwq_rl.run_folder.files import RunFolder, StageFolder

pytestmark = pytest.mark.slow

NEEDED = {
    "1_control": ("0_cold_start",),
    "1_math_code": ("0_cold_start",),
    "2_general": ("0_cold_start", "1_math_code", "2_reward_model"),
}
OFTEN = ("--checkpoint.every=2", "--checkpoint.keep=1", "--evaluate.every=2", "--steps=6")
PPO = ("--algorithm=ppo", "--critic={lr: 0.001, minibatches: 2}", "--rollout.refill=1", "--limits.zero_rounds=null")
CASES = {
    "sft": ("1_control", OFTEN),
    "grpo": ("1_math_code", (*OFTEN, "--update.updates_per_rollout=2", "--checkpoint.every=3", "--steps=10")),
    "ppo": ("1_math_code", (*OFTEN, *PPO)),
    "reward model": ("2_general", OFTEN),
}
ANY = {
    "update made, not recorded": r"open \S+/metrics\.jsonl$",
    "evaluated, not recorded": r"open \S+/evaluations\.jsonl$",
    "checkpoint begun": r"open \S+/checkpoint-\d+/config\.json$",
    "weights and optimizer saved": r"open \S+/checkpoint-\d+/trainer_state\.json$",
    "contract unwritten": r"os\.rename \S+/checkpoint-\d+/contract\.json$",
    "checkpoint not marked": r"os\.rename \S+/checkpoint-\d+/COMPLETE$",
    "older checkpoint marked still": r"os\.remove \S+/checkpoint-\d+/COMPLETE$",
    "older checkpoint without its mark": r"shutil\.rmtree \S+/checkpoint-\d+$",
}
RL = {
    "verdicts not written": r"open \S+/verdicts\.jsonl$",
    "verdicts written, not used": r"open \S+/rollouts/\.update-\d+\.jsonl\.\d+$",
    "rollouts not in place": r"os\.rename \S+/rollouts/update-\d+\.jsonl$",
    "verdicts trimmed, not in place": r"os\.rename \S+/verdicts\.jsonl$",
}
IMPORTED = [
    "qwq_rl.train",
    "qwq_rl.stages.supervised",
    "qwq_rl.stages.rl",
    "qwq_rl.stages.evaluator",
    "qwq_rl.verifiers.builtin.code_tests",
    "qwq_rl.verifiers.mathematics.verifier",
    "transformers.models.qwen3.modeling_qwen3",
    "deepspeed",  # accelerate imports it where it is installed
]
"""What a stage imports, so that not every one of a hundred processes does."""
CRITIC = {"critic half saved": r"os\.rename \S+/critic/critic\.json$"}


def instants(case: str) -> dict[str, tuple[str, int]]:
    """What can be struck: by name, the pattern and which of its steps."""
    rl, critic = case != "sft", case == "ppo"
    met = {**ANY, **(RL if rl else {}), **(CRITIC if critic else {})}
    return {name: (pattern, 2) for name, pattern in met.items()} | {
        name: (pattern, 1) for name, pattern in BEFORE_THE_MARK.items()
    }


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """Where processes are made in which everything is imported, and nothing has run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def _train(small: SmallRun, run: RunFolder, stage: str, options: tuple[str, ...], at: tuple[str, int] | None) -> None:
    warnings.filterwarnings("ignore")
    if at is not None:
        strike_at(at[0], signal.SIGKILL, at[1])
    raise SystemExit(small.train(run, stage, *options))


Start = Callable[[RunFolder, str, tuple[str, int] | None], int | None]


@pytest.fixture
def start(small: SmallRun, server: ForkServerContext) -> Start:
    """Train a case's stage in a process of its own, struck where it is said; returns its exit status."""

    def run_case(run: RunFolder, case: str, at: tuple[str, int] | None) -> int | None:
        process = server.Process(target=_train, args=(small, run, *CASES[case], at))
        process.start()
        process.join(timeout=300)
        return process.exitcode

    return run_case


@pytest.fixture(scope="module")
def whole(small: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], StageFolder]:
    """A case's stage, left alone."""

    @cache
    def train(case: str) -> StageFolder:
        stage, options = CASES[case]
        run = small.beside(tmp_path_factory.mktemp("whole"), *NEEDED[stage])
        assert small.train(run, stage, *options) == 0
        return run.stage(stage)

    return train


@pytest.mark.parametrize(("case", "name"), [(case, name) for case in CASES for name in instants(case)])
def test_a_stage_killed_at_a_step_ends_as_if_left_alone(
    small: SmallRun, start: Start, whole: Callable[[str], StageFolder], tmp_path: Path, case: str, name: str
) -> None:
    stage = CASES[case][0]
    run = small.beside(tmp_path, *NEEDED[stage])

    assert start(run, case, instants(case)[name]) == -signal.SIGKILL
    assert not run.stage(stage).done.exists()
    assert start(run, case, None) == 0

    assert list(differences(whole(case), run.stage(stage))) == []
    assert list(state_differences(whole(case), run.stage(stage))) == []


@pytest.mark.parametrize("case", CASES)
def test_a_stage_killed_at_every_step_from_its_last_save_to_its_mark_ends_as_if_left_alone(
    small: SmallRun, start: Start, whole: Callable[[str], StageFolder], tmp_path: Path, case: str
) -> None:
    stage = CASES[case][0]
    run = small.beside(tmp_path, *NEEDED[stage])

    for pattern in BEFORE_THE_MARK.values():
        assert start(run, case, (pattern, 1)) == -signal.SIGKILL
    assert start(run, case, None) == 0

    assert list(differences(whole(case), run.stage(stage))) == []
    assert list(state_differences(whole(case), run.stage(stage))) == []
