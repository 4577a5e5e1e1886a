"""Prompts in, completions out: our own decoder, vLLM through TRL, or transformers' continuous batching."""

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
"""The versions of vLLM that TRL 1.16 supports, the first and the last."""


def own_sampler(trainer: GRPOTrainer, tokenizer: PreTrainedTokenizerBase) -> Sampler:
    """`qwq_rl.inference` on the weights in training, gathered from where they are sharded.

    The main process says at first what gives the logits: a model that our decoder does not know samples more slowly.
    """
    said = not trainer.accelerator.is_main_process

    def sample(request: SamplingRequest) -> list[list[Completion]]:
        nonlocal said
        with whole_model(trainer) as model:
            if not request.prompt_ids:
                return []
            if not said:
                print(f"sampling by {decoder_of(model)}", flush=True)
                said = True
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
    """Continuous batching of transformers on the weights in training; its randomness is the engine's.

    Not through TRL 1.16, which would cast float32 weights to bf16 for good first, and leaves out the log-probabilities.
    Raises UserError for float32 weights in mixed precision: keys and values would be of another type than their cache.
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
            settings = copy.copy(trainer.continuous_batching_config)  # the engine writes what it works out into it
            settings.return_logprobs, settings.seed = True, (request.seed + 7919 * request.keys[0]) % 2**32
            if weights == torch.float32:
                settings.auto_switch_to_flash = False  # which knows no float32
            answers = model.generate_batch(
                repeated,
                generation_config=trainer.generation_config,
                continuous_batching_config=settings,
                max_new_tokens=request.max_tokens,
            )
            model.train()
        failed = [answer.error for answer in answers.values() if answer.error is not None]
        if failed or len(answers) != len(repeated):
            raise RuntimeError(
                f"continuous batching answered {len(answers) - len(failed)} of {len(repeated)} prompts; {failed[:1]}"
            )
        ids, logprobs = zip(*((answer.generated_tokens, answer.logprobs) for answer in answers.values()), strict=True)
        return groups_of(ids, logprobs, request, int(tokenizer.eos_token_id))

    return sample


def check_vllm() -> None:
    """Raise UserError where TRL cannot have vLLM sample here: no GPU, no vLLM, or one that it does not know."""
    instead = "or have a vLLM server of its own environment sample, `rollout.server` (docs/training.md)"
    if not torch.cuda.is_available():
        raise UserError(
            "trl.use_vllm: TRL gives vLLM its weights through the memory of a GPU (colocate) or NCCL (server), and "
            f"there is no GPU here: leave it out, {instead}, which takes them from files"
        )
    if find_spec("vllm") is None:
        raise UserError(f"trl.use_vllm: vLLM is not installed here: pip install 'qwq-rl[vllm]', {instead}")
    names = metadata.packages_distributions()["vllm"]
    version = metadata.version("vllm" if "vllm" in names else names[0])
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if not TRL_VLLM[0] <= found <= TRL_VLLM[1]:
        oldest, newest = (".".join(map(str, version)) for version in TRL_VLLM)
        raise UserError(
            f"trl.use_vllm: vLLM {version} is installed, and TRL 1.16 knows {oldest} to {newest}: "
            f"pip install 'qwq-rl[vllm]', {instead}, which knows others too"
        )


def vllm_sampler(trainer: GRPOTrainer, tokenizer: PreTrainedTokenizerBase) -> Sampler:
    """vLLM through TRL, as the recipe's `trl:` block sets it up; its randomness is the engine's."""

    def sample(request: SamplingRequest) -> list[list[Completion]]:
        # A server answers all processes at once, and takes each to bring as many prompts as the others.
        most = max(gather_object([len(request.prompt_ids)]))
        prompts = [*request.prompt_ids, *[[int(tokenizer.eos_token_id)]] * (most - len(request.prompt_ids))]
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
    """An engine's flat answers as `request.samples` completions a prompt; where a log-probability is None it is NaN."""
    flat = [_completion(*pair, request.max_tokens, eos_token_id) for pair in zip(ids, logprobs, strict=True)]
    return [flat[at : at + request.samples] for at in range(0, len(flat), request.samples)]


def _completion(ids: Sequence[int], logprobs: Sequence[Any], max_tokens: int, eos_token_id: int) -> Completion:
    kept = list(ids)[:max_tokens]
    given = [float("nan") if value is None else float(value) for value in logprobs[: len(kept)]]
    return Completion(tuple(kept), "stop" if kept and kept[-1] == eos_token_id else "length", tuple(given))


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
