"""LoRA (arXiv 2106.09685): the adapter that a recipe asks for, and the merged model.

Training does not change the base model; checkpoints save the adapter. The result of a stage is one merged model,
so a stage that starts from it needs no knowledge of LoRA.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, is_peft_model

from qwq_rl.config.blocks import Lora
from qwq_rl.errors import UserError
from qwq_rl.training.critic_engine import gathered

Task = Literal["CAUSAL_LM", "SEQ_CLS"]


def adapter_of(lora: Lora | None, model: Any, task: Task, seed: int) -> Any:
    """Return peft's configuration of the adapter for `model`, or None without `lora`. `seed` sets its first weights.

    Raises UserError if peft is not installed, if a target is not a matrix of the model, and under FSDP.
    """
    if lora is None:
        return None
    try:
        from peft import LoraConfig
    except ImportError:
        raise UserError("model.lora needs peft, which is not installed: pip install 'qwq-rl[lora]'") from None
    if PartialState().distributed_type == DistributedType.FSDP:
        raise UserError("model.lora does not run under FSDP: use DDP or DeepSpeed, or train the weights themselves")
    all_linear = lora.targets == ("all-linear",)
    if not all_linear:
        _check_targets(lora.targets, model)
    torch.manual_seed(seed)  # the trainer that is built next draws the adapter's first weights
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft takes fractions too
        target_modules="all-linear" if all_linear else list(lora.targets),
        lora_dropout=0.0,
        task_type=task,
    )


def _check_targets(targets: tuple[str, ...], model: Any) -> None:
    head = model.get_output_embeddings() if hasattr(model, "lm_head") else None
    linear = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head
    ]
    known_names = dict.fromkeys(name.rpartition(".")[2] for name in linear)
    unknown = [target for target in targets if target not in known_names]
    if unknown:
        raise UserError(
            f"model.lora.targets: {', '.join(unknown)} is no matrix of the model that can be adapted; "
            f"there are {', '.join(known_names)}"
        )


def without_wrapper(model: Any) -> Any:
    """Return the model inside peft's wrapper, or `model` itself if there is no adapter."""
    return model.get_base_model() if is_peft_model(model) else model


def save_merged(trainer: Any, folder: Path) -> None:
    """Write the model with its adapter merged into the weights. The trainer's model cannot be used afterwards."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    with gathered(list(model.parameters())):
        merged = model.merge_and_unload()
        if trainer.accelerator.is_main_process:
            merged.save_pretrained(folder)
    # No process may read the folder before the main process has written it.
    trainer.accelerator.wait_for_everyone()
