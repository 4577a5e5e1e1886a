"""What the stages take for granted of TRL 1.16 and the Trainer below it: an upgrade that moves it fails here."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from stage_runs import SmallRun
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, Trainer
from trl import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput, RepeatSampler

ON_CPU: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 1, "save_strategy": "no"}
REWARDS: list[float | None] = [1.0, None, 0.0, 0.0, None, None, None, None]
"""Of two groups of four."""


@pytest.fixture(scope="module")
def start(small: SmallRun) -> Path:
    return small.stage("0_cold_start").final


class Spy:
    """A rollout function and a reward function that note what they are given."""

    def __init__(self, finish: list[str]) -> None:
        self.prompts: list[str] = []
        self.finish, self.rewarded = finish, list[dict[str, Any]]()

    def roll(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        self.prompts = list(prompts)
        count = len(prompts)
        ids = [[40 + place, 50, 2] for place in range(count)]
        logprobs = [[-0.1, -0.2, -0.3]] * count
        return {"prompt_ids": [[60, 61]] * count, "completion_ids": ids, "logprobs": logprobs, "finish": self.finish}

    def reward(self, **columns: Any) -> list[float | None]:
        self.rewarded.append(columns)
        return REWARDS


def grpo(start: Path, folder: Path, spy: Spy, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        **ON_CPU,
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "shuffle_dataset": False,
        "remove_unused_columns": False,
        "scale_rewards": "none",
        **changes,
    }
    return GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(start),
        reward_funcs=spy.reward,
        args=GRPOConfig(**arguments),
        train_dataset=Dataset.from_list([{"prompt": f"{place}+1", "row": place} for place in range(6)]),
        processing_class=AutoTokenizer.from_pretrained(start),
        rollout_func=spy.roll,
    )


@pytest.fixture(scope="module")
def spied(start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Spy, Any, dict[str, Any]]:
    """A round of rollouts in TRL's own trainer: who was called with what, and what came of it."""
    spy = Spy([f"finish {place}" for place in range(8)])
    trainer = grpo(start, tmp_path_factory.mktemp("grpo"), spy)
    trainer.model.train()
    return spy, trainer, trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))


Spied = tuple[Spy, Any, dict[str, Any]]


def test_a_rollout_function_gets_every_prompt_as_often_as_it_is_to_be_answered(spied: Spied) -> None:
    assert spied[0].prompts == ["0+1"] * 4 + ["1+1"] * 4


def test_a_reward_function_gets_token_ids_columns_and_what_the_rollout_added(spied: Spied) -> None:
    (columns,) = spied[0].rewarded

    assert columns["completion_ids"] == [[40 + place, 50, 2] for place in range(8)]
    assert columns["row"] == [0] * 4 + [1] * 4
    assert columns["finish"] == spied[0].finish
    assert columns["prompts"] == spied[0].prompts
    assert columns["trainer_state"] is spied[1].state


def test_a_row_without_a_reward_has_no_advantage_and_no_part_in_the_baseline(spied: Spied) -> None:
    assert spied[2]["advantages"].tolist() == pytest.approx([2 / 3, 0, -1 / 3, -1 / 3, 0, 0, 0, 0])


def test_the_batch_of_a_round_has_the_columns_that_the_loss_reads(spied: Spied) -> None:
    batch = spied[2]

    assert set(batch) == {
        "prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch",
        "sampling_per_token_logps",
    }  # fmt: skip
    assert batch["advantages"].shape == (8,)
    assert batch["num_items_in_batch"].dim() == 0
    assert batch["prompt_ids"].shape == (8, 2)
    assert batch["completion_ids"].shape == batch["completion_mask"].shape == (8, 3)


def test_rounds_of_several_updates_carry_the_policys_own_log_probabilities(start: Path, tmp_path: Path) -> None:
    trainer = grpo(start, tmp_path, Spy(["stop"] * 8), steps_per_generation=2, per_device_train_batch_size=4)
    trainer.model.train()

    batch = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))

    assert batch["old_per_token_logps"].shape == (8, 3)


