"""Samplers of the model in training: our own decoder, vLLM through TRL, or transformers' continuous batching."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer
from trl.models.utils import unwrap_model_for_generation

from qwq_rl.errors import UserError
from qwq_rl.inference.local import decoder_of, generate
from qwq_rl.inference.sampler import Completion, Sampler, SamplingRequest

TRL_VLLM = (0, 22), (0, 31)
"""The oldest and the newest version of vLLM that TRL 1.16 supports."""


def own_sampler(trainer: GRPOTrainer, tokenizer: PreTrainedTokenizerBase) -> Sampler:
    """Our own decoder (`inference.local`) on the weights in training, which are gathered where they are sharded.

    The main process prints once which decoder computes the logits: a model that the fast one does not know is slower.
    """
    announced = not trainer.accelerator.is_main_process

    def sample(request: SamplingRequest) -> list[list[Completion]]:
        nonlocal announced
        # A process without prompts must enter too: gathering sharded weights needs all processes.
        with whole_model(trainer) as model:
            if not request.prompt_ids:
                return []
            if not announced:
                print(f"sampling by {decoder_of(model)}", flush=True)
                announced = True
            return generate(
                model,
                request.prompt_ids,
                samples=request.samples,
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                eos_token_id=int(tokenizer.eos_token_id),
                pad_token_id=int(tokenizer.pad_token_id),
                seed=request.seed,
                keys=request.keys,
            )

    return sample


def batching_sampler(trainer: GRPOTrainer, tokenizer: PreTrainedTokenizerBase) -> Sampler:
    """Transformers' continuous batching on the weights in training. The engine has a random generator of its own.

    It is not called through TRL 1.16, which first casts float32 weights to bf16 for good, and gives no
    log-probabilities. Raises UserError for float32 weights in mixed precision: keys and values would have another type
    than their cache.
    """
    precision, weights = trainer.accelerator.mixed_precision, trainer.accelerator.unwrap_model(trainer.model).dtype
    if precision != "no" and weights == torch.float32:
        raise UserError(
            f"trl.use_transformers_continuous_batching: the weights are float32, computed with in {precision}, which "
            f"transformers' cache does not go along with: add `{precision}: false` to the trl block, or start from a "
            "model whose weights are bf16"
        )

    def sample(request: SamplingRequest) -> list[list[Completion]]:
        with whole_model(trainer) as model:
            repeated = [list(ids) for ids in request.prompt_ids for _ in range(request.samples)]
            if not repeated:
                return []
            settings = copy.copy(trainer.continuous_batching_config)  # the engine writes its own decisions into it
            settings.return_logprobs, settings.seed = True, (request.seed + 7919 * request.keys[0]) % 2**32
            if weights == torch.float32:
                settings.auto_switch_to_flash = False  # flash attention has no float32
            answers = model.generate_batch(
                repeated,
                generation_config=trainer.generation_config,
                continuous_batching_config=settings,
                max_new_tokens=request.max_tokens,
            )
            model.train()  # `generate_batch` leaves the model in evaluation mode
        failed = [answer.error for answer in answers.values() if answer.error is not None]
        if failed or len(answers) != len(repeated):
            raise RuntimeError(
                f"continuous batching answered {len(answers) - len(failed)} of {len(repeated)} prompts; {failed[:1]}"
            )
        ids, logprobs = zip(*((answer.generated_tokens, answer.logprobs) for answer in answers.values()), strict=True)
        return groups_of(ids, logprobs, request, int(tokenizer.eos_token_id))

    return sample


def check_vllm() -> None:
    """Raise UserError where TRL cannot sample with vLLM: no GPU, no vLLM, or a version that TRL does not know."""
    instead = "or have a vLLM server of its own environment sample, `rollout.server` (docs/training.md)"
    if not torch.cuda.is_available():
        raise UserError(
            "trl.use_vllm: TRL gives vLLM its weights through the memory of a GPU (colocate) or NCCL (server), and "
            f"there is no GPU here: leave it out, {instead}, which takes them from files"
        )
    if find_spec("vllm") is None:
        raise UserError(f"trl.use_vllm: vLLM is not installed here: pip install 'qwq-rl[vllm]', {instead}")
    # A build for another device may be installed under another name than `vllm`.
    names = metadata.packages_distributions()["vllm"]
    version = metadata.version("vllm" if "vllm" in names else names[0])
    installed_version = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if not TRL_VLLM[0] <= installed_version <= TRL_VLLM[1]:
        oldest, newest = (".".join(map(str, version)) for version in TRL_VLLM)
        raise UserError(
            f"trl.use_vllm: vLLM {version} is installed, and TRL 1.16 knows {oldest} to {newest}: "
            f"pip install 'qwq-rl[vllm]', {instead}, which knows others too"
        )


def vllm_sampler(trainer: GRPOTrainer, tokenizer: PreTrainedTokenizerBase) -> Sampler:
    """vLLM through TRL, as the recipe's `trl:` block sets it up. The engine has a random generator of its own."""

    def sample(request: SamplingRequest) -> list[list[Completion]]:
        # TRL sends the prompts of all processes to the server in one request, and expects the same number from each.
        # So processes with fewer prompts fill up with dummy prompts, whose completions are dropped at the end.
        most_prompts = max(gather_object([len(request.prompt_ids)]))
        prompts = [*request.prompt_ids, *[[int(tokenizer.eos_token_id)]] * (most_prompts - len(request.prompt_ids))]
        repeated = [list(ids) for ids in prompts for _ in range(request.samples)]
        if not repeated:
            return []
        ids, logprobs = trainer._generate_single_turn(repeated, None, {}, request.samples)
        if logprobs is None:
            logprobs = [[float("nan")] * len(completion) for completion in ids]
        return groups_of(ids, logprobs, request, int(tokenizer.eos_token_id))[: len(request.prompt_ids)]

    return sample


