"""A small HTTP server that speaks vLLM's wire and holds a real model, which our own decoder samples from."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from qwq_rl.inference.local import generate

CONFIG: dict[str, Any] = {
    "model_config": {"logprobs_mode": "processed_logprobs", "hf_overrides": {}},
    "scheduler_config": {"enable_chunked_prefill": True},
    "device_config": {"device": "cuda"},
}


_READING = threading.Lock()
"""transformers reads one model at a time: two threads that do leave each other's weights as they were made."""


class StandIn:
    """One server on loopback; its public attributes may be changed while it runs."""

    def __init__(self, start: Path, max_model_len: int = 256) -> None:
        self.start, self.max_model_len = start, max_model_len
        self.tokenizer = AutoTokenizer.from_pretrained(start)
        self.config = json.loads(json.dumps(CONFIG))
        self.version = "0.32.0"
        self.dev_mode = True
        self.faults = 0
        """So many completions are answered with 500."""
        self.die_after: int | None = None
        """The server is gone once it has answered so many completions."""
        self.restart_after: int | None = None
        """It was started anew once it has answered so many completions."""
        self.stands_still = False
        self.loads = True
        """Whether a reload that is answered with success took place."""
        self.answered = 0
        self.cached = 0
        """Completions since prefixes were last forgotten."""
        self.loaded: list[Path] = []
        self._lock = threading.Lock()
        self._model = self._read(start)
        self._started, self._tokens = 1.0, 0
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def restart(self) -> None:
        """Be another process, with the weights of the start."""
        with self._lock:
            self._model, self._started, self._tokens = self._read(self.start), self._started + 1, 0

    def stop(self) -> None:
        """Listen no more; what is under way is never answered."""
        self._http.shutdown()
        self._http.server_close()

    def get(self, path: str) -> tuple[int, Any]:
        """Status and answer."""
        if path == "/health":
            return 200, {}
        if path == "/version":
            return 200, {"version": self.version}
        if path == "/v1/models":
            return 200, {"data": [{"id": "policy", "max_model_len": self.max_model_len}]}
        if path == "/server_info?config_format=json" and self.dev_mode:
            return 200, {"vllm_config": self.config}
        if path == "/metrics":
            return 200, (
                f"# HELP one of many\nprocess_start_time_seconds {self._started:.1f}\n"
                f'vllm:prompt_tokens_total{{engine="0",model_name="policy"}} {self._tokens}.0\n'
                'vllm:generation_tokens_total{engine="0",model_name="policy"} 0.0\n'
            )
        return 404, {"detail": "Not Found"}

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and answer; a status of 0 is none at all."""
        if path == "/tokenize":
            return 200, {"tokens": self.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]}
        if path == "/collective_rpc":
            return self._reload(Path(body["kwargs"]["weights_path"]))
        if path == "/reset_prefix_cache":
            self.cached = 0
            return 200, {"success": True}
        return self._complete(body)

    def _reload(self, folder: Path) -> tuple[int, Any]:
        try:
            found = self._read(folder)
        except (OSError, ValueError) as error:
            return 500, {"error": {"message": f"Call to collective_rpc method failed: {error}"}}
        if found.config.vocab_size != self._model.config.vocab_size:
            return 500, {"error": {"message": "Call to collective_rpc method failed: size mismatch"}}
        self.loaded.append(folder)
        if self.loads:
            self._model = found
        return 200, {"results": [None]}

    def _complete(self, body: Any) -> tuple[int, Any]:
        while self.stands_still:
            time.sleep(0.05)
        with self._lock:
            if self.faults:
                self.faults -= 1
                return 500, {"error": {"message": "CUDA error: an illegal memory access was encountered"}}
            if self.die_after == self.answered:
                threading.Thread(target=self.stop, daemon=True).start()
                return 0, None
            choices = [self._choice(body, index) for index in range(body["n"])]
            self._tokens += len(body["prompt"])
            self.answered += 1
            self.cached += 1
        if self.restart_after == self.answered:
            self.restart_after = None
            self.restart()
        return 200, {"choices": choices[::-1]}  # in any order

    def _choice(self, body: Any, index: int) -> dict[str, Any]:
        (eos,) = body["stop_token_ids"]
        assert body["ignore_eos"]
        assert body["return_token_ids"]
        ((one,),) = generate(
            self._model, [body["prompt"]], samples=1, max_tokens=body["max_tokens"], temperature=body["temperature"],
            eos_token_id=eos, pad_token_id=0, seed=body["seed"] + index,
        )  # fmt: skip
        return {
            "index": index,
            "finish_reason": one.finish,
            "token_ids": list(one.token_ids),
            "logprobs": {"token_logprobs": list(one.logprobs)},
        }

    @staticmethod
    def _read(folder: Path) -> Any:
        with _READING:
            return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


def _handler(server: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(*server.get(self.path))

        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            self._answer(*server.post(self.path, json.loads(self.rfile.read(size))))

        def _answer(self, status: int, said: Any) -> None:
            if status == 0:
                return
            text = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments: Any) -> None:
            pass

    return Handler
