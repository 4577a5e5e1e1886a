"""What training puts over a model's forward: ways to score, and autocast."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

_UNDER: dict[Any, str] = {
    ("trl.trainer.utils", "_fused_forward"): "original_forward",
    ("qwq_rl.inference.fast_qwen.training_head", "compact_forward"): "patched",
    ("torch.amp.autocast_mode", "decorate_autocast"): "func",
    ("accelerate.utils.operations", "forward"): "model_forward",
}
"""Forwards that compute what the one under them does: where, and what they call that one."""


def class_forward(module: nn.Module) -> tuple[bool, torch.dtype | None]:
    """Whether `module` runs its class's forward under what training puts over it; and in which autocast, if in any."""
    function, dtype = _plain(module.forward), None
    while function is not type(module).forward:
        # `functools.wraps` gives a wrapper the name and module of what it wraps; its code and globals are its own.
        code, scope = getattr(function, "__code__", None), getattr(function, "__globals__", {})
        under = _UNDER.get((scope.get("__name__"), getattr(code, "co_name", None)))
        if under is None:
            return False, None
        known = inspect.getclosurevars(function).nonlocals
        if "autocast_instance" in known:
            dtype = known["autocast_instance"].fast_dtype
        function = _plain(known[under])
    return True, dtype


def _plain(forward: Any) -> Any:
    """The function of a bound method, and of accelerate's object that turns outputs into float32."""
    return getattr(forward, "model_forward", getattr(forward, "__func__", forward))
