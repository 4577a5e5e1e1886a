"""One vLLM server over HTTP: what it is, new weights from files, completions of token ids.

The wire is that of vLLM 0.22 to 0.32: its OpenAI API with `return_token_ids`, and what VLLM_SERVER_DEV_MODE=1 adds to
it (`/server_info`, `/collective_rpc`, `/reset_prefix_cache`). `/metrics` gives the signs of life.
"""

from __future__ import annotations

import http.client
import json
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qwq_rl.errors import RunStateError, UserError
from qwq_rl.inference.sampler import Completion

OLDEST, NEWEST = (0, 22), (0, 32)
"""Versions of vLLM between which the wire is known."""
REFUSED_S = 10.0
"""Seconds that a server which answered before may refuse connections before it counts as lost."""
_TICK_S = 1.0
_ANSWER_S = 20.0
"""Seconds for what a server answers without computing anything."""
_TRIES = 4
"""Of a request that a server answers with a fault of its own, each try a little later."""
_START = (
    "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs --max-model-len N --api-server-count 1"
)


class ServerUnfit(UserError):
    """A vLLM server that answers cannot serve this stage as it was started."""


class ServerLost(RunStateError):
    """A vLLM server is gone, stands still or was started anew; the stage goes on from its last checkpoint."""


class Stopped(Exception):
    """The caller no longer wants the answer."""


@dataclass(frozen=True)
class About:
    """What a server says of itself."""

    model: str
    """The name that requests are made for."""
    version: str
    max_model_len: int
    """Most tokens of prompt and response together."""
    on_cpu: bool
    head_apart: bool
    """Whether it was told that the head's weights are not those of the embeddings, whatever the model's folder says."""


@dataclass(frozen=True)
class Pulse:
    """One look at a server."""

    started: float
    """When its process started: another number is another process, with the weights that it was started with."""
    tokens: float
    """Tokens that it read and wrote since then."""


@dataclass(frozen=True)
class CompletionRequest:
    """Samples of one prompt."""

    prompt_ids: Sequence[int]
    samples: int
    max_tokens: int
    temperature: float
    seed: int
    """Of the first sample; vLLM counts up from it for the others."""
    eos_token_id: int


class _Broken(Exception):
    """No answer: nobody listens, the connection broke, or it took too long."""


