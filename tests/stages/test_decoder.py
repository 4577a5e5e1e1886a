"""What an rl stage samples with: our decoder for Qwen in the precision of the update, or a word that it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from stage_runs import SmallRun

from qwq_rl.run_folder.files import read_lines

SHORT = ("--steps=2", "--evaluate.limit=1", "--limits.zero_rounds=null")


def test_mixed_precision_is_sampled_in_by_our_decoder(
    small: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small.beside(tmp_path, "0_cold_start")

    assert small.train(run, "1_math_code", "--trl.bf16=true", *SHORT) == 0

    assert "sampling by our decoder for Qwen, with matrices in bfloat16\n" in capsys.readouterr().out
    gaps = [line["gap"] for line in read_lines(run.stage("1_math_code").metrics)]
    assert all(0 < gap["mean"] < 0.01 for gap in gaps), "rounding, of which float32 would have 1e-7"


def test_an_adapter_is_sampled_from_by_the_models_own_forward(
    small: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft", reason="peft is not installed: the extra `lora` has it")
    run = small.beside(tmp_path, "0_cold_start")

    assert small.train(run, "1_math_code", "--model.lora={rank: 4, alpha: 8}", *SHORT) == 0

    assert "sampling by the forward of PeftModelForCausalLM, one call a token\n" in capsys.readouterr().out
