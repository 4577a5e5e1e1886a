"""Sampling from vLLM servers. Each new policy is written to files, which the servers load when asked over HTTP."""

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
"""Prompts that one server works on at once, counted over all processes."""
# Thinking tags, an accent, Greek and Chinese: two vocabularies hardly ever split all of these alike.
_PROBE = "What is 7 * 8?\n<think>\n56, naïve Σ 数学</think>"
_SAY_EVERY_S = 60.0


class ServedSampler:
    """Samples from the vLLM servers of a recipe. All processes must call it together, each with its own prompts."""

    def __init__(
        self,
        trainer: GRPOTrainer,
        tokenizer: PreTrainedTokenizerBase,
        urls: Sequence[str],
        timeout_s: float,
        weights: Path,
        max_tokens: int,
    ) -> None:
        """`weights`: the folder that policies are written to. The servers must see it under the same path.

        Raises ServerUnfit for a server that cannot serve this stage, ServerLost for one that does not answer.
        """
        self._trainer, self._tokenizer = trainer, tokenizer
        self._servers = [VllmServer(url, timeout_s) for url in urls]
        self._folder = weights
        self._version = -1
        self._is_main = bool(trainer.accelerator.is_main_process)
        self._in_all(lambda: self._check(max_tokens))
        trainer.add_callback(_Cleaner(self._folder))

    def __call__(self, request: SamplingRequest) -> list[list[Completion]]:
        """One list of completions per prompt. Raises ServerUnfit and ServerLost, in all processes."""
        # The policy changes with every update, so the servers get new weights once per update, before the first sample.
        if self._version != self._trainer.state.global_step:
            self._feed(self._trainer.state.global_step)
        return self._in_all(lambda: self._sample(request))

    def _check(self, max_tokens: int) -> None:
        """Check that this process reaches every server and that every server can serve this stage."""
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
                # CPU kernels keep a rearranged copy of the head, and a reload of the weights does not update that copy.
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
        """Write the policy to files and make all servers load them."""
        folder = self._folder / f"version-{version:06d}"
        precision = self._trainer.accelerator.mixed_precision
        write_error: UserError | None = None
        with whole_model(self._trainer) as model:
            if self._is_main:
                try:
                    separate_head = any(server.about().head_apart for server in self._servers)
                    write_model(
                        model, folder, torch.bfloat16 if precision == "bf16" else None, head_apart=separate_head
                    )
                except OSError as error:
                    write_error = UserError(f"cannot write the weights for the vLLM servers to {folder}: {error}")
        _raise_in_all(write_error)
        start_times = self._in_all(lambda: self._load(folder) if self._is_main else [])
        for server, start_time in zip(self._servers, gather_object(start_times), strict=True):
            server.loaded(start_time)
        # Only now, since no server needs the files of the policy before any more.
        if self._is_main:
            _remove(old_folder for old_folder in self._folder.iterdir() if old_folder != folder)
        self._version = version

    def _load(self, folder: Path) -> list[float]:
        """Load the weights in `folder` into all servers. Returns when the process of each server started."""

        def load(server: VllmServer) -> float:
            server.wait(_say)  # it may have been started anew since the last round
            return server.load(folder)

        with ThreadPoolExecutor(len(self._servers), "servers") as threads:
            return list(threads.map(load, self._servers))

    def _sample(self, request: SamplingRequest) -> list[list[Completion]]:
        """Sample this process's prompts; each goes to the first server that has room."""
        requests = [self._request(request, index) for index in range(len(request.prompt_ids))]
        world = self._trainer.accelerator.num_processes
        completions = answers(self._servers, requests, max(1, AT_ONCE // world), _say if self._is_main else _silent)
        # A server that restarted in between has sampled from the weights it was started with: nothing of it is used.
        for server in self._servers if requests else ():
            server.check_same()
        return completions

    def _request(self, request: SamplingRequest, index: int) -> CompletionRequest:
        """The request for prompt `index`. Its seed comes from (seed, key): no process or server makes a difference."""
        return CompletionRequest(
            request.prompt_ids[index],
            request.samples,
            request.max_tokens,
            request.temperature,
            # Two bits shorter than 64: vLLM takes signed numbers, and counts up from this one for the other samples.
            int(streams(request.seed, [request.keys[index]], 1)[0]) >> 2,
            int(self._tokenizer.eos_token_id),
        )

    def _in_all(self, work: Callable[[], T]) -> T:
        """Return what `work` returns. A UserError that it raises in one process is raised in all processes."""
        own_error: UserError | None = None
        try:
            result = work()
        except UserError as error:
            own_error = error
        _raise_in_all(own_error)
        return result


def write_model(model: Any, folder: Path, dtype: torch.dtype | None = None, *, head_apart: bool = False) -> None:
    """Write all weights of an unwrapped, gathered model to `folder`, completely or not at all. An adapter is merged.

    `dtype`: that of the written weights; None keeps their own. With `head_apart` the head is written even where it is
    tied to the embeddings. The model itself does not change. Raises OSError.
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
    draft.rename(folder)  # a reader never sees a folder that is only half written


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of every weight, as in a model without an adapter. Tied weights come once."""
    for name, value in model.named_parameters():
        if ".lora_" in name:
            continue
        owner = name.removesuffix(".base_layer.weight")
        if owner != name:
            # A layer under LoRA: its weight is the base weight plus the adapter's product.
            layer: Any = model.get_submodule(owner)
            value = value + layer.get_delta_weight(layer.active_adapters[0])
        yield name.replace(".base_layer.", "."), value.detach()
    for owner, part in model.named_modules():
        for name, value in part.named_buffers(recurse=False):
            if name not in part._non_persistent_buffers_set:
                yield f"{owner}.{name}".lstrip("."), value


class _Cleaner(TrainerCallback):
    """Removes the weight files of the servers when training ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Called by transformers in every process."""
        if state.is_world_process_zero:
            shutil.rmtree(self._folder, ignore_errors=True)


def _raise_in_all(own_error: UserError | None) -> None:
    first_error = next((error for error in gather_object([own_error]) if error is not None), None)
    if first_error is not None:
        raise first_error


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
    """The servers' answers, in the order of `requests`. Each server works on at most `at_once` of them at a time.

    Raises the error of the first request that failed, after all threads have ended.
    """
    completions: list[list[Completion]] = [[] for _ in requests]
    remaining, stop, errors = iter(range(len(requests))), threading.Event(), list[BaseException]()
    lock = threading.Lock()

    def work(server: VllmServer) -> None:
        while not stop.is_set():
            with lock:
                index = next(remaining, None)
            if index is None:
                return
            try:
                completions[index] = server.complete(requests[index], lambda: not stop.is_set())
            except Stopped:
                return
            except BaseException as error:  # kept for the calling thread, which raises it
                errors.append(error)
                stop.set()

    for server in servers:
        server.begin()
    per_server = min(at_once, -(-len(requests) // len(servers)))
    threads = [
        threading.Thread(target=work, args=(server,), daemon=True) for _ in range(per_server) for server in servers
    ]
    for thread in threads:
        thread.start()
    try:
        _wait(threads, lambda: sum(map(bool, completions)), len(requests), say)
    finally:
        stop.set()
    if errors:
        raise errors[0]
    return completions


def _wait(
    threads: Sequence[threading.Thread], finished: Callable[[], int], total: int, say: Callable[[str], None]
) -> None:
    began = reported = time.monotonic()
    for thread in threads:
        while thread.is_alive():
            thread.join(1.0)
            if time.monotonic() - reported > _SAY_EVERY_S:
                reported = time.monotonic()
                say(f"sampling from vLLM: {finished()} of {total} prompts of this process in {reported - began:.0f} s")
