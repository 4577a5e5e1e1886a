"""An adapter trained by two processes, its model copied or sharded, is the one that a single process trains."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stage_runs import SmallRun, differences
from worlds import launched, sharded

from qwq_rl.run_folder.checkpoints import COMPLETE
from qwq_rl.run_folder.files import RunFolder, read_lines

pytestmark = pytest.mark.slow
pytest.importorskip("peft", reason="peft is not installed: the extra `lora` has it")

STAGE = "1_math_code"
LORA = ("--model.lora={rank: 4, alpha: 8}", "--update.lr=0.003")
GRPO = (*LORA, "--update.kl=0.001")
PPO = (*LORA, "--algorithm=ppo", "--critic={lr: 0.001, minibatches: 2}")


@pytest.mark.parametrize("options", [GRPO, PPO], ids=["grpo", "ppo"])
@pytest.mark.parametrize("world", ["cpu_ddp", *(pytest.param(f"cpu_zero{number}", marks=sharded) for number in (2, 3))])
def test_two_processes_train_the_adapter_that_one_trains(
    small: SmallRun, tmp_path: Path, world: str, options: tuple[str, ...]
) -> None:
    one = small.beside(tmp_path / "one", "0_cold_start")
    assert small.train(one, STAGE, *options) == 0

    two = small.beside(tmp_path / "two", "0_cold_start")
    launched(small, two, world, STAGE, *options)

    found, expected = two.stage(STAGE), one.stage(STAGE)
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
    launched(small, run, "cpu_zero3", STAGE, *GRPO)
    shutil.copytree(run.path, tmp_path / "again")
    stage = RunFolder(tmp_path / "again").stage(STAGE)
    stage.done.unlink()
    shutil.rmtree(stage.final)
    (stage.checkpoints / "checkpoint-4" / COMPLETE).unlink()

    launched(small, RunFolder(tmp_path / "again"), "cpu_zero3", STAGE, *GRPO)

    assert list(differences(run.stage(STAGE), stage)) == []