def groups_of(
    ids: Sequence[Sequence[int]], logprobs: Sequence[Sequence[Any]], request: SamplingRequest, eos_token_id: int
) -> list[list[Completion]]:
    """Group an engine's flat answers, `request.samples` completions per prompt. A log-probability None becomes NaN."""
    flat = [_completion(*pair, request.max_tokens, eos_token_id) for pair in zip(ids, logprobs, strict=True)]
    return [flat[start : start + request.samples] for start in range(0, len(flat), request.samples)]


def _completion(ids: Sequence[int], logprobs: Sequence[Any], max_tokens: int, eos_token_id: int) -> Completion:
    kept_ids = list(ids)[:max_tokens]
    kept_logprobs = [float("nan") if value is None else float(value) for value in logprobs[: len(kept_ids)]]
    return Completion(
        tuple(kept_ids), "stop" if kept_ids and kept_ids[-1] == eos_token_id else "length", tuple(kept_logprobs)
    )


@contextmanager
def whole_model(trainer: Any) -> Iterator[Any]:
    """The unwrapped model of a TRL trainer with all its weights.

    All processes must enter. Inside, each may do something else: no forward pass waits for the other processes.
    """
    with (
        unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model,
        _without_deepspeed_hooks(model),
        unsharded(model),
    ):
        yield model


@contextmanager
def _without_deepspeed_hooks(model: nn.Module) -> Iterator[None]:
    """Inside, a model that ZeRO-3 has sharded runs no forward hooks.

    TRL removes the hooks that gather weights. It leaves one of DeepSpeed 0.19 that communicates with the other
    processes at every forward pass; it would hang, because processes may run different numbers of passes.
    """
    saved_hooks: list[tuple[dict[int, Any], dict[int, Any]]] = []
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        for module in model.modules():
            saved_hooks += [(hooks, dict(hooks)) for hooks in (module._forward_pre_hooks, module._forward_hooks)]
    for hooks, _ in saved_hooks:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, original in saved_hooks:
            hooks.update(original)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Inside, weights that FSDP2 has sharded are whole, and no forward pass shards them again.

    Otherwise each forward pass would wait for the other processes, which may run fewer of them. Does nothing for a
    model without FSDP2 modules.
    """
    sharded_modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded_modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded_modules:
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)
