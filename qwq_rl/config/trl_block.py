"""Which fields a recipe's `trl:` block may hold. TRL's fields are read from its source, without importing TRL."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qwq_rl.config.loader import Contradictions, key_meant
from qwq_rl.errors import UserError, close_to

_CONFIGS = {"rl": "grpo_config", "sft": "sft_config", "reward_model": "reward_config"}
_CLASSES = {"rl": "GRPOConfig", "sft": "SFTConfig", "reward_model": "RewardConfig"}
_RUN_FOLDER, _RESUME = "the run folder, which `--name` names", "resuming, which is automatic"
_ORDER = "data: the order of rows follows from the seed"

_OWNED = {
    "learning_rate": "update.lr",
    "lr_scheduler_type": "update.schedule",
    "warmup_steps": "update.warmup",
    "max_grad_norm": "update.gradient_clip",
    "max_steps": "steps",
    "num_train_epochs": "steps",
    "seed": "seed",
    "data_seed": "seed",
    "save_strategy": "checkpoint.every",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "load_best_model_at_end": "checkpoint.keep",
    "save_only_model": "checkpoint: a checkpoint must be enough to continue exactly",
    "report_to": "track",
    "output_dir": _RUN_FOLDER,
    "run_name": _RUN_FOLDER,
    "do_train": "kind",
    "do_predict": "kind",
    "resume_from_checkpoint": _RESUME,
    "ignore_data_skip": _RESUME,
    "model_init_kwargs": "model",
    "remove_unused_columns": "data",
    "train_sampling_strategy": _ORDER,
    "logging_strategy": "metrics.jsonl: every update is logged",
    "logging_steps": "metrics.jsonl: every update is logged",
    "push_to_hub": "`qwq-rl export --push-to-hub`",
}
"""Fields of TRL that are refused in every kind of stage, with the recipe key, or the reason, that replaces each."""

_CORRECTION = (
    "vllm_importance_sampling_correction", "vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max",
    "vllm_importance_sampling_clip_min", "off_policy_mask_threshold",
)  # fmt: skip
_ABSENT = (
    "use_adaptive_entropy", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target",
    "top_entropy_quantile", "sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps", "router_aux_loss_coef",
)  # fmt: skip
"""Fields of GRPOConfig that have no effect here: the losses and references are our own trainer's."""

_EVALUATION = dict.fromkeys(("eval_strategy", "eval_steps", "do_eval", "eval_delay"), "evaluate.every") | {
    "eval_on_start": "evaluate.at_start"
}
_OWNED_BY_KIND = {
    "rl": _EVALUATION
    | {
        "per_device_train_batch_size": "update.micro_tokens",
        "gradient_accumulation_steps": "update.micro_tokens",
        "generation_batch_size": "rollout.prompts and rollout.generations",
        "num_generations": "rollout.generations",
        "num_generations_eval": "evaluate.samples",
        "max_completion_length": "rollout.max_tokens",
        "temperature": "rollout.temperature",
        "beta": "update.kl",
        "use_bias_correction_kl": "update.kl",
        "delta": "update.delta",
        "mask_truncated_completions": "rollout.overlong",
        "entropy_coef": "update.entropy",
        "epsilon": "update.clip",
        "epsilon_high": "update.clip",
        "steps_per_generation": "update.updates_per_rollout",
        "num_iterations": "update.epochs",
        "loss_type": "algorithm",
        "importance_sampling_level": "algorithm",
        "scale_rewards": "algorithm",
        "multi_objective_aggregation": "domains",
        "reward_weights": "domains",
        "shuffle_dataset": _ORDER,
        "log_completions": "rollouts/ in the run folder: every response is kept",
    }
    | {f"sapo_temperature_{sign}": "algorithm" for sign in ("neg", "pos")}
    | dict.fromkeys(_CORRECTION, "update.correction")
    | {f"vespo_{letter}_{sign}": "algorithm" for letter in ("k", "lambda") for sign in ("neg", "pos")},
}
_SUPERVISED = {
    "per_device_train_batch_size": "update.micro_batch",
    "gradient_accumulation_steps": "update.micro_batch",
    "max_length": "max_length",
    "optim": "update.optimizer",
    "weight_decay": "update.weight_decay",
}
_OWNED_BY_KIND |= {
    "sft": _EVALUATION | _SUPERVISED | {"shuffle_dataset": _ORDER},
    "reward_model": dict.fromkeys(_EVALUATION, "kind: a reward model is not evaluated while it trains") | _SUPERVISED,
}


