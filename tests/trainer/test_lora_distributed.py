"""An adapter trained by two processes, its model copied or sharded, is the one that a single process trains."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stage_runs import SmallRun, differences, write_recipes

from qwq_rl.checkpoints import COMPLETE
from qwq_rl.runfolder import RunFolder, StageFolder, read_lines

pytestmark = pytest.mark.slow
pytest.importorskip("peft", reason="peft is not installed: the extra `lora` has it")

STAGE = "1_math_code"
LORA = ("--model.lora={rank: 4, alpha: 8}", "--update.lr=0.003")
GRPO = (*LORA, "--update.kl=0.001")
PPO = (*LORA, "--algorithm=ppo", "--critic={lr: 0.001, minibatches: 2}")
sharded = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None or shutil.which("g++") is None,
    reason="DeepSpeed on a CPU needs the extra `deepspeed` and g++",
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    folder = tmp_path_factory.mktemp("small")
    made = SmallRun(write_recipes(folder / "recipes"), RunFolder(folder / "run"))
    assert made.train(made.run, "0_cold_start") == 0
    return made


def on_two(small: SmallRun, run: RunFolder, world: str, *options: str) -> StageFolder:
    """Train the stage on two processes; ZeRO's first start compiles for two minutes."""
    config = Path(__file__).parent.parent.parent / "recipes" / "accelerate" / f"{world}.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", f"--config_file={config}", "-m", "qwq_rl.train"]
    done = subprocess.run(
        [*launch, str(small.recipes / f"{STAGE}.yaml"), "--run", str(run.path), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return run.stage(STAGE)


@pytest.mark.parametrize("options", [GRPO, PPO], ids=["grpo", "ppo"])
@pytest.mark.parametrize("world", ["cpu_ddp", *(pytest.param(f"cpu_zero{number}", marks=sharded) for number in (2, 3))])
def test_two_processes_train_the_adapter_that_one_trains(
    small: SmallRun, tmp_path: Path, world: str, options: tuple[str, ...]
) -> None:
    one = small.beside(tmp_path / "one", "0_cold_start")
    assert small.train(one, STAGE, *options) == 0

    found = on_two(small, small.beside(tmp_path / "two", "0_cold_start"), world, *options)

    expected = one.stage(STAGE)
    for line, other in zip(read_lines(found.metrics), read_lines(expected.metrics), strict=True):
        for name in ("loss", "gradient_norm", "kl", "reward"):
            assert line[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), (line["update"], name)
    weights, others = (load_file(stage.final / "model.safetensors") for stage in (found, expected))
    assert weights.keys() == others.keys()
    for name, value in others.items():
        torch.testing.assert_close(weights[name], value, atol=2e-5, rtol=1e-4)


@sharded
def test_a_sharded_stage_with_an_adapter_goes_on_exactly(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path / "whole", "0_cold_start")
    whole = on_two(small, run, "cpu_zero3", *GRPO)
    shutil.copytree(run.path, tmp_path / "again")
    stage = RunFolder(tmp_path / "again").stage(STAGE)
    stage.done.unlink()
    shutil.rmtree(stage.final)
    (stage.checkpoints / "checkpoint-4" / COMPLETE).unlink()

    on_two(small, RunFolder(tmp_path / "again"), "cpu_zero3", *GRPO)

    assert list(differences(whole, stage)) == []
