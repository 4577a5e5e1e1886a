"""Leaving out what teaches nothing changes neither the loss nor its gradient, in TRL's own loss function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from qwq_rl.objective.batches import by_length, live_rows
from qwq_rl.stages.rl import ALGORITHMS, VerifiedGRPOTrainer
from qwq_rl.tiny.model import build_model
from qwq_rl.tiny.tokenizer import build_tokenizer

Batch = dict[str, torch.Tensor]
PROMPTS, COMPLETIONS = (7, 3, 5, 4, 6, 2, 7, 3), (4, 9, 2, 6, 1, 9, 3, 5)
"""Lengths in the batch; its longest prompt and completions belong to rows without an advantage."""
ADVANTAGES = (0.0, 0.0, 1.3, -0.7, 0.4, 0.0, 0.0, -1.1)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def no_reward(completions: list[str], **_: Any) -> list[float | None]:
    return [0.0] * len(completions)


def trainer_of(algorithm: str, tokenizer: PreTrainedTokenizerFast, folder: Path, **more: Any) -> Any:
    arguments: dict[str, Any] = {
        **ALGORITHMS[algorithm],
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 12,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        **more,
    }
    trainer: Any = GRPOTrainer(
        build_model(tokenizer, seed=0),
        reward_funcs=no_reward,
        args=GRPOConfig(**arguments),
        train_dataset=Dataset.from_list([{"prompt": "1+1"}] * 8),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def padded(lengths: tuple[int, ...], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(lengths)
    ids, mask = torch.randint(10, 500, (len(lengths), longest)), torch.ones(len(lengths), longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        empty = slice(0, longest - length) if side == "left" else slice(length, longest)
        ids[row, empty], mask[row, empty] = 0, 0
    return ids, mask


def batch_of(trainer: Any, advantages: tuple[float, ...] = ADVANTAGES) -> Batch:
    """As TRL's, sampled by a policy so far from this one that many of the ratios are clipped."""
    torch.manual_seed(3)
    prompts, prompt_mask = padded(PROMPTS, "left")
    completions, completion_mask = padded(COMPLETIONS, "right")
    with torch.no_grad():
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([prompts, completions], 1),
            torch.cat([prompt_mask, completion_mask], 1),
            completions.shape[1],
        )
    return {
        "prompt_ids": prompts,
        "prompt_mask": prompt_mask,
        "completion_ids": completions,
        "completion_mask": completion_mask,
        "advantages": torch.tensor(advantages),
        "old_per_token_logps": logps + 0.3 * torch.randn_like(logps),
        "num_items_in_batch": completion_mask.sum(),
    }


def loss_and_gradient(trainer: Any, batch: Batch) -> tuple[float, torch.Tensor]:
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_loss_and_gradient_of_an_algorithm_stay_what_they_were(
    algorithm: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    trainer = trainer_of(algorithm, tokenizer, tmp_path)
    batch = batch_of(trainer)

    loss, gradient = loss_and_gradient(trainer, batch)
    live = live_rows(batch, trainer.loss_type)
    live_loss, live_gradient = loss_and_gradient(trainer, live)

    assert gradient.norm() > 0.01
    assert live["completion_ids"].shape == (4, 6)
    assert live_loss == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(live_gradient, gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_parts_of_like_length_have_the_loss_and_gradient_of_the_whole(
    algorithm: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    trainer = trainer_of(algorithm, tokenizer, tmp_path)
    trainer.beta = 0.1
    batch = batch_of(trainer)
    batch["ref_per_token_logps"] = batch["old_per_token_logps"] + 0.2

    loss, gradient = loss_and_gradient(trainer, batch)
    parts = by_length(batch, trainer.loss_type, 3)
    losses = [(share * trainer._compute_loss(trainer.model, part)) for share, part in parts]
    trainer.model.zero_grad()
    torch.stack(losses).sum().backward()
    found = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])

    assert [part["prompt_ids"].shape[0] for _, part in parts] == [3, 3, 2]
    assert parts[0][1]["prompt_ids"].shape[1] < 7
    assert float(sum(losses)) == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(found, gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_rows_without_any_advantage_have_no_loss_and_no_gradient(
    algorithm: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    trainer = trainer_of(algorithm, tokenizer, tmp_path)

    live = live_rows(batch_of(trainer, (0.0,) * 8), trainer.loss_type)
    loss, gradient = loss_and_gradient(trainer, live)

    assert live["prompt_ids"].shape[0] == 1
    assert loss == 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("more", [{}, {"beta": 0.01}, {"entropy_coef": 0.01}, {"top_entropy_quantile": 0.5}])
def test_the_trainer_of_an_rl_stage_leaves_rows_in_where_another_term_needs_them(
    more: dict[str, float], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    trainer = trainer_of("grpo", tokenizer, tmp_path, **{name: more[name] for name in more if name != "beta"})
    trainer.beta = more.get("beta", 0.0)  # its reference model would be read from a folder, and is not needed here
    batch = batch_of(trainer)
    batch["ref_per_token_logps"] = batch["old_per_token_logps"]
    loss, gradient = loss_and_gradient(trainer, batch)
    dropped, _ = loss_and_gradient(trainer, live_rows(batch, "grpo"))

    trainer.__class__ = VerifiedGRPOTrainer
    found, found_gradient = loss_and_gradient(trainer, batch)

    assert found == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(found_gradient, gradient, atol=1e-6, rtol=1e-4)
    assert (dropped == pytest.approx(loss, abs=1e-6)) is (more == {})


@given(st.lists(st.sampled_from([0.0, 0.0, 0.5, -1.0]), min_size=1, max_size=8))
def test_what_is_left_are_the_rows_with_an_advantage_and_their_tokens(advantages: list[float]) -> None:
    torch.manual_seed(0)
    rows = len(advantages)
    prompts, prompt_mask = padded(PROMPTS[:rows], "left")
    completions, completion_mask = padded(COMPLETIONS[:rows], "right")
    batch = {
        "prompt_ids": prompts,
        "prompt_mask": prompt_mask,
        "completion_ids": completions,
        "completion_mask": completion_mask,
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": completion_mask.sum(),
    }
    given_before = {name: value.clone() for name, value in batch.items()}

    live = live_rows(batch, "dapo")

    chosen = [row for row, advantage in enumerate(advantages) if advantage] or [0]
    for row, place in enumerate(chosen):
        for part in ("prompt", "completion"):
            mask = live[f"{part}_mask"][row].bool()
            original = batch[f"{part}_mask"][place].bool()
            assert live[f"{part}_ids"][row][mask].tolist() == batch[f"{part}_ids"][place][original].tolist()
    assert live["advantages"].tolist() == [advantages[place] for place in chosen]
    assert live["prompt_ids"].shape[1] == max(PROMPTS[place] for place in chosen)
    assert live["completion_ids"].shape[1] == max(COMPLETIONS[place] for place in chosen)
    assert live["num_items_in_batch"] == batch["num_items_in_batch"]
    for name, value in given_before.items():
        assert torch.equal(batch[name], value), f"{name} was changed in place"
