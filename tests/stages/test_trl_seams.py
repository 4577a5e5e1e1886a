"""What the stages rely on in TRL 1.16, the Trainer below it and accelerate: an upgrade that moves it fails here."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import GradientState
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper
from datasets import Dataset
from stage_runs import SmallRun
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, Trainer
from transformers.generation import ContinuousBatchingConfig, ContinuousMixin
from transformers.generation.continuous_batching.requests import GenerationOutput
from trl import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import FusedCausalLMOutput, use_adapter

from qwq_rl.inference.engines import vllm_sampler
from qwq_rl.inference.sampler import SamplingRequest

ON_CPU: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 1, "save_strategy": "no"}
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def start(small: SmallRun) -> Path:
    return small.stage("0_cold_start").final


def no_reward(**columns: Any) -> list[float | None]:
    raise AssertionError("nothing here is rewarded")


def grpo(start: Path, folder: Path, **changes: Any) -> Any:
    """A trainer made with the arguments that `PolicyTrainer` makes its base with."""
    arguments: dict[str, Any] = {
        **ON_CPU,
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 1,
        "num_generations": 2,
        "max_completion_length": 8,
        "temperature": TEMPERATURE,
        "shuffle_dataset": False,
        "remove_unused_columns": False,
        "log_completions": False,
        "vllm_importance_sampling_correction": False,
        **changes,
    }
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(start),
        reward_funcs=no_reward,
        args=GRPOConfig(**arguments),
        train_dataset=Dataset.from_list([{"prompt": ""}]),
        processing_class=AutoTokenizer.from_pretrained(start),
        peft_config=None,
    )


@pytest.fixture(scope="module")
def trainer(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """With a reference, as `beta` above 0 makes it."""
    return grpo(start, tmp_path_factory.mktemp("grpo"), beta=0.1)


# --- signatures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (GRPOTrainer, "_generate_single_turn",
         ["self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"]),
        (GRPOTrainer, "_save_checkpoint", ["self", "model", "trial"]),
        (GRPOTrainer, "_load_optimizer_and_scheduler", ["self", "checkpoint"]),
        (GRPOTrainer, "training_step", ["self", "model", "inputs", "num_items_in_batch"]),
        (GRPOTrainer, "get_train_dataloader", ["self"]),
        (GRPOTrainer, "_clip_grad_norm", ["self", "model"]),
        (Trainer, "training_step", ["self", "model", "inputs", "num_items_in_batch"]),
        (Trainer, "get_train_dataloader", ["self"]),
        (Trainer, "_clip_grad_norm", ["self", "model"]),
        (Trainer, "_save_checkpoint", ["self", "model", "trial"]),
        (Trainer, "_load_optimizer_and_scheduler", ["self", "checkpoint"]),
        (SFTTrainer, "create_optimizer", ["self", "model"]),
        (RewardTrainer, "create_optimizer", ["self", "model"]),
        (GradientState, "_set_sync_gradients", ["self", "sync_gradients"]),
        (DeepSpeedEngineWrapper, "backward", ["self", "loss", "sync_gradients", "kwargs"]),
    ],
)  # fmt: skip
def test_what_is_overridden_or_called_has_its_parameters(owner: Any, name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (GRPOTrainer.__init__,
         {"model", "reward_funcs", "args", "train_dataset", "processing_class", "peft_config"}),
        (SFTTrainer.__init__, {"model", "args", "train_dataset", "processing_class", "callbacks", "peft_config"}),
        (RewardTrainer.__init__, {"model", "args", "train_dataset", "processing_class", "callbacks", "peft_config"}),
        (unwrap_model_for_generation, {"model", "accelerator", "gather_deepspeed3_params"}),
        (use_adapter, {"model", "adapter_name"}),
        (ContinuousMixin.generate_batch,
         {"inputs", "generation_config", "continuous_batching_config", "kwargs"}),
        (ContinuousBatchingConfig.__init__, {"return_logprobs", "seed", "auto_switch_to_flash"}),
        (GenerationOutput.__init__, {"generated_tokens", "logprobs", "error"}),
    ],
)  # fmt: skip
def test_what_is_called_by_name_takes_these_arguments(function: Any, parameters: set[str]) -> None:
    assert parameters <= set(inspect.signature(function).parameters)


# --- the trainer ------------------------------------------------------------------------------------------------------


def test_the_trainer_has_the_attributes_that_an_rl_stage_reads(trainer: Any) -> None:
    assert (trainer.use_vllm, trainer.use_transformers_continuous_batching) == (False, False)
    assert trainer.args.ds3_gather_for_generation is True
    assert trainer.state.global_step == 0
    assert trainer.model_wrapped is not None
    assert trainer.generation_config.temperature == TEMPERATURE


def test_what_is_put_into_the_metrics_of_training_is_logged(trainer: Any) -> None:
    trainer._metrics["train"]["math/reward"] += [0.5, 1.0]
    logs: dict[str, Any] = {"loss": 1.0}
    trainer.model.train()

    trainer.log(logs)

    assert logs["math/reward"] == 0.75
    assert trainer._metrics["train"] == {}


def test_there_is_a_reference_only_where_there_is_a_weight_for_it(trainer: Any, start: Path, tmp_path: Path) -> None:
    reference = dict(trainer.ref_model.named_parameters())

    assert all(torch.equal(value, reference[name]) for name, value in trainer.model.named_parameters())
    assert all(value is not reference[name] for name, value in trainer.model.named_parameters())
    assert not trainer.ref_model.training
    assert grpo(start, tmp_path, beta=0.0).ref_model is None


def test_continuous_batching_comes_with_its_configuration(start: Path, tmp_path: Path) -> None:
    block = {"use_transformers_continuous_batching": True, "transformers_continuous_batching_config": {"page_size": 32}}

    made = grpo(start, tmp_path, **block)

    assert made.use_transformers_continuous_batching is True
    assert type(made.continuous_batching_config) is ContinuousBatchingConfig
    assert made.continuous_batching_config.page_size == 32


def test_generation_takes_token_ids_and_returns_them_with_what_log_probabilities_there_are(trainer: Any) -> None:
    """Called for vLLM alone; without it, it is transformers' generation, which gives none."""
    prompts = [[60, 61], [60, 61], [62], [62]]

    ids, logprobs = trainer._generate_single_turn(prompts, None, {}, 2)

    assert [1 <= len(one) <= 8 for one in ids] == [True] * 4
    assert all(type(token) is int for one in ids for token in one)
    assert logprobs is None


