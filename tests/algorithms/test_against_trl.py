"""The same numbers, and the same gradients, as TRL's own methods give for the same log-probabilities and rewards."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import entropy_from_logits

from qwq_rl.algorithms.advantages import advantages
from qwq_rl.algorithms.losses import Clip, cispo, clipped, entropy, kl_k3, row_weights, sapo, vespo
from qwq_rl.algorithms.named import ALGORITHMS, Algorithm
from qwq_rl.algorithms.ratios import importance_weights, log_ratios
from qwq_rl.data.tiny.model import build_model, build_tokenizer

ROWS, LONGEST = 8, 6
LENGTHS = torch.tensor([6, 1, 4, 2, 5, 6, 3, 1])
MASK = (torch.arange(LONGEST) < LENGTHS[:, None]).long()
NO_DOMAINS = torch.zeros(ROWS, dtype=torch.long)
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": ROWS,
    "num_generations": 4,
    "max_completion_length": 12,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "beta": 0.0,
}


def build(trainer: Any, config: Any, folder: Path) -> Any:
    tokenizer = build_tokenizer()
    built = trainer(
        build_model(tokenizer, seed=0),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config(output_dir=str(folder), **COMMON),
        train_dataset=Dataset.from_list([{"prompt": "1+1"}] * ROWS),
        processing_class=tokenizer,
    )
    built.model.train()
    return built


@pytest.fixture(scope="module")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build(GRPOTrainer, GRPOConfig, tmp_path_factory.mktemp("grpo"))


@pytest.fixture(scope="module")
def rloo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build(RLOOTrainer, RLOOConfig, tmp_path_factory.mktemp("rloo"))


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Log-probabilities of four policies near each other, and advantages of both signs."""
    chance = torch.Generator().manual_seed(seed)

    def near(base: torch.Tensor) -> torch.Tensor:
        return base + 0.4 * torch.randn(ROWS, LONGEST, generator=chance)

    old = -3 * torch.rand(ROWS, LONGEST, generator=chance)
    return {
        "old": old,
        "now": near(old),
        "reference": near(old),
        "sampler": near(old),
        "advantages": torch.randn(ROWS, generator=chance),
    }


def as_if(monkeypatch: pytest.MonkeyPatch, trainer: Any, logprobs: torch.Tensor) -> None:
    """The trainer's model gives these log-probabilities."""
    answer = (logprobs, torch.zeros_like(logprobs), None)
    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", lambda *_, **__: answer)


def loss_of_trl(
    monkeypatch: pytest.MonkeyPatch, trainer: Any, given: dict[str, torch.Tensor], parts: int, **more: torch.Tensor
) -> tuple[float, torch.Tensor]:
    """The loss over `parts` micro-batches of equally many rows, and its gradient by the log-probabilities."""
    now = given["now"].clone().requires_grad_()
    monkeypatch.setattr(trainer, "current_gradient_accumulation_steps", parts, raising=False)
    monkeypatch.setattr(trainer.args, "steps_per_generation", parts)
    ones = torch.ones(ROWS, 1, dtype=torch.long)
    batch = {
        "prompt_ids": ones,
        "prompt_mask": ones,
        "completion_ids": torch.ones(ROWS, LONGEST, dtype=torch.long),
        "completion_mask": MASK,
        "advantages": given["advantages"],
        "old_per_token_logps": given["old"],
        "old_logps": (given["old"] * MASK).sum(1),
        "ref_per_token_logps": given["reference"],
        **more,
    }
    total = torch.zeros(())
    for rows in torch.arange(ROWS).chunk(parts):
        as_if(monkeypatch, trainer, now[rows])
        part = {name: value[rows] for name, value in batch.items()}
        total = total + trainer._compute_loss(trainer.model, part | {"num_items_in_batch": MASK.sum()})
    total.backward()
    assert now.grad is not None
    return total.item(), now.grad