def test_the_loss_takes_one_advantage_a_row_or_one_a_token(spied: Spied) -> None:
    _, trainer, batch = spied
    trainer.current_gradient_accumulation_steps = 1
    torch.manual_seed(0)
    rows = torch.randn(8)

    per_row = trainer._compute_loss(trainer.model, {**batch, "advantages": rows})
    per_token = trainer._compute_loss(trainer.model, {**batch, "advantages": rows[:, None].expand(8, 3)})

    assert per_row.item() == pytest.approx(per_token.item(), abs=1e-6)
    assert per_row.item() != 0


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (GRPOTrainer, "_generate_and_score_completions", ["self", "inputs"]),
        (GRPOTrainer, "_compute_loss", ["self", "model", "inputs"]),
        (GRPOTrainer, "_get_train_sampler", ["self", "dataset"]),
        (GRPOTrainer, "_save_checkpoint", ["self", "model", "trial"]),
        (GRPOTrainer, "_load_optimizer_and_scheduler", ["self", "checkpoint"]),
        (Trainer, "_load_optimizer_and_scheduler", ["self", "checkpoint"]),
        (SFTTrainer, "create_optimizer", ["self", "model"]),
        (RewardTrainer, "create_optimizer", ["self", "model"]),
    ],
)
def test_what_the_stages_override_has_its_parameters(owner: Any, name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


def test_the_trainer_has_the_attributes_that_an_rl_stage_reads(spied: Spied) -> None:
    trainer = spied[1]

    assert (trainer.beta, trainer._entropy_bonus_enabled, trainer.aux_loss_enabled) == (0.0, False, False)
    assert (trainer.top_entropy_quantile, trainer.loss_type, trainer.num_iterations) == (1.0, "dapo", 1)
    assert (trainer._step, trainer._buffered_inputs) == (0, None)
    assert trainer._metrics["train"] is not None
    assert trainer.args.ds3_gather_for_generation is True
    assert trainer.args.generation_batch_size == 8


def test_the_buffer_of_a_round_is_used_until_the_step_that_ends_it(start: Path, tmp_path: Path) -> None:
    spy = Spy(["stop"] * 8)
    trainer = grpo(start, tmp_path, spy, steps_per_generation=2, per_device_train_batch_size=4, num_iterations=2)
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))

    for step in range(5):
        trainer._step = step
        part = trainer._prepare_inputs(batch)
        assert part["advantages"].shape == (4,)
        assert len(spy.rewarded) == 1 + step // 4
    assert len(trainer._buffered_inputs) == 2


def test_rows_come_in_their_order_whole_rounds_at_a_time(spied: Spied) -> None:
    sampler = RepeatSampler(range(5), mini_repeat_count=2, batch_size=2, repeat_count=2, shuffle=False)

    assert list(sampler) == [0, 0, 1, 1] * 2 + [2, 2, 3, 3] * 2
    assert list(GRPOTrainer._get_train_sampler(spied[1])) == [row for row in range(6) for _ in range(4)]


def test_the_fused_head_gives_the_fields_that_ours_gives(spied: Spied) -> None:
    _, trainer, batch = spied
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)

    output: Any = trainer.model(input_ids=ids, labels=ids, fused_lm_head=True)

    assert type(output) is FusedCausalLMOutput
    assert set(inspect.signature(FusedCausalLMOutput).parameters) == {
        "loss", "log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask", "aux_loss",
    }  # fmt: skip
    assert {output[name].shape for name in ("log_probs", "entropy", "label_mask")} == {(8, 4)}


def test_none_is_logged_of_what_has_no_number(spied: Spied) -> None:
    trainer = spied[1]
    trainer._metrics["train"]["rewards/nothing/mean"] = [float("nan")]
    logs: dict[str, Any] = {"loss": 1.0}

    trainer.log(logs)

    assert logs["rewards/nothing/mean"] is None


def test_the_sft_trainer_takes_rows_that_are_tokenized_already(start: Path, tmp_path: Path) -> None:
    rows = [
        {"input_ids": [5, 6, 7, 8], "completion_mask": [0, 0, 1, 1]},
        {"input_ids": [5, 6, 9], "completion_mask": [0, 1, 1]},
    ]
    config = SFTConfig(**ON_CPU, output_dir=str(tmp_path), per_device_train_batch_size=2, completion_only_loss=True,
                       max_length=None, train_sampling_strategy="sequential")  # fmt: skip
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(start), args=config, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(start),
    )  # fmt: skip

    batch = next(iter(trainer.get_train_dataloader()))

    assert batch["labels"].tolist() == [[-100, -100, 7, 8], [-100, 6, 9, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_the_reward_trainer_takes_pairs_that_are_tokenized_already(start: Path, tmp_path: Path) -> None:
    rows = [{"chosen_ids": [5, 6, 7], "rejected_ids": [5, 8]}, {"chosen_ids": [9], "rejected_ids": [10, 11]}]
    config = RewardConfig(**ON_CPU, output_dir=str(tmp_path), per_device_train_batch_size=2, max_length=None,
                          train_sampling_strategy="sequential")  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(start)
    model = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    trainer = RewardTrainer(model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)

    batch = next(iter(trainer.get_train_dataloader()))

    pad = tokenizer.pad_token_id
    assert batch["input_ids"].tolist() == [[5, 6, 7], [9, pad, pad], [5, 8, pad], [10, 11, pad]]


def test_the_supervised_trainers_log_what_the_records_hold(small: SmallRun) -> None:
    from qwq_rl.runfolder import read_lines

    for stage, names in (("1_control", ("accuracy", "entropy")), ("2_reward_model", ("accuracy", "margin"))):
        assert all(line[name] is not None for line in read_lines(small.stage(stage).metrics) for name in names)
