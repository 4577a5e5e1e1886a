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
_SCORING: dict[Any, str] = {
    ("trl.trainer.utils", "_fused_forward"): "original_forward",
    ("qwq_rl.trainer.compact_head", "compact_forward"): "patched",
}
"""Forwards that differ from the one under them in an argument that they add: where, and what they call that one."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_PARAMETERS = 10**9
"""The decoder holds a second copy of most weights, and above this a model's own arithmetic outweighs its calls."""


def fits_qwen_decoder(model: Any) -> bool:
    """Whether `model` is a dense Qwen2 or Qwen3 as transformers has it: nothing added, wrapped or split."""
    home = _MODELS.get(type(model).__name__)
    return (
        type(model).__module__ == home
        and _known_config(model.config)
        and _plain_modules(model, home)
        and _whole_parameters(model)
        and not torch.is_autocast_enabled(model.device.type)
    )


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
        if not ours or hooked or ("forward" in vars(module) and not _only_scores_differently(module)):
            return False
    return True


def _only_scores_differently(module: nn.Module) -> bool:
    """Whether `forward` is the class's own under those that training puts on it, which but add a way to score."""
    function: Any = getattr(module.forward, "__func__", None)
    while function is not type(module).forward:
        # `functools.wraps` gives TRL's the class's name and module; its code and globals are its own.
        code, scope = getattr(function, "__code__", None), getattr(function, "__globals__", {})
        under = _SCORING.get((scope.get("__name__"), getattr(code, "co_name", None)))
        if under is None:
            return False
        function = getattr(inspect.getclosurevars(function).nonlocals[under], "__func__", None)
    return True


def _whole_parameters(model: nn.Module) -> bool:
    """All weights here, on one device, in one dtype, and none of them a shard (`ds_id` is DeepSpeed ZeRO-3's)."""
    parameters = list(model.parameters())
    return (
        all(type(parameter) is nn.Parameter and not hasattr(parameter, "ds_id") for parameter in parameters)
        and len({(parameter.dtype, parameter.device) for parameter in parameters}) == 1
        and parameters[0].dtype in _DTYPES
        and parameters[0].device.type in ("cpu", "cuda")
        and sum(parameter.numel() for parameter in parameters) <= _MOST_PARAMETERS
    )
