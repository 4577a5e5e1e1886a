"""Stages that vLLM servers sample for: fed with files, killed, and what cannot work said at the start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stage_runs import SmallRun, differences, rollout_lines
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_stand_in import StandIn

from qwq_rl.errors import UserError
from qwq_rl.inference import engines, vllm_client
from qwq_rl.inference.engines import check_vllm
from qwq_rl.inference.vllm_client import ServerLost, ServerUnfit
from qwq_rl.inference.vllm_http import write_model
from qwq_rl.run_folder.files import RunFolder, read_lines

REAL = os.environ.get("QWQ_RL_VLLM")
"""The address of a vLLM server that was started with the model in $QWQ_RL_VLLM_MODEL, as docs/training.md says."""
FEW = (
    "--rollout.prompts=4", "--rollout.generations=2", "--rollout.max_tokens=16", "--update.lr=0.01", "--steps=3",
    "--limits.zero_rounds=null", "--gates=[finished]", "--evaluate.every=3", "--evaluate.at_start=false",
    "--evaluate.limit=1", "--checkpoint.every=1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_client, "_TICK_S", 0.02)


@pytest.fixture
def stand_in(small: SmallRun) -> Iterator[StandIn]:
    server = StandIn(small.stage("0_cold_start").final)
    yield server
    server.stop()


def train(small: SmallRun, run: RunFolder, server: StandIn, *options: str) -> int:
    block = f"--rollout.server={{urls: ['{server.url}'], timeout_s: 5}}"
    return small.train(run, "1_math_code", *FEW, block, *options)


# --- a stage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_each_policy_reaches_the_server_before_it_samples(
    small: SmallRun, stand_in: StandIn, tmp_path: Path, adapter: bool
) -> None:
    if adapter:
        pytest.importorskip("peft", reason="peft is not installed: the extra `lora` has it")
    run = small.beside(tmp_path / "run", "0_cold_start")

    assert train(small, run, stand_in, *(["--model.lora={rank: 4, alpha: 8}"] if adapter else [])) == 0

    stage = run.stage("1_math_code")
    assert [folder.name for folder in stand_in.loaded] == [f"version-00000{version}" for version in range(3)]
    lines = read_lines(stage.metrics)
    assert all(0 <= line["gap"]["max"] < 1e-4 for line in lines)
    assert len({line["gradient_norm"] for line in lines}) == 3
    segments = [one["segments"][0] for update in (1, 2, 3) for one in rollout_lines(stage, update)]
    assert all(1 <= len(one["token_ids"]) == len(one["logprobs"]) <= 16 for one in segments)
    assert not (stage.path / "served").exists()


def test_weights_that_do_not_arrive_are_seen_in_the_gap(small: SmallRun, stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.loads = False
    run = small.beside(tmp_path / "run", "0_cold_start")

    with pytest.raises(UserError, match=r"above limits.gap 0.001: the sampler is another model"):
        train(small, run, stand_in, "--limits.gap=0.001")


def test_a_lost_server_ends_the_stage_and_another_takes_it_up(small: SmallRun, tmp_path: Path) -> None:
    start = small.stage("0_cold_start").final
    whole, broken = (small.beside(tmp_path / name, "0_cold_start") for name in ("whole", "broken"))
    first = StandIn(start)
    assert train(small, whole, first) == 0
    first.stop()
    dying, other = StandIn(start), StandIn(start)
    dying.die_after = 6

    with pytest.raises(ServerLost, match=dying.url):
        train(small, broken, dying)
    assert len(read_lines(broken.stage("1_math_code").metrics)) == 1
    assert train(small, broken, other) == 0

    stages = [run.stage("1_math_code") for run in (whole, broken)]
    assert list(differences(*stages)) == []
    other.stop()


def test_a_server_that_starts_anew_within_a_round_ends_the_stage(
    small: SmallRun, stand_in: StandIn, tmp_path: Path
) -> None:
    stand_in.restart_after = 6

    with pytest.raises(ServerLost, match="started anew in the middle of a round"):
        train(small, small.beside(tmp_path / "run", "0_cold_start"), stand_in)


def test_a_server_of_another_vocabulary_is_refused(small: SmallRun, stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.tokenizer.add_tokens(["What is"])

    with pytest.raises(ServerUnfit, match="runs policy, whose vocabulary is not that of the model in training"):
        train(small, small.beside(tmp_path / "run", "0_cold_start"), stand_in)


def test_a_server_for_shorter_responses_is_refused(small: SmallRun, tmp_path: Path) -> None:
    stand_in = StandIn(small.stage("0_cold_start").final, max_model_len=16)

    with pytest.raises(ServerUnfit, match=r"takes 16 tokens .* rollout.max_tokens is 16: .* larger --max-model-len"):
        train(small, small.beside(tmp_path / "run", "0_cold_start"), stand_in)
    stand_in.stop()


def test_a_cpu_server_that_would_keep_an_old_head_is_refused(
    small: SmallRun, stand_in: StandIn, tmp_path: Path
) -> None:
    stand_in.config["device_config"]["device"] = "cpu"
    stand_in.config["scheduler_config"]["enable_chunked_prefill"] = False

    with pytest.raises(ServerUnfit, match=r'--hf-overrides \'{"tie_word_embeddings": false}\''):
        train(small, small.beside(tmp_path / "run", "0_cold_start"), stand_in)


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="$QWQ_RL_VLLM names no vLLM server: docs/training.md says how to start one")
def test_a_real_server_samples_from_each_policy(tmp_path: Path) -> None:
    from stage_runs import write_recipes

    small = SmallRun(write_recipes(tmp_path / "recipes"), RunFolder(tmp_path / "run"))
    start, block = os.environ["QWQ_RL_VLLM_MODEL"], f"--rollout.server={{urls: ['{REAL}'], timeout_s: 60}}"

    assert small.train(small.run, "1_math_code", *FEW, block, f"--model.from={start}") == 0

    lines = read_lines(small.stage("1_math_code").metrics)
    assert len(lines) == 3
    assert all(line["gap"]["max"] < 1e-3 for line in lines)


# --- what is written --------------------------------------------------------------------------------------------------


def test_what_is_written_is_the_model(small: SmallRun, tmp_path: Path) -> None:
    start = small.stage("0_cold_start").final
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)

    write_model(model, tmp_path / "version-000000")

    written, expected = (
        load_file(tmp_path / "version-000000" / "model.safetensors"),
        load_file(start / "model.safetensors"),
    )
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], value) for name, value in expected.items())
    assert [path.name for path in tmp_path.iterdir()] == ["version-000000"]


def test_it_is_written_as_training_computes_and_with_a_head_of_its_own(small: SmallRun, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(small.stage("0_cold_start").final, dtype=torch.float32)

    write_model(model, tmp_path / "written", torch.bfloat16, head_apart=True)

    written = load_file(tmp_path / "written" / "model.safetensors")
    assert {value.dtype for value in written.values()} == {torch.bfloat16}
    assert torch.equal(written["lm_head.weight"], written["model.embed_tokens.weight"])
    assert model.dtype == torch.float32


def test_an_adapter_is_merged_into_what_is_written_alone(small: SmallRun, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: the extra `lora` has it")
    start = small.stage("0_cold_start").final
    wrapped: Any = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32),
        peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    before = {name: value.clone() for name, value in wrapped.state_dict().items()}
    ids = AutoTokenizer.from_pretrained(start)("What is 3 + 4?", return_tensors="pt")["input_ids"]
    wrapped.eval()

    write_model(wrapped, tmp_path / "written")

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "written", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, wrapped(ids).logits, atol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in wrapped.state_dict().items())


# --- TRL's own modes --------------------------------------------------------------------------------------------------


def test_vllm_by_trl_needs_a_gpu(small: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = small.beside(tmp_path, "0_cold_start")

    with pytest.raises(UserError, match=r"there is no GPU here: leave it out, or .* `rollout.server`"):
        small.train(run, "1_math_code", "--trl.use_vllm=true")


@pytest.mark.parametrize(
    ("version", "told"),
    [
        (None, r"vLLM is not installed here: pip install 'qwq-rl\[vllm\]', or"),
        ("0.21.4", "vLLM 0.21.4 is installed, and TRL 1.16 knows 0.22 to 0.31"),
        ("0.32.0", "vLLM 0.32.0 is installed, and TRL 1.16 knows 0.22 to 0.31"),
        ("0.22.1", None),
        ("0.31.0", None),
    ],
)
def test_vllm_by_trl_is_of_a_version_it_knows(
    monkeypatch: pytest.MonkeyPatch, version: str | None, told: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(engines, "find_spec", lambda name: None if version is None else object())
    packages = SimpleNamespace(packages_distributions=lambda: {"vllm": ["vllm"]}, version=lambda name: version)
    monkeypatch.setattr(engines, "metadata", packages)

    if told is None:
        check_vllm()
        return
    with pytest.raises(UserError, match=told):
        check_vllm()


def test_trl_knows_the_versions_that_are_said() -> None:
    import inspect

    from trl import import_utils

    source = inspect.getsource(import_utils.is_vllm_available)
    oldest, newest = (".".join(map(str, one)) for one in engines.TRL_VLLM)
    assert f'Version("{oldest}.0") <= _vllm_base_version <= Version("{newest}.0")' in source
