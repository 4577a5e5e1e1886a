"""Many requests to several vLLM servers: bounded in number, each to the server that has room first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from qwq_rl.inference import Completion
from qwq_rl.inference.vllm_client import Request, Stopped, VllmServer

_SAY_EVERY_S = 60.0


def answers(
    servers: Sequence[VllmServer], requests: Sequence[Request], at_once: int, say: Callable[[str], None]
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