def loss_of_ours(
    algorithm: Algorithm, given: dict[str, torch.Tensor], beta: float = 0.0, corrected: bool = False, **more: Any
) -> tuple[float, torch.Tensor]:
    now = given["now"].clone().requires_grad_()
    ratios = log_ratios(now, given["old"], MASK, algorithm.level)
    factor = more.pop("factor", 1.0)
    each = algorithm.loss(now, ratios, given["advantages"].unsqueeze(1), MASK, **more) * factor
    each = each + beta * kl_k3(now, given["reference"], ratios if corrected else None)
    constant = ROWS * 12.0 if algorithm.weights == "constant" else None
    weights = row_weights(LENGTHS, NO_DOMAINS, torch.ones(1), algorithm.weights, constant)
    total = (weights.unsqueeze(1) * each * MASK).sum()
    total.backward()
    assert now.grad is not None
    return total.item(), now.grad


def same(found: tuple[float, torch.Tensor], expected: tuple[float, torch.Tensor]) -> None:
    assert expected[1].abs().max() > 1e-3
    assert found[0] == pytest.approx(expected[0], rel=1e-5, abs=1e-7)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-7)


KNOBS: dict[Any, dict[str, Any]] = {
    clipped: {"clip": Clip(0.1, 0.3)},
    cispo: {"ceiling": 1.3},
    sapo: {"positive": 1.1, "negative": 1.4},
    vespo: {"positive": (2.0, 3.0), "negative": (3.0, 2.0)},
}


def set_up(monkeypatch: pytest.MonkeyPatch, trainer: Any, name: str) -> Algorithm:
    algorithm = ALGORITHMS[name]
    for knob, value in {
        "loss_type": {"gspo": "grpo"}.get(name, name),
        "importance_sampling_level": algorithm.level,
        "epsilon_low": 0.1,
        "epsilon_high": 1.3 if algorithm.loss is cispo else 0.3,
    }.items():
        monkeypatch.setattr(trainer, knob, value)
    monkeypatch.setattr(trainer.args, "sapo_temperature_pos", 1.1)
    monkeypatch.setattr(trainer.args, "sapo_temperature_neg", 1.4)
    return algorithm


