"""Stages that train an adapter: what they leave is a whole model, and everything else is as without one."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from run_conforms import departures
from safetensors.torch import load_file
from stage_runs import SmallRun, differences
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from qwq_rl.config.blocks import Lora
from qwq_rl.errors import RecipeError, UserError
from qwq_rl.run_folder.checkpoints import COMPLETE
from qwq_rl.run_folder.files import RunFolder, StageFolder, read_lines
from qwq_rl.stages.lora import adapter_of

pytest.importorskip("peft", reason="peft is not installed: the extra `lora` has it")

LORA = "--model.lora={rank: 4, alpha: 8}"
RL = (LORA, "--update.lr=0.01", "--update.kl=0.001")


@pytest.fixture(scope="module")
def adapted(small: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = small.beside(tmp_path_factory.mktemp("lora"), "0_cold_start")
    assert small.train(run, "1_math_code", *RL) == 0
    return run


def changed(before: StageFolder, after: StageFolder) -> set[str]:
    """The weights that differ; a reward model has a head of its own in place of the other, if there was one."""
    old, new = (load_file(stage.final / "model.safetensors") for stage in (before, after))
    assert old.keys() ^ new.keys() <= {"lm_head.weight", "score.weight"}
    return {name for name in old.keys() & new.keys() if not torch.equal(old[name], new[name])}


def test_the_result_is_a_model_without_an_adapter(adapted: RunFolder) -> None:
    stage = adapted.stage("1_math_code")
    model = AutoModelForCausalLM.from_pretrained(stage.final)
    embeddings = {"model.embed_tokens.weight", "lm_head.weight"}
    matrices = {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}

    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert [path.name for path in stage.final.glob("adapter*")] == []
    assert changed(adapted.stage("0_cold_start"), stage) == matrices - embeddings


def test_only_the_adapter_is_in_a_checkpoint(adapted: RunFolder) -> None:
    checkpoint = adapted.stage("1_math_code").checkpoints / "checkpoint-4"

    assert {path.name for path in checkpoint.glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert all(".lora_" in name for name in load_file(checkpoint / "adapter_model.safetensors"))


def test_the_divergence_is_from_the_model_without_the_adapter(adapted: RunFolder) -> None:
    first, *later = [line["kl"] for line in read_lines(adapted.stage("1_math_code").metrics)]

    assert first == pytest.approx(0.0, abs=1e-6)
    assert all(kl > 1e-6 for kl in later)


def test_records_and_sampler_are_as_without_an_adapter(adapted: RunFolder, small: SmallRun) -> None:
    lines, plain = (read_lines(run.stage("1_math_code").metrics) for run in (adapted, small.run))

    assert [one for one in departures(adapted.path) if "1_math_code" in one] == []
    assert all(line["gap"]["max"] < 1e-4 for line in lines)
    assert lines[0]["reward"] == plain[0]["reward"]


def test_a_stage_that_was_killed_goes_on_exactly(adapted: RunFolder, small: SmallRun, tmp_path: Path) -> None:
    shutil.copytree(adapted.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    stage = run.stage("1_math_code")
    stage.done.unlink()
    shutil.rmtree(stage.final)
    (stage.checkpoints / "checkpoint-4" / COMPLETE).unlink()

    assert small.train(run, "1_math_code", *RL) == 0

    assert list(differences(adapted.stage("1_math_code"), stage)) == []


def test_ppo_trains_the_policys_adapter_and_the_whole_critic(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "0_cold_start")
    options = ("--algorithm=ppo", "--critic={lr: 0.001, warmup: 1, minibatches: 2}", LORA, "--update.lr=0.01")

    assert small.train(run, "1_math_code", *options) == 0

    stage = run.stage("1_math_code")
    lines = read_lines(stage.metrics)
    critic = torch.load(stage.checkpoints / "checkpoint-4" / "critic" / "critic.pt", weights_only=True)["model"]
    start = load_file(run.stage("0_cold_start").final / "model.safetensors")
    assert [line["gradient_norm"] > 0 for line in lines] == [False, True, True, True]
    assert lines[-1]["critic"]["value_loss"] < lines[0]["critic"]["value_loss"]
    assert not any("lora" in name for name in critic)
    assert not torch.equal(critic["model.embed_tokens.weight"], start["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("stage", "loader"),
    [("1_control", AutoModelForCausalLM), ("2_reward_model", AutoModelForSequenceClassification)],
)
def test_the_supervised_kinds_train_adapters_too(small: SmallRun, tmp_path: Path, stage: str, loader: type) -> None:
    run = small.beside(tmp_path, "0_cold_start")

    assert small.train(run, stage, LORA) == 0

    folder = run.stage(stage)
    _, found = loader.from_pretrained(folder.final, output_loading_info=True)  # type: ignore[attr-defined]
    moved = changed(run.stage("0_cold_start"), folder)
    assert found["missing_keys"] == found["unexpected_keys"] == set()
    assert [line["update"] for line in read_lines(folder.metrics)] == list(range(1, 7))
    assert moved
    assert all(name.endswith("_proj.weight") for name in moved)


def test_a_later_stage_starts_from_the_result(adapted: RunFolder, small: SmallRun, tmp_path: Path) -> None:
    shutil.copytree(adapted.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    targets = "--model.lora={rank: 2, alpha: 4, targets: [q_proj, v_proj]}"

    assert small.train(run, "1_control", targets, "--model.from=1_math_code") == 0

    moved = changed(run.stage("1_math_code"), run.stage("1_control"))
    assert {name.split(".")[-2] for name in moved} == {"q_proj", "v_proj"}


# --- refused ----------------------------------------------------------------------------------------------------------


def test_a_target_that_the_model_does_not_have_is_named(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "0_cold_start")

    with pytest.raises(UserError, match=r"query_proj, lm_head is no matrix .* there are q_proj, k_proj, v_proj"):
        small.train(run, "1_control", "--model.lora={rank: 2, alpha: 4, targets: [query_proj, lm_head]}")


def test_without_peft_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)

    with pytest.raises(UserError, match=r"pip install 'qwq-rl\[lora\]'"):
        adapter_of(Lora(2, 4.0), torch.nn.Linear(2, 2), "CAUSAL_LM", 0)


@pytest.mark.parametrize(
    ("stage", "overrides", "said"),
    [
        ("1_control", (LORA, "--update.optimizer=muon", "--update.matrix_lr=0.01"), "update.optimizer: muon is for"),
        ("1_control", ("--model.lora={rank: 2, alpha: 4, targets: [all-linear, q_proj]}",), "names all of them"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(
    small: SmallRun, tmp_path: Path, stage: str, overrides: tuple[str, ...], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        small.train(RunFolder(tmp_path), stage, *overrides)
