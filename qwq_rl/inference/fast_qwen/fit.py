"""Decides whether a model computes exactly what `QwenDecoder` does. In any doubt the model's own forward is used."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

_MODELS = {
    "Qwen2ForCausalLM": "transformers.models.qwen2.modeling_qwen2",
    "Qwen3ForCausalLM": "transformers.models.qwen3.modeling_qwen3",
}
_PLAIN_MODULES = (nn.Linear, nn.Embedding, nn.ModuleList)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_PARAMETERS = {"cpu": 10**9, "cuda": 4 * 10**9}
"""The largest model per device, since the decoder holds a second copy of most weights. On a CPU a larger model gains
little: its time goes into arithmetic, not into calls. On a GPU calls cost more, so larger models gain too, until the
copy needs too much of the memory that training leaves."""

_UNDER: dict[Any, str] = {
    ("trl.trainer.utils", "_fused_forward"): "original_forward",
    ("qwq_rl.inference.fast_qwen.training_head", "compact_forward"): "patched",
    ("torch.amp.autocast_mode", "decorate_autocast"): "func",
    ("accelerate.utils.operations", "forward"): "model_forward",
}
"""Wrappers that compute what the forward inside them does: (module, name of the wrapper's code) -> the variable of its
closure that holds the inner forward."""


def decoding_dtype(model: Any) -> torch.dtype | None:
    """The type in which `model` multiplies matrices; None unless it is transformers' dense Qwen2 or Qwen3, unchanged.

    That is autocast's type under mixed precision, else the type of the weights. The model must have no additions, no
    shards, and no wrappers that `class_forward` does not know.
    """
    home = _MODELS.get(type(model).__name__)
    if home is None or type(model).__module__ != home or not _known_config(model.config):
        return None
    if not (_plain_modules(model, home) and _whole_parameters(model)) or torch.is_autocast_enabled(model.device.type):
        return None
    own, autocast = model.dtype, class_forward(model)[1]
    return own if autocast is None else autocast if own in (autocast, torch.float32) else None


def fits_qwen_decoder(model: Any) -> bool:
    """Whether `model` has a `decoding_dtype` and it is the type of its weights, so without mixed precision."""
    return decoding_dtype(model) == model.dtype


def _known_config(config: Any) -> bool:
    """Whether it has rotary positions without scaling, full attention everywhere, SwiGLU, and only Qwen2's biases."""
    rope = config.rope_parameters
    return (
        config.hidden_act == "silu"
        and rope["rope_type"] == "default"
        and set(rope) <= {"rope_type", "rope_theta"}
        and set(config.layer_types) == {"full_attention"}
        and not getattr(config, "attention_bias", False)
    )


def _plain_modules(model: nn.Module, home: str) -> bool:
    """Whether no module is from another library (adapters, quantised layers), has hooks, or has a changed forward."""
    for module in model.modules():
        is_known_class = type(module) in _PLAIN_MODULES or type(module).__module__ in (home, "transformers.activations")
        hooks = module._forward_hooks or module._forward_pre_hooks
        is_class_forward, autocast = class_forward(module)
        if not is_known_class or hooks or not is_class_forward or (autocast and module is not model):
            return False
    return True


def _whole_parameters(model: nn.Module) -> bool:
    """Whether all weights are on one device, in one dtype, and no shards (DeepSpeed ZeRO-3 sets `ds_id` on a shard)."""
    parameters = list(model.parameters())
    return (
        all(type(parameter) is nn.Parameter and not hasattr(parameter, "ds_id") for parameter in parameters)
        and len({(parameter.dtype, parameter.device) for parameter in parameters}) == 1
        and parameters[0].dtype in _DTYPES
        and sum(parameter.numel() for parameter in parameters) <= _MOST_PARAMETERS.get(parameters[0].device.type, 0)
    )


def class_forward(module: nn.Module) -> tuple[bool, torch.dtype | None]:
    """Whether `module` runs its class's forward, inside no wrappers but those of `_UNDER`; and the autocast type."""
    function, dtype = _unwrapped(module.forward), None
    while function is not type(module).forward:
        # `functools.wraps` gives a wrapper the name and module of what it wraps. Its code and globals are its own.
        code, scope = getattr(function, "__code__", None), getattr(function, "__globals__", {})
        inner_name = _UNDER.get((scope.get("__name__"), getattr(code, "co_name", None)))
        if inner_name is None:
            return False, None
        closure = inspect.getclosurevars(function).nonlocals
        if "autocast_instance" in closure:
            dtype = closure["autocast_instance"].fast_dtype
        function = _unwrapped(closure[inner_name])
    return True, dtype


def _unwrapped(forward: Any) -> Any:
    """The function of a bound method, or inside accelerate's object that converts outputs to float32."""
    return getattr(forward, "model_forward", getattr(forward, "__func__", forward))