def trl_mistakes(kind: str, block: Mapping[str, Any]) -> Contradictions:
    """Yield `(key, text)` for each key of a `trl:` block that TRL does not know, or that the recipe sets elsewhere."""
    if not block:
        return
    known, owned = trl_fields(kind), _OWNED | _OWNED_BY_KIND[kind]
    for key in block:
        if kind == "rl" and key in _ABSENT:
            yield key, "does nothing: losses and references are the trainer's own, and have no such setting"
        elif key in owned:
            yield key, f"the recipe itself says this, in {owned[key]}"
        elif key not in known:
            # The nearest field may itself be refused: then name the recipe key that sets it.
            nearest = close_to(key, known)
            hint = f"; the recipe says {nearest} in {owned[nearest]}" if nearest in owned else key_meant(key, known)
            yield key, f"TRL's {_CLASSES[kind]} has no such field{hint}"


def inert_in_rl(block: Mapping[str, Any], served: bool) -> Contradictions:
    """Yield each key of an rl stage's `trl:` block that has no effect with the other keys, or with `rollout.server`."""
    for key in ("use_vllm", "use_transformers_continuous_batching"):
        if served and block.get(key):
            yield f"trl.{key}", "does nothing beside rollout.server, whose servers sample"
    for key in block:
        if key.startswith("vllm_") and not block.get("use_vllm"):
            yield f"trl.{key}", "does nothing without use_vllm: true"


def owned_fields() -> list[tuple[str, str, list[str]]]:
    """What a `trl:` block may not hold: (what sets it instead, in which kinds of stage, TRL's fields)."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for kind, extra in _OWNED_BY_KIND.items():
        for key, setter in (_OWNED | extra).items():
            kinds.setdefault((setter, key), []).append(kind)
    fields: dict[tuple[str, str], list[str]] = {}
    for (setter, key), stage_kinds in kinds.items():
        fields.setdefault(
            (setter, "any" if len(stage_kinds) == len(_OWNED_BY_KIND) else ", ".join(stage_kinds)), []
        ).append(key)
    return [(setter, kinds_text, keys) for (setter, kinds_text), keys in fields.items()]


@cache
def trl_fields(kind: str) -> tuple[str, ...]:
    """The fields of TRL's configuration for a kind of stage, with inherited ones. Imports neither TRL nor torch."""
    trl, transformers = _package("trl") / "trainer", _package("transformers")
    own = _fields_in(trl / f"{_CONFIGS[kind]}.py", _CLASSES[kind])
    base = _fields_in(trl / "base_config.py", "_BaseConfig")
    arguments = _fields_in(transformers / "training_args.py", "TrainingArguments")
    return tuple(dict.fromkeys((*own, *base, *arguments)))


def _package(name: str) -> Path:
    spec = find_spec(name)  # a top-level package is found without importing it
    if spec is None or spec.origin is None:
        raise UserError(f"{name} is not installed, and a `trl:` block cannot be checked without it: run `make install`")
    return Path(spec.origin).parent


def _fields_in(path: Path, name: str) -> list[str]:
    """The fields that a dataclass's constructor takes, from its source: no ClassVar, private name or `init=False`."""
    tree = ast.parse(path.read_text())
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    annotated = [
        node for node in body if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation)
    ]
    return [
        node.target.id
        for node in annotated
        if isinstance(node.target, ast.Name)
        and not node.target.id.startswith("_")
        and not (node.value and "init=False" in ast.unparse(node.value))
    ]
