"""One server as a client sees it: its state, a connection to it, and the meaning of its answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

CONNECT_S = 10.0
SILENCE_S = 60.0
"""A server that sent nothing for so long is dead: it should send at least an empty line every ten seconds."""
_MAX_REST_S = 10.0


class Later(Exception):
    """The server accepted nothing: it could not be reached, is full, or is shutting down. Asking again is safe."""

    def __init__(self, why: str, wait_s: float | None = None, *, reached: bool = False) -> None:
        """`wait_s`: seconds that the server asked to wait; `reached`: whether a server said this itself."""
        super().__init__(why)
        self.wait_s, self.reached = wait_s, reached


class ConnectionBroken(Exception):
    """The connection broke while the server worked. What it did not answer may be asked again, since a job's verdict
    does not depend on how often it is judged."""


class Answered(Exception):
    """The server refused for a reason that will not go away; `status` and the text say which."""

    def __init__(self, status: int, text: str, body: Mapping[str, Any]) -> None:
        """`body`: the JSON of the answer."""
        super().__init__(text)
        self.status, self.body = status, body


@dataclass(eq=False)
class Replica:
    """One server. Its fields are guarded by the lock of the object that uses it."""

    url: str
    jobs: int = 0
    """Jobs of this client that it works on."""
    rests_until: float = 0.0
    """It gets no requests until this time, by `time.monotonic`."""
    failures: int = 0
    """Failures in a row."""
    why: str = ""
    """The last error."""
    reached: bool = False
    """Whether it ever answered."""

    def failed(self, why: str, wait_s: float | None) -> None:
        """Let it rest for a while, longer each time. Failures while it rests do not count: they began before."""
        self.why = why
        if time.monotonic() < self.rests_until:
            return
        self.failures += 1
        rest = min(_MAX_REST_S, 0.1 * 2.0 ** min(self.failures, 12)) if wait_s is None else wait_s
        # a random factor, so that many clients do not come back at the same time
        self.rests_until = time.monotonic() + rest * random.uniform(0.75, 1.25)

    def worked(self) -> None:
        """Record that it answered."""
        self.failures, self.rests_until, self.why, self.reached = 0, 0.0, "", True


class Line:
    """A connection to a server; `cut` ends it from another thread."""

    def __init__(self, url: str, token: str | None) -> None:
        """Connect. Raises `Later` if the server cannot be reached."""
        parts = urlsplit(url)
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = parts.hostname or ""
        self._connection = (
            http.client.HTTPSConnection(host, port, timeout=CONNECT_S, context=ssl.create_default_context())
            if parts.scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=CONNECT_S)
        )
        try:
            self._connection.connect()
        except OSError as error:
            raise Later(f"cannot be reached: {error}") from error
        self._socket: socket.socket = self._connection.sock
        self._socket.settimeout(SILENCE_S)

    def cut(self) -> None:
        """Break the connection. A thread that reads from it gets `ConnectionBroken`; the server cancels the work."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        """Send a request and return the JSON of the answer. Raises `Later`, `ConnectionBroken` and `Answered`."""
        with _connection_errors():
            response = self._opened(method, path, body)
            return json.loads(response.read())

    def stream(self, path: str, body: bytes) -> Iterator[dict[str, Any]]:
        """Yield the answer's lines of JSON as they come; an empty line gives `{}`. Raises as `ask` does."""
        with _connection_errors():
            response = self._opened("POST", path, body)
            while line := response.readline():
                yield json.loads(line) if line.strip() else {}

    def _opened(self, method: str, path: str, body: bytes | None) -> http.client.HTTPResponse:
        self._connection.request(method, self._prefix + path, body, self._headers)
        response = self._connection.getresponse()
        if response.status >= 300:
            _raise_refusal(response)
        return response


@contextlib.contextmanager
def _connection_errors() -> Iterator[None]:
    """Turn all errors of a connection into `ConnectionBroken`."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: an incomplete line of JSON
        raise ConnectionBroken(f"{type(error).__name__}: {error}") from error


def _raise_refusal(response: http.client.HTTPResponse) -> None:
    content = response.read(1 << 20)
    try:
        body = json.loads(content)
        text = str(body["error"])
    except (ValueError, LookupError, TypeError):
        body, text = {}, content[:200].decode("utf-8", "replace").strip() or str(response.reason)
    if response.status in (408, 429, 503):
        retry_after = response.headers.get("Retry-After", "")
        raise Later(text, float(retry_after) if retry_after.isdecimal() else None, reached=True)
    if response.status in (502, 504):  # sent by a proxy; the server behind it may have begun
        raise ConnectionBroken(f"{response.status} {text}")
    raise Answered(response.status, text, body if isinstance(body, dict) else {})


def judge(
    line: Line,
    jobs: Sequence[Mapping[str, Any]],
    tests: Mapping[str, bytes],
    asked: Mapping[str, Any],
    take: Callable[[dict[str, Any]], None],
) -> None:
    """Judge jobs over one connection; `take` gets each line of the answer as it comes.

    `tests` are the bodies of the test sets that the jobs refer to. Those that the server lacks are sent first, over the
    same connection, since a load balancer keeps a connection with one server. Raises `Later`, `ConnectionBroken` and
    `Answered`.
    """
    body = json.dumps({"jobs": jobs, **asked}).encode()
    # more than once: the server may drop test sets again before it gets to the jobs
    for _ in range(3):
        try:
            for message in line.stream("/v1/judge", body):
                take(message)
            return
        except Answered as refusal:
            missing = refusal.body.get("missing", []) if refusal.status == 409 else []
            if not missing or not set(missing) <= tests.keys():
                raise
            for name in missing:
                line.ask("PUT", f"/v1/tests/{name}", tests[name])
    raise ConnectionBroken("the server loses test sets that were just put in")
