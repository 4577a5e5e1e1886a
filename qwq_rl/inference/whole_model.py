"""The model in training with all of its weights in every process, as sampling needs it, wherever they are sharded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from trl.models.utils import unwrap_model_for_generation


@contextmanager
def whole_model(trainer: Any) -> Iterator[Any]:
    """The unwrapped model of a trainer of TRL's; all processes must enter, and may do different things within."""
    with (
        unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model,
        _without_deepspeed_hooks(model),
        unsharded(model),
    ):
        yield model


@contextmanager
def _without_deepspeed_hooks(model: nn.Module) -> Iterator[None]:
    """Within, no forward hook runs of a model that ZeRO-3 has sharded.

    TRL takes away those that gather weights, and leaves one of DeepSpeed 0.19 that compares notes with the other
    processes at every forward, of which they may run fewer.
    """
    kept: list[tuple[dict[int, Any], dict[int, Any]]] = []
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        for part in model.modules():
            kept += [(hooks, dict(hooks)) for hooks in (part._forward_pre_hooks, part._forward_hooks)]
    for hooks, _ in kept:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, before in kept:
            hooks.update(before)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Within, what FSDP2 has sharded is whole, and no forward shards it again: other processes may run fewer of them.

    Does nothing for a model without such parts.
    """
    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)
