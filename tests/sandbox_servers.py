"""Real sandbox servers for tests: a process each, on a free port of loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from typing import Any

TOKEN = "a-token-for-tests-only"


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    port: int
    said: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self, method: str, path: str, body: object = None, token: str | None = TOKEN) -> HTTPResponse:
        """The answer to a request; its connection is its own."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        connection.request(method, path, sent, headers)
        return connection.getresponse()

    def ask(self, method: str, path: str, body: object = None, token: str | None = TOKEN) -> tuple[int, Any]:
        """Status and JSON of the answer; the lines where it is a stream."""
        response = self.open(method, path, body, token)
        text = response.read().decode()
        if response.headers["content-type"] == "application/x-ndjson":
            return response.status, [json.loads(line) for line in text.splitlines() if line]
        return response.status, json.loads(text)

    def figures(self) -> dict[str, float]:
        """What /metrics says, by name and labels."""
        text = self.open("GET", "/metrics", token=None).read().decode()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


@contextmanager
def serving(*options: str, token: str = TOKEN, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A server with these options until the end of the block, where SIGTERM ends it."""
    command = [sys.executable, "-m", "qwq_rl.cli", "sandbox", "serve", "--port", "0", "--drain-s", "5", *options]
    known = {**os.environ, "QWQ_RL_SANDBOX_TOKEN": token, **(environment or {})}
    with subprocess.Popen(command, env=known, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            yield Server(process, int(said.partition(", ")[0].rpartition(":")[2]), said)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
