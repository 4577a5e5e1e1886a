"""LoRA: the adapter that a recipe asks for, and the whole model that it comes to (arXiv 2106.09685).

Training keeps the model as it was and saves the adapter in checkpoints; the result of a stage is one model again, so
that whatever starts from it need not know.
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
    """peft's configuration of the adapter for `model`, or None without one; the adapter's start follows from `seed`.

    Raises UserError where peft is not installed, where a target is no matrix of the model, and under FSDP.
    """
    if lora is None:
        return None
    try:
        from peft import LoraConfig
    except ImportError:
        raise UserError("model.lora needs peft, which is not installed: pip install 'qwq-rl[lora]'") from None
    if PartialState().distributed_type == DistributedType.FSDP:
        raise UserError("model.lora does not run under FSDP: use DDP or DeepSpeed, or train the weights themselves")
    everything = lora.targets == ("all-linear",)
    if not everything:
        _check_targets(lora.targets, model)
    torch.manual_seed(seed)  # the trainer that is built next draws the adapter's first weights
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft takes fractions too
        target_modules="all-linear" if everything else list(lora.targets),
        lora_dropout=0.0,
        task_type=task,
    )


def _check_targets(targets: tuple[str, ...], model: Any) -> None:
    head = model.get_output_embeddings() if hasattr(model, "lm_head") else None
    linear = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and part is not head]
    known = dict.fromkeys(name.rpartition(".")[2] for name in linear)
    wrong = [target for target in targets if target not in known]
    if wrong:
        raise UserError(
            f"model.lora.targets: {', '.join(wrong)} is no matrix of the model that can be adapted; "
            f"there are {', '.join(known)}"
        )


def without_wrapper(model: Any) -> Any:
    """The model that holds the adapter's layers; `model` itself, unwrapped already, where there is no adapter."""
    return model.get_base_model() if is_peft_model(model) else model


def save_merged(trainer: Any, folder: Path) -> None:
    """Write the model with its adapter merged into its weights. The trainer's model is of no use afterwards."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    with gathered(list(model.parameters())):
        whole = model.merge_and_unload()
        if trainer.accelerator.is_main_process:
            whole.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()
