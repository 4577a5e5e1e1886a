"""A data set Hub of one repository on this machine, enough for the real `datasets` client to read from."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

COMMIT = "a" * 40


class _Handler(BaseHTTPRequestHandler):
    name: ClassVar[str]
    files: ClassVar[Mapping[str, bytes]]

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith(f"/datasets/{self.name}/resolve/"):
            wanted = path.split("/resolve/")[1].partition("/")[2]
            if wanted not in self.files:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            content = self.files[wanted]
            return self._send(200, content, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": COMMIT})
        if path.startswith(f"/api/datasets/{self.name}/tree/"):
            return self._json(
                [
                    {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
                    for path, content in self.files.items()
                ]
            )
        if path.startswith(f"/api/datasets/{self.name}"):
            names = [{"rfilename": path} for path in self.files]
            return self._json({"id": self.name, "sha": COMMIT, "private": False, "tags": [], "siblings": names})
        return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serve_data_set(name: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """Serve one public data set on the loopback interface; yields what HF_ENDPOINT must be."""
    handler = type("Handler", (_Handler,), {"name": name, "files": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