class _Fault(Exception):
    """An answer that is no success: its status and its text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"HTTP {status}: {text}")
        self.status = status


class VllmServer:
    """A server as one process of the stage knows it; to be shared between threads."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """`timeout_s`: seconds without progress after which it counts as lost, also while it loads weights."""
        self.url, self.timeout_s = url.rstrip("/"), timeout_s
        self._about: About | None = None
        self._started: float | None = None
        """When the process started that has the current weights."""
        self._lock = threading.Lock()
        self._tokens, self._moved, self._looked, self._silent = -1.0, 0.0, 0.0, 0.0

    def wait(self, say: Callable[[str], None]) -> None:
        """Wait until it answers. Raises ServerLost after `timeout_s`; `say` is told if that takes long."""
        began, said = time.monotonic(), False
        while True:
            try:
                self._ask("GET", "/health", within=_ANSWER_S)
                return
            except (_Broken, _Fault) as error:
                if time.monotonic() - began > self.timeout_s:
                    raise ServerLost(
                        f"the vLLM server {self.url} does not answer, for {self.timeout_s:.0f} s now ({error}): start "
                        f"it (`{_START}`), then the same command goes on from the last checkpoint"
                    ) from None
                if not said and time.monotonic() - began > 5 * _TICK_S:
                    say(f"waiting for the vLLM server {self.url} ({error}), for {self.timeout_s:.0f} s at most")
                    said = True
            time.sleep(_TICK_S)

    def about(self) -> About:
        """What it is; asked once. Raises ServerUnfit where it was not started as it needs to be, ServerLost."""
        if self._about is None:
            version = str(self._get("/version")["version"])
            found = re.match(r"(\d+)\.(\d+)", version)
            if found and (int(found[1]), int(found[2])) < OLDEST:
                raise self._unfit(
                    f"runs vLLM {version}; {'.'.join(map(str, OLDEST))} is the oldest that can be given weights"
                )
            model = self._get("/v1/models")["data"][0]
            try:
                config = self._get("/server_info?config_format=json")["vllm_config"]
            except ServerUnfit:
                raise self._unfit("takes no new weights: it was started without VLLM_SERVER_DEV_MODE=1") from None
            given, overrides = config["model_config"]["logprobs_mode"], config["model_config"].get("hf_overrides")
            if given != "processed_logprobs":
                raise self._unfit(f"gives {given}, which are not those of the distribution that it samples from")
            on_cpu = str(config["device_config"]["device"]).startswith("cpu")
            if on_cpu and config["scheduler_config"].get("enable_chunked_prefill"):
                # RuntimeError: CPU Generator does not use offset (0.32), and all requests are lost with the engine.
                raise self._unfit("runs on a CPU, where seeded requests end it: add --no-enable-chunked-prefill")
            apart = isinstance(overrides, dict) and overrides.get("tie_word_embeddings") is False
            self._about = About(str(model["id"]), version, int(model["max_model_len"]), on_cpu, apart)
        return self._about

    def tokens_of(self, text: str) -> list[int]:
        """`text` in the server's tokenizer, without special tokens around it. Raises as `about`."""
        body = {"model": self.about().model, "prompt": text, "add_special_tokens": False}
        return [int(token) for token in self._post("/tokenize", body)["tokens"]]

    def load(self, folder: Path) -> float:
        """Have it take the weights in `folder`; returns when its process started, for `loaded` in other processes.

        Raises ServerUnfit where they are not of its model or it does not see the folder, ServerLost.
        """
        started = self.pulse().started
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            workers = json.loads(self._ask("POST", "/collective_rpc", body, within=self.timeout_s))
        except _Broken as error:
            raise self._lost(f"has not loaded {folder} within {self.timeout_s:.0f} s ({error})") from None
        except _Fault as error:
            raise ServerUnfit(
                f"the vLLM server {self.url} cannot load the weights in {folder}: it must see this folder under the "
                f"same path, and have been started with a model of the same shape ({error})"
            ) from None
        if not workers.get("results"):
            raise self._unfit(f"has no worker that took the weights in {folder}: {workers}")
        # What it kept of prompts it has read belongs to the weights before.
        for _ in range(_TRIES):
            if self._post("/reset_prefix_cache", {}).get("success", True):
                break
            time.sleep(_TICK_S)
        else:
            raise self._unfit("cannot forget the prompts it has read: it is at work for somebody else")
        if self.pulse().started != started:
            raise self._anew()
        self.loaded(started)
        return started

    def loaded(self, started: float) -> None:
        """Know that the process which started then has the current weights."""
        self._started = started

    def pulse(self) -> Pulse:
        """One look at it. Raises ServerLost where it does not answer."""
        return self._pulse(self._retried("GET", "/metrics", None, _ANSWER_S))

    def check_same(self) -> None:
        """Raise ServerLost where it is not the process any more that was given the weights."""
        if self.pulse().started != self._started:
            raise self._anew()

    def complete(self, request: CompletionRequest, wanted: Callable[[], bool]) -> list[Completion]:
        """The samples of one prompt, in order; their log-probabilities at the temperature they were drawn with.

        Raises Stopped once not `wanted`, ServerUnfit for a prompt that is too long, ServerLost.
        """
        longest = len(request.prompt_ids) + request.max_tokens
        if longest > self.about().max_model_len:
            raise self._unfit(
                f"takes {self.about().max_model_len} tokens of prompt and response, and a prompt of "
                f"{len(request.prompt_ids)} with rollout.max_tokens {request.max_tokens} may need {longest}"
            )
        body = _body(request, self.about().model)
        for attempt in range(1, _TRIES + 1):
            try:
                answer = json.loads(self._ask("POST", "/v1/completions", body, wanted=wanted))
                return _completions(answer, request)
            except (_Broken, _Fault) as error:
                if isinstance(error, _Fault) and error.status < 500:
                    raise self._unfit(f"refuses a request ({error})") from None
                if attempt == _TRIES:
                    raise self._lost(f"failed {_TRIES} times at one request ({error})") from None
            except (KeyError, TypeError, ValueError) as error:
                raise self._unfit(f"answers in another way than vLLM does ({error!r})") from None
            time.sleep(_TICK_S * attempt)
            self._look(at_once=True)  # is it there, and still the same one?
        raise AssertionError("the last try returns or raises")

    def _look(self, at_once: bool = False) -> None:
        """Raise ServerLost where it stands still, is gone, or is another process; looks once a second at most."""
        with self._lock:
            now = time.monotonic()
            if not at_once and now - self._looked < _TICK_S:
                return
            try:
                found = self._pulse(self._ask("GET", "/metrics", within=_ANSWER_S))
            except (_Broken, _Fault) as error:
                self._looked = time.monotonic()
                self._silent = self._silent or now
                silent, gone = self._looked - self._silent, isinstance(error.__cause__, ConnectionError)
                if silent > (REFUSED_S if gone else self.timeout_s):
                    raise self._lost(f"does not answer, for {silent:.0f} s now ({error})") from None
                return
            self._looked, self._silent = time.monotonic(), 0.0
            if found.started != self._started:
                raise self._anew()
            if found.tokens != self._tokens:
                self._tokens, self._moved = found.tokens, self._looked
            elif self._looked - self._moved > self.timeout_s:
                raise self._lost(f"has made no progress for {self.timeout_s:.0f} s")

    def begin(self) -> None:
        """Count from now on how long it makes no progress: requests are about to come."""
        with self._lock:
            self._tokens, self._moved, self._silent = -1.0, time.monotonic(), 0.0

    def _pulse(self, text: bytes) -> Pulse:
        found: dict[str, float] = {}
        for line in text.decode().splitlines():
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            if name in ("process_start_time_seconds", "vllm:prompt_tokens_total", "vllm:generation_tokens_total"):
                found[name] = found.get(name, 0.0) + float(value)
        if len(found) < 3:
            raise self._unfit("does not say when it was started and what it has done (/metrics)")
        started = found.pop("process_start_time_seconds")
        return Pulse(started, sum(found.values()))

    def _get(self, path: str) -> Any:
        return json.loads(self._retried("GET", path, None, self.timeout_s))

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return json.loads(self._retried("POST", path, body, self.timeout_s) or b"{}")

    def _retried(self, method: str, path: str, body: Mapping[str, Any] | None, within: float) -> bytes:
        for attempt in range(1, _TRIES + 1):
            try:
                return self._ask(method, path, body, within=within)
            except _Fault as error:
                if error.status < 500:
                    raise self._unfit(f"does not know {path} ({error})") from None
                last: Exception = error
            except _Broken as error:
                last = error
            if attempt < _TRIES:
                time.sleep(_TICK_S * attempt)
        raise self._lost(f"does not answer {path} ({last})")

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        within: float | None = None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> bytes:
        """One request; without `within` it may take as long as the server makes progress."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        line = kind(str(parts.hostname), parts.port, timeout=within or _ANSWER_S)
        text = None if body is None else json.dumps(body)
        try:
            line.request(method, parts.path + path, text, {"Content-Type": "application/json"})
            while within is None and not _readable(line.sock):
                if not wanted():
                    raise Stopped
                self._look()
            answer = line.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(f"{type(error).__name__}: {error}") from error
        finally:
            line.close()
        if answer.status != 200:
            raise _Fault(answer.status, said.decode("utf-8", "replace")[:300])
        return said

    def _unfit(self, what: str) -> ServerUnfit:
        return ServerUnfit(f"the vLLM server {self.url} {what}. Start it as `{_START}`")

    def _lost(self, what: str) -> ServerLost:
        return ServerLost(
            f"the vLLM server {self.url} {what}. Look into its log and start it again (`{_START}`); the same command "
            "then goes on from the last whole checkpoint"
        )

    def _anew(self) -> ServerLost:
        return ServerLost(
            f"the vLLM server {self.url} was started anew in the middle of a round, and has the weights of its start "
            "again: nothing it sampled since is used. The same command goes on from the last whole checkpoint"
        )


def _readable(line: socket.socket) -> bool:
    """Whether something arrives on `line` within a second."""
    with selectors.DefaultSelector() as selector:
        selector.register(line, selectors.EVENT_READ)
        return bool(selector.select(_TICK_S))


def _body(request: CompletionRequest, model: str) -> dict[str, Any]:
    """Nothing is left to the defaults that a server takes from its model's folder."""
    return {
        "model": model,
        "prompt": list(request.prompt_ids),
        "n": request.samples,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        # Not what the model's folder calls the end, but what the stage does.
        "ignore_eos": True,
        "stop_token_ids": [request.eos_token_id],
        "logprobs": 0,
        "return_token_ids": True,
        "skip_special_tokens": False,
    }


def _completions(answer: Mapping[str, Any], request: CompletionRequest) -> list[Completion]:
    """Raises KeyError, TypeError or ValueError for an answer that is not what was asked for."""
    choices = sorted(answer["choices"], key=lambda one: int(one["index"]))
    if [one["index"] for one in choices] != list(range(request.samples)):
        raise ValueError(f"{len(choices)} samples instead of {request.samples}")
    return [_completion(one, request) for one in choices]


def _completion(choice: Mapping[str, Any], request: CompletionRequest) -> Completion:
    ids = tuple(int(token) for token in choice["token_ids"])
    logprobs = tuple(float(value) for value in choice["logprobs"]["token_logprobs"])
    if not 1 <= len(ids) == len(logprobs) <= request.max_tokens:
        raise ValueError(f"{len(ids)} tokens with {len(logprobs)} log-probabilities")
    ended = ids[-1] == request.eos_token_id
    if not ended and len(ids) < request.max_tokens:
        raise ValueError(f"a response that ends after {len(ids)} tokens for {choice.get('finish_reason')!r}")
    return Completion(ids, "stop" if ended else "length", logprobs)