OF_GRPO_TRAINER = ["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "luspo", "cispo", "sapo", "vespo"]


@pytest.mark.parametrize(
    ("algorithm", "parts"),
    # TRL's BNPO takes the mean of each micro-batch, so that its loss depends on how rows are cut.
    [(name, parts) for name in OF_GRPO_TRAINER for parts in (1, 2, 4) if name != "bnpo" or parts == 1],
)
def test_loss_and_gradient_of_an_update(algorithm: str, parts: int, grpo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours_is = set_up(monkeypatch, grpo, algorithm)

    expected = loss_of_trl(monkeypatch, grpo, tensors(), parts)

    same(loss_of_ours(ours_is, tensors(), **KNOBS[ours_is.loss]), expected)


@pytest.mark.parametrize("algorithm", ["grpo", "gspo", "cispo", "sapo"])
@pytest.mark.parametrize("corrected", [False, True])
def test_the_penalty_for_leaving_the_reference(
    algorithm: str, corrected: bool, grpo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours_is = set_up(monkeypatch, grpo, algorithm)
    monkeypatch.setattr(grpo, "beta", 0.7)
    monkeypatch.setattr(grpo.args, "use_bias_correction_kl", corrected)

    expected = loss_of_trl(monkeypatch, grpo, tensors(), 2)

    same(loss_of_ours(ours_is, tensors(), beta=0.7, corrected=corrected, **KNOBS[ours_is.loss]), expected)


def test_the_second_clip(grpo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours_is = set_up(monkeypatch, grpo, "grpo")
    monkeypatch.setattr(grpo.args, "delta", 1.5)

    expected = loss_of_trl(monkeypatch, grpo, tensors(), 1)

    same(loss_of_ours(ours_is, tensors(), clip=Clip(0.1, 0.3, delta=1.5)), expected)


def test_the_loss_of_rloo(rloo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rloo, "epsilon_low", 0.1)
    monkeypatch.setattr(rloo, "epsilon_high", 0.3)

    expected = loss_of_trl(monkeypatch, rloo, tensors(), 1)

    same(loss_of_ours(ALGORITHMS["rloo"], tensors(), clip=Clip(0.1, 0.3)), expected)


REWARDS = [0.0, 1.0, math.nan, 0.3, 2.0, -1.0, 2.0, 7.0]


def scored(
    monkeypatch: pytest.MonkeyPatch, trainer: Any, rewards: list[float], given: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What the trainer makes of completions with these rewards."""
    ids = [[1] * int(length) for length in LENGTHS]
    sampled = [row[: int(length)].tolist() for row, length in zip(given["sampler"], LENGTHS, strict=True)]
    answer: tuple[Any, ...] = ([[1]] * ROWS, ids, None, ["x"] * ROWS, sampled, {}, None, [None] * ROWS)
    if isinstance(trainer, RLOOTrainer):
        answer = ([[1]] * ROWS, ids, ["x"] * ROWS)
    as_if(monkeypatch, trainer, given["old"])
    monkeypatch.setattr(trainer, "_generate", lambda *_: answer)
    monkeypatch.setattr(trainer, "_calculate_rewards", lambda *_: torch.tensor(rewards).unsqueeze(1))
    return trainer._generate_and_score_completions([{"prompt": "1+1"}] * ROWS)


def ours(rewards: list[float], algorithm: str) -> torch.Tensor:
    named = ALGORITHMS[algorithm]
    assert named.baseline is not None
    assert named.scale is not None
    groups = torch.arange(ROWS) // 4
    return advantages(torch.tensor(rewards), groups, NO_DOMAINS, baseline=named.baseline, scale=named.scale)


@pytest.mark.parametrize(("algorithm", "scale"), [("grpo", "group"), ("dr_grpo", "none")])
def test_advantages_of_groups(algorithm: str, scale: str, grpo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpo, "scale_rewards", scale)

    expected = scored(monkeypatch, grpo, REWARDS, tensors())["advantages"]

    torch.testing.assert_close(ours(REWARDS, algorithm), expected, rtol=1e-5, atol=1e-6)


def test_advantages_of_rloo(rloo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scored(monkeypatch, rloo, REWARDS, tensors())["advantages"]

    torch.testing.assert_close(ours(REWARDS, "rloo"), expected, rtol=1e-5, atol=1e-6)


def test_normalised_advantages_of_rloo_are_the_leave_one_out_baseline_scaled_by_domain(
    rloo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rloo, "normalize_advantages", True)

    expected = scored(monkeypatch, rloo, REWARDS, tensors())["advantages"]

    found = advantages(
        torch.tensor(REWARDS), torch.arange(ROWS) // 4, NO_DOMAINS, baseline="leave_one_out", scale="domain"
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("bounds", [(None, 1.5), (0.8, 1.5)])
def test_weights_for_the_gap_to_the_sampler(
    level: Any, mode: Any, bounds: tuple[float | None, float], grpo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    low, high = bounds
    given = tensors()
    given["sampler"][0, 2] = math.nan
    for name, value in {"mode": f"{level}_{mode}", "clip_min": low, "clip_max": high, "correction": True}.items():
        monkeypatch.setattr(grpo, f"vllm_importance_sampling_{name}", value)
    monkeypatch.setattr(grpo, "use_vllm", True)

    expected = scored(monkeypatch, grpo, REWARDS, given)["importance_sampling_ratio"]
    found = importance_weights(given["old"], given["sampler"], MASK, level=level, mode=mode, low=low, high=high)

    torch.testing.assert_close(found, expected.expand_as(found))


@pytest.mark.parametrize("algorithm", ["dapo", "vespo"])
def test_the_loss_with_a_gap_to_the_sampler(algorithm: str, grpo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours_is, given = set_up(monkeypatch, grpo, algorithm), tensors()
    monkeypatch.setattr(grpo, "use_vllm", True)
    monkeypatch.setattr(grpo, "vllm_importance_sampling_correction", True)
    weights = importance_weights(given["old"], given["sampler"], MASK, level="token", mode="truncate", high=1.5)

    expected = loss_of_trl(monkeypatch, grpo, given, 2, importance_sampling_ratio=weights)

    inside: dict[str, Any] = {"importance" if algorithm == "vespo" else "factor": weights}
    same(loss_of_ours(ours_is, given, **inside, **KNOBS[ours_is.loss]), expected)


def test_entropy() -> None:
    logits = 3 * torch.randn(2, 3, 11)

    torch.testing.assert_close(entropy(logits), entropy_from_logits(logits))