def test_what_it_returns_becomes_groups_of_completions(trainer: Any) -> None:
    order = SamplingRequest([[60, 61], [62]], [0, 1], samples=2, max_tokens=3, temperature=TEMPERATURE, seed=0)

    groups = vllm_sampler(trainer, trainer.processing_class)(order)

    assert [len(group) for group in groups] == [2, 2]
    for one in (one for group in groups for one in group):
        assert 1 <= len(one.token_ids) == len(one.logprobs) <= 3
        assert one.finish == ("stop" if one.token_ids[-1] == trainer.processing_class.eos_token_id else "length")
        assert all(math.isnan(value) for value in one.logprobs)


def test_gradients_are_synchronised_when_the_flag_says_so(trainer: Any) -> None:
    accelerator = trainer.accelerator
    for flag in (False, True):
        accelerator.gradient_state._set_sync_gradients(flag)
        assert accelerator.sync_gradients is flag
    source = inspect.getsource(type(accelerator).backward)
    assert "deepspeed_engine_wrapped.backward(loss, sync_gradients=self.sync_gradients" in source


def test_a_step_is_one_call_of_training_step_and_one_of_clipping(start: Path, tmp_path: Path) -> None:
    """Its clipping sees the gradients before the optimiser does, and a gradient that it takes away changes nothing."""
    calls = []

    class Stepper(GRPOTrainer):
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader([{"update": 0}, {"update": 1}])  # type: ignore[arg-type]

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
            calls.append(("step", int(inputs["update"])))
            loss = sum(parameter.square().sum() for parameter in model.parameters())
            self.accelerator.backward(loss)
            return loss.detach()

        def _clip_grad_norm(self, model: Any) -> Any:
            calls.append(("clip", self.state.global_step))
            norm = super()._clip_grad_norm(model)
            if self.state.global_step == 1:
                weights.append({name: value.detach().clone() for name, value in model.named_parameters()})
                model.zero_grad(set_to_none=True)
            return norm

    weights: list[dict[str, torch.Tensor]] = []
    plain = grpo(start, tmp_path, max_steps=2)
    made: Any = Stepper(
        model=plain.model, reward_funcs=no_reward, args=plain.args,
        train_dataset=plain.train_dataset, processing_class=plain.processing_class,
    )  # fmt: skip
    before = {name: value.detach().clone() for name, value in made.model.named_parameters()}

    made.train()

    assert calls == [("step", 0), ("clip", 0), ("step", 1), ("clip", 1)]
    assert any(not torch.equal(before[name], value) for name, value in weights[0].items())
    assert all(torch.equal(weights[0][name], value) for name, value in made.model.named_parameters())


# --- the fused head ---------------------------------------------------------------------------------------------------


def test_the_fused_head_has_the_fields_that_ours_has(trainer: Any) -> None:
    output = trainer.model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[-100, 6, 7]]), fused_lm_head=True)

    assert type(output) is FusedCausalLMOutput
    assert set(inspect.signature(FusedCausalLMOutput).parameters) == {
        "loss", "log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask", "aux_loss",
    }  # fmt: skip


def test_the_fused_head_scores_right_padded_rows_as_a_plain_forward_does(trainer: Any) -> None:
    """Without an attention mask: what a row's padding holds reaches none of the tokens before it."""
    rows = [[5, 6, 7, 8, 9], [10, 11, 12, 0, 0]]
    ids = torch.tensor(rows)
    labels = torch.tensor([[-100, -100, 7, 8, 9], [-100, 11, 12, -100, -100]])
    trainer.model.eval()

    with torch.no_grad():
        output = trainer.model(input_ids=ids, labels=labels, fused_lm_head=True)
        logs = [
            (trainer.model(torch.tensor([row])).logits[0] / TEMPERATURE).log_softmax(-1)
            for row in (rows[0], rows[1][:3])
        ]

    for row, (said, expected) in enumerate(zip(output.log_probs, logs, strict=True)):
        for place in range(4):
            token = int(labels[row, place + 1])
            wanted = 0.0 if token == -100 else float(expected[place, token])
            assert float(said[place]) == pytest.approx(wanted, abs=1e-5)
            if token != -100:
                entropy = -(expected[place].exp() * expected[place]).sum()
                assert float(output.entropy[row, place]) == pytest.approx(float(entropy), abs=1e-4)


# --- the supervised trainers ------------------------------------------------------------------------------------------


def test_the_sft_trainer_takes_rows_that_are_tokenized_already(start: Path, tmp_path: Path) -> None:
    rows = [
        {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]},
        {"input_ids": [5, 6, 9], "labels": [-100, 6, 9]},
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
    from qwq_rl.run_folder.files import read_lines

    for stage, names in (("1_control", ("accuracy", "entropy")), ("2_reward_model", ("accuracy", "margin"))):
        assert all(line[name] is not None for line in read_lines(small.stage(stage).metrics) for name in names)
