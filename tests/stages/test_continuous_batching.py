"""transformers' continuous batching in place of our own decoder: one real round on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from stage_runs import SmallRun, rollout_lines

from qwq_rl.errors import UserError
from qwq_rl.run_folder.files import RunFolder, read_lines

BATCHING = (
    "--rollout.prompts=4", "--rollout.generations=2", "--rollout.max_tokens=8",
    "--update.correction={level: token, mode: truncate, high: 2.0}", "--update.lr=0.01",
    "--limits.zero_rounds=null", "--gates=[finished]", "--steps=2",
    "--evaluate.every=2", "--evaluate.at_start=false", "--evaluate.limit=1",
)  # fmt: skip
ENGINE = "use_transformers_continuous_batching: true, transformers_continuous_batching_config: " + (
    "{num_blocks: 128, max_batch_tokens: 256, page_size: 32}"
)


def trained(small: SmallRun, path: Path, *options: str, more: str = "") -> RunFolder:
    run = small.beside(path, "0_cold_start")
    assert small.train(run, "1_math_code", *BATCHING, f"--trl={{{ENGINE}{more}}}", *options) == 0
    return run


@pytest.mark.parametrize("adapter", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_round_is_sampled_corrected_and_trained_on(small: SmallRun, tmp_path: Path, adapter: bool) -> None:
    if adapter:
        pytest.importorskip("peft", reason="peft is not installed: the extra `lora` has it")
    lora = ["--model.lora={rank: 4, alpha: 8}"] if adapter else []
    stage = trained(small, tmp_path, *lora).stage("1_math_code")

    lines = read_lines(stage.metrics)
    assert [line["update"] for line in lines] == [1, 2]
    assert all(0 <= line["gap"]["max"] < 1e-4 for line in lines)
    for update in (1, 2):
        rollouts = rollout_lines(stage, update)
        assert len(rollouts) == 8
        for one in rollouts:
            (segment,) = one["segments"]
            assert 1 <= len(segment["token_ids"]) == len(segment["logprobs"]) <= 8
            assert all(-20 < value < 0 for value in segment["logprobs"])


def test_float32_weights_in_mixed_precision_are_refused(small: SmallRun, tmp_path: Path) -> None:
    """TRL 1.16 itself would cast them to bf16 for good at the first round."""
    with pytest.raises(UserError, match=r"add `bf16: false` to the trl block"):
        trained(small, tmp_path, more=", bf16: true")
