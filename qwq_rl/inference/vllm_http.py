"""Prompts in, completions out, from vLLM servers: each new policy is written as files that they load over HTTP."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import gather_object, is_peft_model
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.utils import logging
from trl import GRPOTrainer

from qwq_rl.errors import UserError
from qwq_rl.inference.engines import whole_model
from qwq_rl.inference.local import streams
from qwq_rl.inference.sampler import Completion, SamplingRequest
from qwq_rl.inference.vllm_client import CompletionRequest, ServerUnfit, Stopped, VllmServer

T = TypeVar("T")

AT_ONCE = 32
"""Prompts that a server is asked for at once, by all processes together."""
_PROBE = "What is 7 * 8?\n<think>\n56, naïve Σ 数学</think>"


_SAY_EVERY_S = 60.0


class ServedSampler:
    """Samples from the servers of a recipe; all processes of a stage call it together, each with its own prompts."""

    def __init__(
        self,
        trainer: GRPOTrainer,
        tokenizer: PreTrainedTokenizerBase,
        urls: Sequence[str],
        timeout_s: float,
        weights: Path,
        max_tokens: int,
    ) -> None:
        """`weights`: the folder that policies are written to, which the servers see under the same path.

        Raises ServerUnfit and ServerLost, for a server that is not there or cannot do it.
        """
        self._trainer, self._tokenizer = trainer, tokenizer
        self._servers = [VllmServer(url, timeout_s) for url in urls]
        self._place = weights
        self._version = -1
        self._is_main = bool(trainer.accelerator.is_main_process)
        self._together(lambda: self._check(max_tokens))
        trainer.add_callback(_Cleaner(self._place))

    def __call__(self, request: SamplingRequest) -> list[list[Completion]]:
        """One list a prompt. Raises ServerUnfit and ServerLost, in all processes."""
        if self._version != self._trainer.state.global_step:
            self._feed(self._trainer.state.global_step)
        return self._together(lambda: self._sample(request))

    def _check(self, max_tokens: int) -> None:
        """Every process must reach every server, and every server be fit."""
        text = _PROBE + str(self._tokenizer.eos_token)
        expected = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        tied = bool(self._trainer.accelerator.unwrap_model(self._trainer.model).config.tie_word_embeddings)
        for server in self._servers:
            server.wait(_say)
            about = server.about()
            if about.max_model_len <= max_tokens:
                raise ServerUnfit(
                    f"the vLLM server {server.url} takes {about.max_model_len} tokens of prompt and response together, "
                    f"and rollout.max_tokens is {max_tokens}: start it with a larger --max-model-len"
                )
            if about.on_cpu and tied and not about.head_apart and not about.version.startswith("0.22."):
                # Its kernels keep a copy of the head in an order of their own, which a reload leaves as it was.
                raise ServerUnfit(
                    f"the vLLM server {server.url} runs on a CPU, where new weights do not reach a head that is tied "
                    "to the embeddings: start it with --hf-overrides '{\"tie_word_embeddings\": false}' and a model "
                    "folder that holds the head too (docs/training.md)"
                )
            if server.tokens_of(text) != expected:
                raise ServerUnfit(
                    f"the vLLM server {server.url} runs {about.model}, whose vocabulary is not that of the model in "
                    "training: start it with the model that the stage starts from"
                )

    def _feed(self, version: int) -> None:
        """Write the policy, and have all servers load it."""
        folder = self._place / f"version-{version:06d}"
        precision = self._trainer.accelerator.mixed_precision
        failed: UserError | None = None
        with whole_model(self._trainer) as model:
            if self._is_main:
                try:
                    apart = any(server.about().head_apart for server in self._servers)
                    write_model(model, folder, torch.bfloat16 if precision == "bf16" else None, head_apart=apart)
                except OSError as error:
                    failed = UserError(f"cannot write the weights for the vLLM servers to {folder}: {error}")
        _raise_together(failed)
        started = self._together(lambda: self._load(folder) if self._is_main else [])
        for server, when in zip(self._servers, gather_object(started), strict=True):
            server.loaded(when)
        if self._is_main:
            _remove(other for other in self._place.iterdir() if other != folder)
        self._version = version

    def _load(self, folder: Path) -> list[float]:
        """When each server's process started, which has the weights in `folder` now."""

        def load(server: VllmServer) -> float:
            server.wait(_say)  # it may have been started anew since the last round
            return server.load(folder)

        with ThreadPoolExecutor(len(self._servers), "servers") as threads:
            return list(threads.map(load, self._servers))

    def _sample(self, request: SamplingRequest) -> list[list[Completion]]:
        """This process's prompts, each from the server that has room first."""
        requests = [self._request(request, at) for at in range(len(request.prompt_ids))]
        world = self._trainer.accelerator.num_processes
        found = answers(self._servers, requests, max(1, AT_ONCE // world), _say if self._is_main else _silent)
        for server in self._servers if requests else ():
            server.check_same()
        return found

    def _request(self, request: SamplingRequest, at: int) -> CompletionRequest:
        """Prompt `at`; its seed follows from (seed, key), whichever process asks whichever server."""
        return CompletionRequest(
            request.prompt_ids[at],
            request.samples,
            request.max_tokens,
            request.temperature,
            int(streams(request.seed, [request.keys[at]], 1)[0]) >> 2,
            int(self._tokenizer.eos_token_id),
        )

    def _together(self, work: Callable[[], T]) -> T:
        """What `work` returns; what it raises in one process is raised in all."""
        failed: UserError | None = None
        try:
            done = work()
        except UserError as error:
            failed = error
        _raise_together(failed)
        return done


def write_model(model: Any, folder: Path, dtype: torch.dtype | None = None, *, head_apart: bool = False) -> None:
    """Write all weights of an unwrapped, gathered model to `folder`, at once or not at all; an adapter is merged.

    `dtype`: of what is written; the weights' own where None. `head_apart` writes the head also where it is tied to the
    embeddings. The model itself stays as it is. Raises OSError.
    """
    draft = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    base = model.get_base_model() if is_peft_model(model) else model
    logging.disable_progress_bar()
    with torch.no_grad():
        state = {name: value if dtype is None else value.to(dtype) for name, value in _weights(base)}
        if head_apart:
            name = next(name for name, part in base.named_modules() if part is base.get_output_embeddings())
            state.setdefault(f"{name}.weight", base.get_input_embeddings().weight.to(dtype, copy=True))
        base.save_pretrained(draft, state_dict=state)
    draft.rename(folder)


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of every weight as a model without an adapter has them; what is tied once."""
    for name, value in model.named_parameters():
        if ".lora_" in name:
            continue
        owner = name.removesuffix(".base_layer.weight")
        if owner != name:
            layer: Any = model.get_submodule(owner)
            value = value + layer.get_delta_weight(layer.active_adapters[0])
        yield name.replace(".base_layer.", "."), value.detach()
    for owner, part in model.named_modules():
        for name, value in part.named_buffers(recurse=False):
            if name not in part._non_persistent_buffers_set:
                yield f"{owner}.{name}".lstrip("."), value


class _Cleaner(TrainerCallback):
    """Removes what was written for the servers when training ends."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """As transformers calls it, in every process."""
        if state.is_world_process_zero:
            shutil.rmtree(self._place, ignore_errors=True)


def _raise_together(failed: UserError | None) -> None:
    first = next((error for error in gather_object([failed]) if error is not None), None)
    if first is not None:
        raise first


def _remove(folders: Iterator[Path]) -> None:
    for folder in list(folders):
        shutil.rmtree(folder, ignore_errors=True)


def _say(text: str) -> None:
    print(text, flush=True)


def _silent(text: str) -> None:
    pass


def answers(
    servers: Sequence[VllmServer], requests: Sequence[CompletionRequest], at_once: int, say: Callable[[str], None]
) -> list[list[Completion]]:
    """What the servers answer, in the order of `requests`; each is asked `at_once` at a time.

    Raises what the first failed request raised, once all others have ended.
    """
    found: list[list[Completion]] = [[] for _ in requests]
    waiting, stop, failures = iter(range(len(requests))), threading.Event(), list[BaseException]()
    lock = threading.Lock()

    def work(server: VllmServer) -> None:
        while not stop.is_set():
            with lock:
                at = next(waiting, None)
            if at is None:
                return
            try:
                found[at] = server.complete(requests[at], lambda: not stop.is_set())
            except Stopped:
                return
            except BaseException as error:
                failures.append(error)
                stop.set()

    for server in servers:
        server.begin()
    lines = min(at_once, -(-len(requests) // len(servers)))
    threads = [threading.Thread(target=work, args=(server,), daemon=True) for _ in range(lines) for server in servers]
    for thread in threads:
        thread.start()
    try:
        _wait(threads, lambda: sum(map(bool, found)), len(requests), say)
    finally:
        stop.set()
    if failures:
        raise failures[0]
    return found


def _wait(threads: Sequence[threading.Thread], done: Callable[[], int], total: int, say: Callable[[str], None]) -> None:
    began = said = time.monotonic()
    for thread in threads:
        while thread.is_alive():
            thread.join(1.0)
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                say(f"sampling from vLLM: {done()} of {total} prompts of this process in {said - began:.0f} s")
