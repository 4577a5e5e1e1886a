"""A client of one vLLM server: it reads the server's settings, loads new weights from files, and asks for completions.

The protocol is that of vLLM 0.22 to 0.32: its OpenAI API with `return_token_ids`, and the paths that
VLLM_SERVER_DEV_MODE=1 adds (`/server_info`, `/collective_rpc`, `/reset_prefix_cache`). `/metrics` shows whether the
server still makes progress.
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
"""The versions of vLLM whose protocol is known, from the first to the last."""
REFUSED_S = 10.0
"""Seconds that a server may refuse connections, after it answered before, until it counts as lost."""
_TICK_S = 1.0
"""Seconds between two looks at a server."""
_ANSWER_S = 20.0
"""Seconds allowed for a request that needs no computation."""
_TRIES = 4
"""How often a request is tried where the server fails (HTTP 5xx or no answer); the pause grows with each try."""
_START = (
    "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs --max-model-len N --api-server-count 1"
)


class ServerUnfit(UserError):
    """A vLLM server answers, but cannot serve this stage the way it was started."""


class ServerLost(RunStateError):
    """A vLLM server is gone, makes no progress or was restarted; the stage goes on from its last checkpoint."""


class Stopped(Exception):
    """The caller no longer wants the answer."""


@dataclass(frozen=True)
class About:
    """A server's own description."""

    model: str
    """The model's name, which requests must give."""
    version: str
    max_model_len: int
    """The largest number of tokens of prompt and response together."""
    on_cpu: bool
    head_apart: bool
    """Whether it was started with `tie_word_embeddings` false, so the head has weights of its own."""


@dataclass(frozen=True)
class Pulse:
    """The state of a server at one moment, from `/metrics`."""

    started: float
    """When its process started. Another number means a new process, with the weights that it was started with."""
    tokens: float
    """Tokens read and written since then."""


@dataclass(frozen=True)
class CompletionRequest:
    """A request for the samples of one prompt."""

    prompt_ids: Sequence[int]
    samples: int
    max_tokens: int
    temperature: float
    seed: int
    """The first sample's seed; vLLM counts up from it for the others."""
    eos_token_id: int


class _Broken(Exception):
    """No answer: the connection was refused, broke, or took too long."""


