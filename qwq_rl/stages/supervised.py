"""Builds the trainers of the supervised kinds: `sft` (conversations) and `reward_model` (preference pairs)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from qwq_rl.config.stages import RewardModelRecipe, SftRecipe
from qwq_rl.data.chat import render_answered, render_demonstration
from qwq_rl.data.row import Row
from qwq_rl.errors import RowError
from qwq_rl.inference.fast_qwen.training_head import use_compact_head
from qwq_rl.stages.callbacks import Evaluator, Line, Recorder
from qwq_rl.stages.context import (
    StageContext,
    batch_arguments,
    load_model,
    load_pretrained,
    ordered_rows,
    shared_arguments,
)
from qwq_rl.stages.lora import adapter_of, without_wrapper
from qwq_rl.stages.muon import Muon, parameter_groups


class _OwnOptimizer:
    """Gives a Trainer the recipe's optimizer if it is Muon; otherwise the Trainer creates its own."""

    recipe: SftRecipe | RewardModelRecipe

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Create the optimizer; the trainer calls this once."""
        update = self.recipe.update
        if update.matrix_lr is None:
            return super().create_optimizer(*args, **kwargs)  # type: ignore[misc, no-any-return]
        model = self.model  # type: ignore[attr-defined]
        optimizer = Muon(parameter_groups(model, update.lr, update.matrix_lr, update.weight_decay))
        vars(self)["optimizer"] = optimizer  # an attribute of the trainer, which this class does not declare
        return optimizer


class _SftTrainer(_OwnOptimizer, SFTTrainer):
    pass


class _RewardTrainer(_OwnOptimizer, RewardTrainer):
    pass


def build_sft(recipe: SftRecipe, context: StageContext, evaluator: Evaluator) -> SFTTrainer:
    """Return a trainer that fine-tunes on the last assistant message of every row, thinking included."""
    # Before the model: under ZeRO-3, transformers shards every model loaded after these arguments exist.
    config = SFTConfig(**_arguments(recipe, context) | {"completion_only_loss": True, "packing": False})
    model, tokenizer = load_model(recipe.model, context, recipe.seed)
    rows = ordered_rows(recipe.data, recipe.seed, recipe.batch, recipe.steps)
    _SftTrainer.recipe = recipe
    trainer = _SftTrainer(
        model,
        args=config,
        train_dataset=_tokenized(rows, lambda distinct: _sft_tokens(tokenizer, distinct, recipe.max_length)),
        processing_class=tokenizer,
        callbacks=[_recorder(recipe, context, evaluator, _sft_details)],
        peft_config=adapter_of(recipe.model.lora, model, "CAUSAL_LM", recipe.seed),
    )
    if not torch.cuda.is_available():
        use_compact_head(without_wrapper(trainer.accelerator.unwrap_model(trainer.model)))
    return trainer


def build_reward_model(recipe: RewardModelRecipe, context: StageContext) -> RewardTrainer:
    """Return a trainer of a scalar head on the stage's model, with the Bradley-Terry loss on final answers."""
    tokenizer = load_pretrained(AutoTokenizer, recipe.model, context)
    config = RewardConfig(**_arguments(recipe, context))  # before the model, as above
    torch.manual_seed(recipe.seed)  # the new head gets random weights
    model = load_pretrained(
        AutoModelForSequenceClassification,
        recipe.model,
        context,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        dtype="auto",
    )
    rows = ordered_rows(recipe.data, recipe.seed, recipe.batch, recipe.steps)
    _RewardTrainer.recipe = recipe
    return _RewardTrainer(
        model,
        args=config,
        train_dataset=_tokenized(rows, lambda distinct: _pair_tokens(tokenizer, distinct, recipe.max_length)),
        processing_class=tokenizer,
        callbacks=[_recorder(recipe, context, None, _reward_details)],
        peft_config=adapter_of(recipe.model.lora, model, "SEQ_CLS", recipe.seed),
    )


def _arguments(recipe: SftRecipe | RewardModelRecipe, context: StageContext) -> dict[str, Any]:
    return {
        **shared_arguments(recipe, context),
        **batch_arguments(recipe.batch, recipe.update.micro_batch, context, "batch"),
        "weight_decay": recipe.update.weight_decay,
        "train_sampling_strategy": "sequential",  # `ordered_rows` already has the order
        "adam_beta2": 0.95,
        "max_length": None,
    } | dict(recipe.trl)


def _recorder(
    recipe: SftRecipe | RewardModelRecipe, context: StageContext, evaluator: Evaluator | None, details: Any
) -> Recorder:
    evaluate = recipe.evaluate if isinstance(recipe, SftRecipe) else None
    return Recorder(
        context.folder,
        recipe.kind,
        context.clock,
        context.stop,
        recipe.batch,
        details,
        evaluate,
        evaluator,
        recipe.checkpoint.keep,
    )


def _sft_details(logs: Mapping[str, float]) -> Line:
    return {"accuracy": logs.get("mean_token_accuracy"), "entropy": logs.get("entropy")}


def _reward_details(logs: Mapping[str, float]) -> Line:
    return {"accuracy": logs.get("accuracy"), "margin": logs.get("margin")}


def _tokenized(rows: list[Row], tokens: Callable[[list[Row]], list[dict[str, list[int]]]]) -> Dataset:
    """Return a dataset with one entry for each of `rows`; a row that comes several times is tokenized once."""
    # By identity: every epoch of a source has the same row objects.
    distinct = {id(row): row for row in rows}
    places = {row_identity: place for place, row_identity in enumerate(distinct)}
    return Dataset.from_list(tokens(list(distinct.values()))).select([places[id(row)] for row in rows])


def _sft_tokens(tokenizer: PreTrainedTokenizerBase, rows: list[Row], longest: int) -> list[dict[str, list[int]]]:
    """Return token ids and labels. Without labels, TRL would compute them again each time that a row comes."""
    texts = [render_demonstration(tokenizer, row) for row in rows]
    prompts, completions = (_ids(tokenizer, list(side)) for side in zip(*texts, strict=True))
    for row, prompt, completion in zip(rows, prompts, completions, strict=True):
        _check_length(row, len(prompt) + len(completion), longest)
    # Tokens with the label -100 have no loss.
    return [
        {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _pair_tokens(tokenizer: PreTrainedTokenizerBase, rows: list[Row], longest: int) -> list[dict[str, list[int]]]:
    sides = ("chosen", "rejected")
    chosen, rejected = (_ids(tokenizer, [render_answered(tokenizer, row, row[side]) for row in rows]) for side in sides)
    for row, chosen_ids, rejected_ids in zip(rows, chosen, rejected, strict=True):
        _check_length(row, max(len(chosen_ids), len(rejected_ids)), longest)
    return [
        {"chosen_ids": chosen_ids, "rejected_ids": rejected_ids}
        for chosen_ids, rejected_ids in zip(chosen, rejected, strict=True)
    ]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    # The chat template has written all special tokens already.
    token_ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return token_ids


def _check_length(row: Row, length: int, longest: int) -> None:
    if length > longest:
        raise RowError(
            f"row {row['id']} has {length} tokens, more than max_length {longest}: raise it, or drop the row"
        )
