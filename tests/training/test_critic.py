"""The critic's values and fits, in one process and in two."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from critic_cases import PLAN, WORDS, config, returns_of, samples
from transformers import Qwen3ForCausalLM, Qwen3ForSequenceClassification

from qwq_rl.errors import RunStateError
from qwq_rl.training.critic import Critic, build_critic_model, split
from qwq_rl.training.critic_engine import engine_config
from qwq_rl.training.micro_batch import TrainingSample


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy."""
    folder = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    Qwen3ForCausalLM(config()).save_pretrained(folder)
    return folder


def critic(policy: Path, **changes: Any) -> Critic:
    return Critic(build_critic_model(policy), dataclasses.replace(PLAN, **changes), Accelerator(cpu=True))


def zeros(found: Sequence[TrainingSample]) -> list[torch.Tensor]:
    return [torch.zeros(len(sample.mask)) for sample in found]


def weights(found: Critic) -> dict[str, torch.Tensor]:
    engine: Any = found._engine
    return {name: value.clone() for name, value in engine._model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first | second)


# ---- the model


def test_a_new_critic_says_nothing_and_keeps_the_backbone(policy: Path) -> None:
    model = build_critic_model(policy)
    backbone = Qwen3ForCausalLM.from_pretrained(policy).model.state_dict()

    assert not model(torch.arange(6)[None]).logits.any()
    assert all(torch.equal(value, backbone[name]) for name, value in model.model.state_dict().items())


def test_the_critic_has_no_dropout(tmp_path: Path) -> None:
    Qwen3ForCausalLM(config(attention_dropout=0.5)).save_pretrained(tmp_path)
    model = build_critic_model(tmp_path).train()
    torch.nn.init.ones_(model.score.weight)
    ids = torch.arange(1, 9)[None]

    assert torch.equal(model(ids).logits, model(ids).logits)


def test_a_reward_model_gives_its_own_output(tmp_path: Path) -> None:
    reward_model = Qwen3ForSequenceClassification(config(num_labels=1))
    reward_model.save_pretrained(tmp_path)
    model = build_critic_model(tmp_path)

    assert torch.equal(model.score.weight, reward_model.score.weight)
    assert not model.score.bias.any()


# ---- values


def test_a_value_reads_the_tokens_before_it_only(policy: Path) -> None:
    found = critic(policy)
    torch.nn.init.normal_(found._engine._model.score.weight)  # type: ignore[attr-defined]
    sample = samples(1)[0]
    changed = dataclasses.replace(sample, ids=torch.cat([sample.ids[:4], (sample.ids[4:] % (WORDS - 1)) + 1]))
    first, second = found.values([sample, changed])

    assert first.shape == sample.mask.shape
    assert torch.equal(first[:4], second[:4])
    assert float((first[4:] - second[4:]).abs().min()) > 0


def test_values_do_not_depend_on_the_company(policy: Path) -> None:
    found, some = critic(policy, tokens=100), samples(12)
    torch.nn.init.normal_(found._engine._model.score.weight)  # type: ignore[attr-defined]
    together = found.values(some)

    for sample, values in zip(some, together, strict=True):
        torch.testing.assert_close(found.values([sample])[0], values, atol=1e-5, rtol=0)
        assert float(values.abs().max()) > 0.1


def test_no_traces_have_no_values(policy: Path) -> None:
    assert critic(policy).values([]) == []


# ---- one fit


def test_figures_of_a_first_fit_are_those_of_a_critic_that_says_0(policy: Path) -> None:
    some = samples(8)
    wanted = returns_of(some)
    live = torch.cat([values[sample.mask] for sample, values in zip(some, wanted, strict=True)])
    figures = critic(policy, minibatches=1).fit(some, zeros(some), wanted, seed=1)

    assert figures.value_loss == pytest.approx(float((live**2).mean() / 2), rel=1e-5)
    assert figures.target == pytest.approx(float(live.mean()), rel=1e-5)
    assert figures.explained_variance == pytest.approx(0.0, abs=1e-9)
    assert (figures.value, figures.updates) == (0.0, 1)