class _Fault(Exception):
    """An answer with another status than 200."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"HTTP {status}: {text}")
        self.status = status


class VllmServer:
    """One process's client of a server. Threads may share it."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """`timeout_s`: a server without progress for so many seconds counts as lost, also while it loads weights."""
        self.url, self.timeout_s = url.rstrip("/"), timeout_s
        self._about: About | None = None
        self._started: float | None = None
        """Start time of the server process that has the current weights."""
        self._lock = threading.Lock()
        # Set by `_look`, times by the monotonic clock; `_silent_since` is 0 while the server answers.
        self._tokens_at_last_look, self._last_progress, self._last_look, self._silent_since = -1.0, 0.0, 0.0, 0.0

    def wait(self, say: Callable[[str], None]) -> None:
        """Wait until the server answers. Raises ServerLost after `timeout_s`; a long wait is reported through `say`."""
        started_waiting, announced = time.monotonic(), False
        while True:
            try:
                self._ask("GET", "/health", within=_ANSWER_S)
                return
            except (_Broken, _Fault) as error:
                if time.monotonic() - started_waiting > self.timeout_s:
                    raise ServerLost(
                        f"the vLLM server {self.url} does not answer, for {self.timeout_s:.0f} s now ({error}): start "
                        f"it (`{_START}`), then the same command goes on from the last checkpoint"
                    ) from None
                if not announced and time.monotonic() - started_waiting > 5 * _TICK_S:
                    say(f"waiting for the vLLM server {self.url} ({error}), for {self.timeout_s:.0f} s at most")
                    announced = True
            time.sleep(_TICK_S)

    def about(self) -> About:
        """The server's description, asked once. Raises ServerUnfit where a setting does not fit, and ServerLost."""
        if self._about is None:
            version = str(self._get("/version")["version"])
            match = re.match(r"(\d+)\.(\d+)", version)
            if match and (int(match[1]), int(match[2])) < OLDEST:
                raise self._unfit(
                    f"runs vLLM {version}; {'.'.join(map(str, OLDEST))} is the oldest that can be given weights"
                )
            model = self._get("/v1/models")["data"][0]
            try:
                config = self._get("/server_info?config_format=json")["vllm_config"]
            except ServerUnfit:
                raise self._unfit("takes no new weights: it was started without VLLM_SERVER_DEV_MODE=1") from None
            logprobs_mode, overrides = (
                config["model_config"]["logprobs_mode"],
                config["model_config"].get("hf_overrides"),
            )
            if logprobs_mode != "processed_logprobs":
                raise self._unfit(
                    f"gives {logprobs_mode}, which are not those of the distribution that it samples from"
                )
            on_cpu = str(config["device_config"]["device"]).startswith("cpu")
            if on_cpu and config["scheduler_config"].get("enable_chunked_prefill"):
                # vLLM 0.32: "RuntimeError: CPU Generator does not use offset"; the engine ends and all requests fail.
                raise self._unfit("runs on a CPU, where seeded requests end it: add --no-enable-chunked-prefill")
            separate_head = isinstance(overrides, dict) and overrides.get("tie_word_embeddings") is False
            self._about = About(str(model["id"]), version, int(model["max_model_len"]), on_cpu, separate_head)
        return self._about

    def tokens_of(self, text: str) -> list[int]:
        """`text` encoded by the server's tokenizer, without special tokens around it. Raises the errors of `about`."""
        body = {"model": self.about().model, "prompt": text, "add_special_tokens": False}
        return [int(token) for token in self._post("/tokenize", body)["tokens"]]

    def load(self, folder: Path) -> float:
        """Make the server load the weights in `folder`. Returns when its process started, for `loaded` elsewhere.

        Raises ServerUnfit where the weights do not fit its model or it does not see the folder, and ServerLost.
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
        # The cached keys and values of prompts were computed with the old weights.
        for _ in range(_TRIES):
            if self._post("/reset_prefix_cache", {}).get("success", True):
                break
            time.sleep(_TICK_S)
        else:
            raise self._unfit("cannot forget the prompts it has read: it is at work for somebody else")
        # A process that restarted meanwhile may have the old weights.
        if self.pulse().started != started:
            raise self._restarted()
        self.loaded(started)
        return started

    def loaded(self, started: float) -> None:
        """Note that the server process that started at `started` has the current weights."""
        self._started = started

    def pulse(self) -> Pulse:
        """The server's state now. Raises ServerLost where it does not answer."""
        return self._pulse(self._retried("GET", "/metrics", None, _ANSWER_S))

    def check_same(self) -> None:
        """Raise ServerLost where the server has restarted since it was given the weights."""
        if self.pulse().started != self._started:
            raise self._restarted()

    def complete(self, request: CompletionRequest, wanted: Callable[[], bool]) -> list[Completion]:
        """The samples of one prompt, in order, with log-probabilities at the temperature of sampling.

        Raises Stopped as soon as `wanted()` is false, ServerUnfit for a prompt that is too long, and ServerLost.
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
            self._look(at_once=True)  # another try makes sense only if the same process still runs
        raise AssertionError("the last try returns or raises")

    def _look(self, at_once: bool = False) -> None:
        """Raise ServerLost where the server makes no progress, is gone or has restarted.

        Looks at most once per second, whatever the number of threads, unless `at_once`.
        """
        with self._lock:
            now = time.monotonic()
            if not at_once and now - self._last_look < _TICK_S:
                return
            try:
                pulse = self._pulse(self._ask("GET", "/metrics", within=_ANSWER_S))
            except (_Broken, _Fault) as error:
                self._last_look = time.monotonic()
                self._silent_since = self._silent_since or now
                # A refused connection means that no process listens; a timeout may only mean that it is busy.
                silent_s, refused = self._last_look - self._silent_since, isinstance(error.__cause__, ConnectionError)
                if silent_s > (REFUSED_S if refused else self.timeout_s):
                    raise self._lost(f"does not answer, for {silent_s:.0f} s now ({error})") from None
                return
            self._last_look, self._silent_since = time.monotonic(), 0.0
            if pulse.started != self._started:
                raise self._restarted()
            if pulse.tokens != self._tokens_at_last_look:
                self._tokens_at_last_look, self._last_progress = pulse.tokens, self._last_look
            elif self._last_look - self._last_progress > self.timeout_s:
                raise self._lost(f"has made no progress for {self.timeout_s:.0f} s")

    def begin(self) -> None:
        """Measure progress from now on. Call it before a series of requests: an idle server makes none."""
        with self._lock:
            self._tokens_at_last_look, self._last_progress, self._silent_since = -1.0, time.monotonic(), 0.0

    def _pulse(self, text: bytes) -> Pulse:
        figures: dict[str, float] = {}
        for line in text.decode().splitlines():
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            # One line per engine where there are several: their tokens add up.
            if name in ("process_start_time_seconds", "vllm:prompt_tokens_total", "vllm:generation_tokens_total"):
                figures[name] = figures.get(name, 0.0) + float(value)
        if len(figures) < 3:
            raise self._unfit("does not say when it was started and what it has done (/metrics)")
        started = figures.pop("process_start_time_seconds")
        return Pulse(started, sum(figures.values()))

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
        """Send one request. Without `within` (seconds) it may take as long as the server makes progress."""
        parts = urlsplit(self.url)
        connection_class = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = connection_class(str(parts.hostname), parts.port, timeout=within or _ANSWER_S)
        payload = None if body is None else json.dumps(body)
        try:
            connection.request(method, parts.path + path, payload, {"Content-Type": "application/json"})
            while within is None and not _readable(connection.sock):
                if not wanted():
                    raise Stopped
                self._look()
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise _Fault(response.status, content.decode("utf-8", "replace")[:300])
        return content

    def _unfit(self, what: str) -> ServerUnfit:
        return ServerUnfit(f"the vLLM server {self.url} {what}. Start it as `{_START}`")

    def _lost(self, what: str) -> ServerLost:
        return ServerLost(
            f"the vLLM server {self.url} {what}. Look into its log and start it again (`{_START}`); the same command "
            "then goes on from the last whole checkpoint"
        )

    def _restarted(self) -> ServerLost:
        return ServerLost(
            f"the vLLM server {self.url} was started anew in the middle of a round, and has the weights of its start "
            "again: nothing it sampled since is used. The same command goes on from the last whole checkpoint"
        )


def _readable(connection: socket.socket) -> bool:
    """Whether data arrives on `connection` within a second."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        return bool(selector.select(_TICK_S))


