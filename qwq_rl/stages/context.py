"""What every stage kind needs besides its recipe: folders, models, rows, and the shared arguments of TRL's trainers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from qwq_rl.config.blocks import DataSource, ModelSource, RlUpdate, SupervisedUpdate
from qwq_rl.config.stages import Stage
from qwq_rl.data.order import mix
from qwq_rl.data.row import Row
from qwq_rl.data.sources import load_rows
from qwq_rl.errors import UserError
from qwq_rl.run_folder.files import RunFolder, StageFolder
from qwq_rl.stages.callbacks import StopRequest
from qwq_rl.training.clock import Clock


@dataclass(frozen=True)
class StageContext:
    """The surroundings of one process of one stage."""

    run: RunFolder
    folder: StageFolder
    recipe_folder: Path
    world_size: int
    resume: Path | None
    """The checkpoint to resume from."""
    clock: Clock
    stop: StopRequest

    def locate(self, source: str) -> str:
        """Return where a model is: the result of a stage of this run, a folder, or a Hub id.

        Raises UserError if `source` is a stage of this recipe folder that has not finished.
        """
        stage = self.run.stage(source)
        if stage.final.is_dir():
            return str(stage.final)
        if (self.recipe_folder / f"{source}.yaml").exists():
            raise UserError(
                f"{self.folder.name} starts from stage {source}, which has not finished in {self.run.path}: "
                f"run `qwq-rl run {self.recipe_folder}`, or that stage first"
            )
        return source


def load_model(source: ModelSource, context: StageContext, seed: int) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return the causal model and the tokenizer that a stage starts from."""
    if source.new == "tiny":
        from qwq_rl.data.tiny.model import build_model, build_tokenizer

        tokenizer = build_tokenizer()
        return build_model(tokenizer, seed), tokenizer
    model = load_pretrained(AutoModelForCausalLM, source, context, dtype="auto")
    return model, load_pretrained(AutoTokenizer, source, context)


def load_pretrained(auto_class: Any, source: ModelSource, context: StageContext, **arguments: Any) -> Any:
    """Load what a stage starts from with `auto_class` of transformers. Raises UserError if that fails."""
    try:
        return auto_class.from_pretrained(context.locate(str(source.from_)), **arguments)
    except OSError as error:
        raise UserError(
            f"cannot load the model `{source.from_}` that {context.folder.name} starts from: {error}"
        ) from None


def load_sources(sources: Sequence[DataSource], seed: int) -> list[tuple[list[Row], float]]:
    """Return the rows and the weight of each source of a recipe."""
    return [
        (load_rows(source.source, mapper=source.mapper, limit=source.limit, seed=seed), source.weight)
        for source in sources
    ]


def ordered_rows(sources: Sequence[DataSource], seed: int, per_update: int, updates: int) -> list[Row]:
    """Return the rows of all updates, in the order training sees them."""
    return mix(load_sources(sources, seed), seed, per_update, updates)


def per_device(total: int, context: StageContext, what: str) -> int:
    """Return the share of `total` for each process. Raises UserError if it cannot be split evenly."""
    if total % context.world_size:
        raise UserError(f"{what} is {total}, which {context.world_size} processes cannot share evenly")
    return total // context.world_size


def batch_arguments(total: int, micro_batch: int | None, context: StageContext, what: str) -> dict[str, int]:
    """Return TRL's arguments that split `total` rows an update over processes and micro-batches.

    Raises UserError if they cannot be split evenly.
    """
    share = per_device(total, context, what)
    size = micro_batch or share
    if share % size:
        raise UserError(f"update.micro_batch is {size}, which does not divide a process's share of an update, {share}")
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": share // size}


def shared_arguments(recipe: Stage, context: StageContext) -> dict[str, Any]:
    """Return the arguments common to SFTConfig, RewardConfig and GRPOConfig, before the recipe's own `trl` block."""
    update: RlUpdate | SupervisedUpdate = recipe.update
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(context.folder.checkpoints),
        "max_steps": recipe.steps,
        "seed": recipe.seed,
        "learning_rate": update.lr,
        "lr_scheduler_type": "constant_with_warmup" if update.schedule == "constant" else update.schedule,
        "warmup_steps": update.warmup,
        "max_grad_norm": update.gradient_clip,
        "save_strategy": "steps",
        "save_steps": recipe.checkpoint.every,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "report_to": list(recipe.track) or "none",
        "run_name": f"{context.run.path.name}/{context.folder.name}",
        "disable_tqdm": True,
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "gradient_checkpointing": on_gpu,
        "dataloader_pin_memory": on_gpu,
        "ddp_find_unused_parameters": False,
        "log_level": "error",
    }
