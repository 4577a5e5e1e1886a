"""`qwq-rl sandbox serve`: one server until it is told to end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import uvicorn

from qwq_rl.sandbox.http.admission import Bounds
from qwq_rl.sandbox.http.server import build
from qwq_rl.sandbox.http.service import Service
from qwq_rl.sandbox.local import LocalSandbox, SandboxUnavailable
from qwq_rl.sandbox.protocol import LEVELS

TOKEN_VARIABLE = "QWQ_RL_SANDBOX_TOKEN"
_MIN_TOKEN_LENGTH = 16
_MAX_CONNECTIONS = 1024


def main(argv: Sequence[str]) -> int:
    """Run the command. Exit status: 0 after SIGTERM or SIGINT, 2 if it cannot start."""
    try:
        return serve(_parser().parse_args(argv))
    except SandboxUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qwq-rl sandbox serve", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="other than loopback needs a token (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8402, help="0 for any that is free (default 8402)")
    parser.add_argument(
        "--require", choices=LEVELS, default="L2", help="do not start below this isolation (default L2)"
    )
    parser.add_argument("--unsafe", action="store_true", help="run trusted programs even where no isolation holds")
    parser.add_argument("--slots", type=int, help="cases that run at once (default: the cores)")
    parser.add_argument("--token-file", type=Path, help=f"the file with the token (default: ${TOKEN_VARIABLE})")
    parser.add_argument("--drain-s", type=float, default=60.0, help="how long SIGTERM lets requests end (default 60)")
    for bound in fields(Bounds):
        name = f"--most-{bound.name.replace('_', '-')}"
        parser.add_argument(name, type=type(bound.default), default=bound.default, help=f"default {bound.default}")
    return parser


def serve(given: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT, then let running requests end. Returns 0.

    Raises `SandboxUnavailable` if the isolation is too low, the address is open to others and there is no token, or the
    address is in use.
    """
    token = _token(given.token_file)
    if token is None and not _is_loopback(given.host):
        raise SandboxUnavailable(
            f"--host {given.host} is open to others, and there is no token: give --token-file or set ${TOKEN_VARIABLE}"
        )
    bounds = Bounds(**{bound.name: getattr(given, f"most_{bound.name}") for bound in fields(Bounds)})
    with LocalSandbox(given.slots, require=given.require, allow_unsafe=given.unsafe) as sandbox:
        service = Service(sandbox, given.require, bounds)
        service.isolation = sandbox.isolation
        service.languages = sandbox.languages()
        asyncio.run(_serve(service, token, given.host, given.port, given.drain_s))
    return 0


async def _serve(service: Service, token: str | None, host: str, port: int, drain_s: float) -> None:
    await service.prove()
    config = uvicorn.Config(
        build(service, token),
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=max(1, round(drain_s)),
    )
    server = _Server(config)

    def end() -> None:
        server.force_exit = service.draining  # a second signal does not wait for requests
        service.draining = server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    with _listening(host, port) as listener:
        where = f"[{host}]" if ":" in host else host
        print(
            f"listening on http://{where}:{listener.getsockname()[1]}, isolation {service.isolation} "
            f"(required {service.floor}), {service.sandbox.slots} slots, {'a' if token else 'no'} token",
            flush=True,
        )
        await server.serve([listener])


class _Server(uvicorn.Server):
    """A server that does not handle signals; `_serve` does."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals."""
        yield


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512
        )
    except OSError as error:
        raise SandboxUnavailable(f"--host {host} --port {port} cannot be listened on: {error}") from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _token(path: Path | None) -> str | None:
    try:
        text = os.environ.get(TOKEN_VARIABLE, "") if path is None else path.read_text()
    except OSError as error:
        raise SandboxUnavailable(f"--token-file cannot be read: {error}") from error
    token = text.strip()
    if path is not None and not token:
        raise SandboxUnavailable(f"--token-file {path} is empty")
    if token and (len(token) < _MIN_TOKEN_LENGTH or not token.isascii()):
        raise SandboxUnavailable(f"the token is too short or not ASCII: give at least {_MIN_TOKEN_LENGTH} characters")
    return token or None