def test_the_gradient_is_that_of_the_mean_over_tokens(policy: Path) -> None:
    some = samples(8)
    wanted = returns_of(some)
    model = build_critic_model(policy)
    total = torch.zeros(())
    for sample, target in zip(some, wanted, strict=True):
        total = total + ((model(sample.ids[None]).logits[0, :-1, 0] - target)[sample.mask] ** 2).sum() / 2
    (total / sum(sample.tokens for sample in some)).backward()
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))

    for tokens in (30, 10_000):
        figures = critic(policy, minibatches=1, tokens=tokens).fit(some, zeros(some), wanted, seed=1)
        assert figures.gradient_norm == pytest.approx(norm, rel=1e-5)


def test_values_that_moved_past_the_clip_are_not_pulled(policy: Path) -> None:
    some = samples(4)
    found = critic(policy, clip=0.2, minibatches=1)
    away = [values + 1.0 for values in zeros(some)]
    before = weights(found)
    # Values of 0 that were 1 count as held at 0.8. Where that is the worse of the two, there is nothing to pull.
    pulled = found.fit(some, away, [values + 2.0 for values in zeros(some)], seed=1)
    assert pulled.gradient_norm > 0.01
    assert not same(before, weights(found))

    fresh = critic(policy, clip=0.2, minibatches=1)
    held = fresh.fit(some, away, [values - 2.0 for values in zeros(some)], seed=1)
    assert held.gradient_norm == 0.0
    assert held.value_loss == pytest.approx((0.8 + 2.0) ** 2 / 2, rel=1e-5)


def test_tokens_outside_the_mask_teach_nothing(policy: Path) -> None:
    some = samples(8)
    wanted = returns_of(some)
    noisy = [torch.where(sample.mask, values, 99.0) for sample, values in zip(some, wanted, strict=True)]
    first, second = critic(policy), critic(policy)

    assert first.fit(some, zeros(some), wanted, seed=1) == second.fit(some, zeros(some), noisy, seed=1)
    assert same(weights(first), weights(second))


def test_a_round_without_a_token_to_learn_from_changes_nothing(policy: Path) -> None:
    some = [dataclasses.replace(sample, mask=torch.zeros_like(sample.mask)) for sample in samples(3)]
    found = critic(policy)
    before = weights(found)
    figures = found.fit(some, zeros(some), returns_of(some), seed=1)

    assert same(before, weights(found))
    assert (figures.updates, found.rounds) == (0, 1)
    assert math.isnan(figures.value_loss)


def test_the_seed_alone_says_the_order(policy: Path) -> None:
    some = samples(16)
    found = [critic(policy) for _ in range(3)]
    for one, seed in zip(found, (1, 1, 2), strict=True):
        one.fit(some, zeros(some), returns_of(some), seed=seed)

    assert same(weights(found[0]), weights(found[1]))
    assert not same(weights(found[0]), weights(found[2]))


def test_warm_up_counts_rounds(policy: Path) -> None:
    some, found = samples(4), critic(policy)
    seen = []
    for seed in range(4):
        seen.append(found.warming)
        found.fit(some, zeros(some), returns_of(some), seed)

    assert seen == [True, True, False, False]
    assert found.updates == 4 * PLAN.minibatches


def test_it_learns_what_can_be_known(policy: Path) -> None:
    found = critic(policy)
    figures = None
    for number in range(25):
        some = samples(32, seed=number)
        figures = found.fit(some, found.values(some), returns_of(some), seed=number)

    assert figures is not None
    assert figures.explained_variance > 0.9
    assert figures.value == pytest.approx(figures.target, abs=0.1)


# ---- minibatches


def test_a_split_spreads_neighbours_over_all_parts() -> None:
    parts = split(22, 4, torch.Generator().manual_seed(3))

    assert sorted(row for part in parts for row in part) == list(range(22))
    for start in range(0, 20, 4):
        assert [sum(start <= row < start + 4 for row in part) for part in parts] == [1, 1, 1, 1]
    assert sorted(len(part) for part in parts) == [5, 5, 6, 6]


