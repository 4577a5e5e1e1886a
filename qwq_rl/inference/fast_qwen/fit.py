"""Whether a model computes exactly what `qwen_decoder` does; any doubt leaves it to its own forward."""

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
"""The decoder holds a second copy of most weights. On a CPU a larger model's arithmetic outweighs its calls; on a GPU,
where calls weigh longer, the copy would take too much of what training leaves."""


_UNDER: dict[Any, str] = {
    ("trl.trainer.utils", "_fused_forward"): "original_forward",
    ("qwq_rl.inference.fast_qwen.training_head", "compact_forward"): "patched",
    ("torch.amp.autocast_mode", "decorate_autocast"): "func",
    ("accelerate.utils.operations", "forward"): "model_forward",
}
"""Forwards that compute what the one under them does: where, and what they call that one."""


def decoding_dtype(model: Any) -> torch.dtype | None:
    """In what `model` multiplies matrices, if it is a dense Qwen2 or Qwen3 as transformers has it; None if not.

    That is autocast's type under mixed precision, else that of the weights. Nothing may be added to the model, wrapped
    around or split but what `forwards` knows.
    """
    home = _MODELS.get(type(model).__name__)
    if home is None or type(model).__module__ != home or not _known_config(model.config):
        return None
    if not (_plain_modules(model, home) and _whole_parameters(model)) or torch.is_autocast_enabled(model.device.type):
        return None
    own, autocast = model.dtype, class_forward(model)[1]
    return own if autocast is None else autocast if own in (autocast, torch.float32) else None


def fits_qwen_decoder(model: Any) -> bool:
    """Whether `model` has a `decoding_dtype` and that is its weights' own: no mixed precision."""
    return decoding_dtype(model) == model.dtype


def _known_config(config: Any) -> bool:
    """Rotary positions without scaling, full attention in every layer, SwiGLU, biases only where Qwen2 has them."""
    rope = config.rope_parameters
    return (
        config.hidden_act == "silu"
        and rope["rope_type"] == "default"
        and set(rope) <= {"rope_type", "rope_theta"}
        and set(config.layer_types) == {"full_attention"}
        and not getattr(config, "attention_bias", False)
    )


def _plain_modules(model: nn.Module, home: str) -> bool:
    """No module of another library (adapters, quantised layers), none with hooks or a forward of its own."""
    for module in model.modules():
        ours = type(module) in _PLAIN_MODULES or type(module).__module__ in (home, "transformers.activations")
        hooked = module._forward_hooks or module._forward_pre_hooks
        known, autocast = class_forward(module)
        if not ours or hooked or not known or (autocast and module is not model):
            return False
    return True


def _whole_parameters(model: nn.Module) -> bool:
    """All weights here, on one device, in one dtype, and none of them a shard (`ds_id` is DeepSpeed ZeRO-3's)."""
    parameters = list(model.parameters())
    return (
        all(type(parameter) is nn.Parameter and not hasattr(parameter, "ds_id") for parameter in parameters)
        and len({(parameter.dtype, parameter.device) for parameter in parameters}) == 1
        and parameters[0].dtype in _DTYPES
        and sum(parameter.numel() for parameter in parameters) <= _MOST_PARAMETERS.get(parameters[0].device.type, 0)
    )


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