def _body(request: CompletionRequest, model: str) -> dict[str, Any]:
    """The JSON body of a request. It sets every option, since a server takes defaults from its model's folder."""
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
        # A response ends at the stage's end-of-sequence token, not at those of the model's folder.
        "ignore_eos": True,
        "stop_token_ids": [request.eos_token_id],
        "logprobs": 0,
        "return_token_ids": True,
        "skip_special_tokens": False,
    }


def _completions(answer: Mapping[str, Any], request: CompletionRequest) -> list[Completion]:
    """The samples of an answer. Raises KeyError, TypeError or ValueError where it is not what was asked for."""
    choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
    if [choice["index"] for choice in choices] != list(range(request.samples)):
        raise ValueError(f"{len(choices)} samples instead of {request.samples}")
    return [_completion(choice, request) for choice in choices]


def _completion(choice: Mapping[str, Any], request: CompletionRequest) -> Completion:
    ids = tuple(int(token) for token in choice["token_ids"])
    logprobs = tuple(float(value) for value in choice["logprobs"]["token_logprobs"])
    if not 1 <= len(ids) == len(logprobs) <= request.max_tokens:
        raise ValueError(f"{len(ids)} tokens with {len(logprobs)} log-probabilities")
    ended = ids[-1] == request.eos_token_id
    if not ended and len(ids) < request.max_tokens:
        raise ValueError(f"a response that ends after {len(ids)} tokens for {choice.get('finish_reason')!r}")
    return Completion(ids, "stop" if ended else "length", logprobs)