# ---- checkpoints


def test_a_resumed_critic_goes_on_to_the_bit(policy: Path, tmp_path: Path) -> None:
    rounds = [samples(16, seed=number) for number in range(4)]
    straight, stopped, resumed = (critic(policy) for _ in range(3))
    for number, some in enumerate(rounds):
        straight.fit(some, straight.values(some), returns_of(some), seed=number)
    for number, some in enumerate(rounds[:2]):
        stopped.fit(some, stopped.values(some), returns_of(some), seed=number)
    stopped.save(tmp_path / "critic")
    resumed.load(tmp_path / "critic")
    assert not resumed.warming
    for number, some in enumerate(rounds[2:], start=2):
        resumed.fit(some, resumed.values(some), returns_of(some), seed=number)

    assert same(weights(straight), weights(resumed))
    assert (resumed.rounds, resumed.updates) == (straight.rounds, straight.updates)


def test_a_checkpoint_without_a_critic_is_refused(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(RunStateError, match="has no critic"):
        critic(policy).load(tmp_path)


# ---- DeepSpeed's settings


def test_a_second_engine_shards_as_the_policy_does_but_steps_by_itself() -> None:
    shared = {
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "offload_param": {"device": "cpu"}},
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
        "train_batch_size": 64,
        "gradient_accumulation_steps": 16,
        "gradient_clipping": "auto",
    }
    found = engine_config(shared, gradient_clip=0.5, precision="bf16", hidden_size=100)

    assert found["zero_optimization"] == {
        "stage": 3,
        "reduce_bucket_size": 10_000,
        "stage3_prefetch_bucket_size": 9_000,
        "stage3_param_persistence_threshold": 1_000,
        "offload_param": {"device": "cpu"},
    }
    assert (found["bf16"], found["fp16"]) == ({"enabled": True}, {"enabled": False})
    assert (found["gradient_clipping"], found["gradient_accumulation_steps"]) == (0.5, 1)
    assert not {"optimizer", "train_batch_size"} & found.keys()
    assert shared["zero_optimization"]["reduce_bucket_size"] == "auto"  # type: ignore[index]


# ---- several processes

RANK = Path(__file__).parent.parent / "processes" / "critic_rank.py"


def over(processes: int, policy: Path, out: Path, stage: str) -> list[dict[str, Any]]:
    """What each process of critic_rank.py writes."""
    out.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = os.pathsep.join([str(RANK.parent.parent), str(RANK.parent.parent.parent), *filter(None, sys.path)])
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shared = os.environ | {"PYTHONPATH": paths, "PATH": tools, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    started = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
        with (out / f"log-{rank}").open("w") as log:
            command = [sys.executable, str(RANK), str(policy), str(out), stage]
            started.append(subprocess.Popen(command, env=shared | own, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=500) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0] * processes, "\n".join((out / f"log-{rank}").read_text()[-3000:] for rank in range(processes))
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def alone(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return over(1, policy, tmp_path_factory.mktemp("alone") / "out", "none")[0]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "kind"), [("none", "MULTI_CPU"), ("2", "DEEPSPEED"), ("3", "DEEPSPEED")])
def test_two_processes_fit_as_one_does(
    policy: Path, tmp_path: Path, alone: dict[str, Any], stage: str, kind: str
) -> None:
    if stage != "none" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed (extra `deepspeed`)")
    found = over(2, policy, tmp_path / "out", stage)

    assert [(one["world"], one["kind"]) for one in found] == [(2, kind)] * 2
    for one in found:
        for mine, reference in zip(one["figures"], alone["figures"], strict=True):
            assert mine == pytest.approx(reference, abs=1e-5)
        assert (one["resumed"], one["again"]) == (one["figures"][1], one["values"])
    values = [line for one in found for line in one["values"]]
    for line, reference in zip(values, alone["values"], strict=True):
        assert line == pytest.approx(reference, abs=1e-5)
