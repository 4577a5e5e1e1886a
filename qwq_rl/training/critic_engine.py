"""Trains the critic, a second model beside the policy: with a copy in every process, or by its own DeepSpeed engine.

accelerate is not used for it: its `prepare` takes one model per call, and its `backward` and optimisers belong to the
first model. Both kinds of engine minimise the sum of the losses of all processes.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import DistributedType

from qwq_rl.errors import RunStateError, UserError

WEIGHTS, ENGINE = "critic.pt", "engine"


class CriticEngine(Protocol):
    """A model with its optimiser."""

    def train(self, mode: bool) -> None:
        """Set training mode, or evaluation mode where `mode` is False."""

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """The model's output (B, L, 1) for tokens (B, L)."""

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add a micro-batch's gradient. All processes call it equally often; `last` marks the one before `step`."""

    def step(self) -> float:
        """Update the weights. Returns the norm of the gradient before clipping."""

    def save(self, folder: Path) -> None:
        """Write the weights and the optimiser's state to `folder`."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. Raises RunStateError where it is missing."""


def engine_for(model: Any, lr: float, gradient_clip: float, accelerator: Any) -> CriticEngine:
    """The engine that fits how this run is distributed. Raises UserError where there is none."""
    kind = accelerator.distributed_type
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    if kind == DistributedType.DEEPSPEED:
        return Sharded(model, optimizer, gradient_clip, accelerator)
    if kind in (DistributedType.FSDP, DistributedType.MEGATRON_LM, DistributedType.XLA):
        raise UserError(f"PPO's critic does not run under {kind.value}: use DDP or DeepSpeed, or another algorithm")
    if accelerator.mixed_precision == "fp16":
        raise UserError("PPO's critic does not run in fp16, which would need its losses scaled: use bf16")
    return Replicated(model, optimizer, gradient_clip, accelerator)


class Replicated:
    """A whole copy of the model in every process. Gradients are summed over processes before the step."""

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer, gradient_clip: float, accelerator: Any) -> None:
        self._model = model.to(accelerator.device)
        self._optimizer = optimizer
        self._clip = gradient_clip
        self._accelerator = accelerator
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def train(self, mode: bool) -> None:
        """See CriticEngine."""
        self._model.train(mode)

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """See CriticEngine."""
        with self._accelerator.autocast():
            return self._model(input_ids=ids, use_cache=False).logits

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """See CriticEngine."""
        loss.backward()
        if last and self._accelerator.num_processes > 1:
            grads = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            # Start all sums, then wait: they run at the same time.
            for reduction in [torch.distributed.all_reduce(grad, async_op=True) for grad in grads]:
                reduction.wait()

    def step(self) -> float:
        """See CriticEngine."""
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(norm)

    def save(self, folder: Path) -> None:
        """See CriticEngine."""
        if self._accelerator.is_main_process:
            state = {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}
            torch.save(state, folder / WEIGHTS)

    def load(self, folder: Path) -> None:
        """See CriticEngine."""
        path = folder / WEIGHTS
        if not path.exists():
            raise RunStateError(
                f"{path} is missing: this checkpoint has no critic, or one that was sharded by DeepSpeed"
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])


class Sharded:
    """A second DeepSpeed engine, with the policy's ZeRO stage."""

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer, gradient_clip: float, accelerator: Any) -> None:
        import deepspeed

        self._processes = accelerator.num_processes
        shared = accelerator.state.deepspeed_plugin.deepspeed_config
        hidden = model.config.get_text_config().hidden_size
        config = engine_config(shared, gradient_clip, accelerator.mixed_precision, hidden)
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)

    def train(self, mode: bool) -> None:
        """See CriticEngine."""
        self._engine.train(mode)

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """See CriticEngine."""
        return self._engine(input_ids=ids, use_cache=False).logits

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """See CriticEngine. DeepSpeed averages over processes; the factor makes a sum of it."""
        self._engine.set_gradient_accumulation_boundary(is_boundary=last)
        self._engine.backward(loss * self._processes)

    def step(self) -> float:
        """See CriticEngine."""
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def save(self, folder: Path) -> None:
        """See CriticEngine."""
        self._engine.save_checkpoint(str(folder), tag=ENGINE)

    def load(self, folder: Path) -> None:
        """See CriticEngine."""
        if not (folder / ENGINE).is_dir():
            raise RunStateError(f"{folder / ENGINE} is missing: this checkpoint has no critic sharded by DeepSpeed")
        self._engine.load_checkpoint(str(folder), tag=ENGINE)


def engine_config(shared: Mapping[str, Any], gradient_clip: float, precision: str, hidden_size: int) -> dict[str, Any]:
    """DeepSpeed's settings for a second engine, made from the policy's (`shared`): the same ZeRO, its own optimiser.

    A setting that is "auto" for the policy gets DeepSpeed's default, except the buffers of ZeRO-3, whose defaults take
    gigabytes: they depend on the model's width, as in accelerate.
    """
    config = _without_auto(copy.deepcopy(dict(shared)))
    for name in ("optimizer", "scheduler", "train_batch_size"):
        config.pop(name, None)
    zero = config.setdefault("zero_optimization", {"stage": 0})
    if zero.get("stage") == 3:
        zero.setdefault("reduce_bucket_size", hidden_size**2)
        zero.setdefault("stage3_prefetch_bucket_size", int(0.9 * hidden_size**2))
        zero.setdefault("stage3_param_persistence_threshold", 10 * hidden_size)
    for name in ("bf16", "fp16"):
        config[name] = config.get(name, {}) | {"enabled": precision == name}
    return config | {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": gradient_clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _without_auto(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` without values "auto", at any depth."""
    return {
        name: _without_auto(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if value != "auto"
    }


@contextlib.contextmanager
def gathered(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Inside, parameters that ZeRO-3 sharded when they were loaded are whole; what rank 0 writes to them is kept."""
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0):
            yield
    else:
        yield
