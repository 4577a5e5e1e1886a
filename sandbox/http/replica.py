"""One server as a client sees it: how busy it is, whether it answers, and what its answers mean."""

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
"""Without a word for so long, a server that ought to send an empty line every ten seconds is gone."""
_LONGEST_REST_S = 10.0


class Later(Exception):
    """The server took nothing on: it could not be reached, is full, or is ending. Asking again is safe."""

    def __init__(self, why: str, wait_s: float | None = None, *, reached: bool = False) -> None:
        """`wait_s`: how long the server asked to be left alone; `reached`: whether it was one that said this."""
        super().__init__(why)
        self.wait_s, self.reached = wait_s, reached


class ConnectionBroken(Exception):
    """The connection broke while the server worked; what it did not answer may be asked again, for a job's verdict
    does not depend on how often it is judged."""


class Answered(Exception):
    """The server refused for a reason that would come again; `status` and its text say which."""

    def __init__(self, status: int, text: str, body: Mapping[str, Any]) -> None:
        """`body`: all that it said."""
        super().__init__(text)
        self.status, self.body = status, body


@dataclass(eq=False)
class Replica:
    """One URL. What it counts is guarded by the lock of whoever shares it."""

    url: str
    jobs: int = 0
    """Under way there, of this client."""
    rests_until: float = 0.0
    """By `time.monotonic`; until then it is not asked."""
    failures: int = 0
    """In a row."""
    why: str = ""
    """What went wrong last."""
    reached: bool = False
    """Whether it ever answered."""

    def failed(self, why: str, wait_s: float | None) -> None:
        """Leave it alone for a while, longer each time; what fails while it rests was begun before."""
        self.why = why
        if time.monotonic() < self.rests_until:
            return
        self.failures += 1
        rest = min(_LONGEST_REST_S, 0.1 * 2.0 ** min(self.failures, 12)) if wait_s is None else wait_s
        self.rests_until = time.monotonic() + rest * random.uniform(0.75, 1.25)

    def worked(self) -> None:
        """It answered."""
        self.failures, self.rests_until, self.why, self.reached = 0, 0.0, "", True


class Line:
    """A connection to a server; `cut` ends it from another thread."""

    def __init__(self, url: str, token: str | None) -> None:
        """Raises `Later` where the server cannot be reached."""
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
        """Break the connection; whoever reads from it gets `ConnectionBroken`, and the server cancels."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of it."""
        self._connection.close()

    def ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        """The JSON that it answers. Raises `Later`,
        `ConnectionBroken` and `Answered`."""
        with _transport():
            response = self._opened(method, path, body)
            return json.loads(response.read())

    def stream(self, path: str, body: bytes) -> Iterator[dict[str, Any]]:
        """The lines of JSON that it answers, as they come, `{}` for a heartbeat. Raises as `ask` does."""
        with _transport():
            response = self._opened("POST", path, body)
            while line := response.readline():
                yield json.loads(line) if line.strip() else {}

    def _opened(self, method: str, path: str, body: bytes | None) -> http.client.HTTPResponse:
        self._connection.request(method, self._prefix + path, body, self._headers)
        response = self._connection.getresponse()
        if response.status >= 300:
            _refuse(response)
        return response


@contextlib.contextmanager
def _transport() -> Iterator[None]:
    """Say `ConnectionBroken` for whatever goes wrong on the way."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: half a line
        raise ConnectionBroken(f"{type(error).__name__}: {error}") from error


def _refuse(response: http.client.HTTPResponse) -> None:
    said = response.read(1 << 20)
    try:
        body = json.loads(said)
        text = str(body["error"])
    except (ValueError, LookupError, TypeError):
        body, text = {}, said[:200].decode("utf-8", "replace").strip() or str(response.reason)
    if response.status in (408, 429, 503):
        asked = response.headers.get("Retry-After", "")
        raise Later(text, float(asked) if asked.isdecimal() else None, reached=True)
    if response.status in (502, 504):  # a proxy's, whose server may have begun
        raise ConnectionBroken(f"{response.status} {text}")
    raise Answered(response.status, text, body if isinstance(body, dict) else {})


def judge(
    line: Line,
    jobs: Sequence[Mapping[str, Any]],
    tests: Mapping[str, bytes],
    asked: Mapping[str, Any],
    take: Callable[[dict[str, Any]], None],
) -> None:
    """Have jobs judged over one connection; `take` gets each line as it comes.

    `tests` are the bodies of the test sets that the jobs name: those that the server lacks are put in first, over the
    same connection, behind which a balancer keeps one and the same server. Raises `Later`,
    `ConnectionBroken` and `Answered`.
    """
    body = json.dumps({"jobs": jobs, **asked}).encode()
    for _ in range(3):
        try:
            for told in line.stream("/v1/judge", body):
                take(told)
            return
        except Answered as refusal:
            missing = refusal.body.get("missing", []) if refusal.status == 409 else []
            if not missing or not set(missing) <= tests.keys():
                raise
            for name in missing:
                line.ask("PUT", f"/v1/tests/{name}", tests[name])
    raise ConnectionBroken("the server loses test sets that were just put in")
