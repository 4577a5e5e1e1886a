"""The thread that judges dies: who waits is told, nobody hangs, and the next call begins anew."""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import pytest

from qwq_rl.sandbox import Job, LocalSandbox, SandboxUnavailable
from qwq_rl.sandbox.http.admission import Bounds
from qwq_rl.sandbox.http.service import Service

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
ONE = [{"input": "", "output": "1"}]
QUICK = Job("quick", "print(1)", ONE)
SLOW = Job("slow", "import time\ntime.sleep(20)\nprint(1)", ONE)


def outcome(ask: Callable[[], object]) -> SimpleQueue[object]:
    """What a call in a thread of its own returns or raises."""
    found: SimpleQueue[object] = SimpleQueue()

    def act() -> None:
        try:
            found.put(ask())
        except Exception as error:
            found.put(error)

    threading.Thread(target=act, daemon=True).start()
    return found


def kill(sandbox: LocalSandbox) -> threading.Thread:
    """Have SystemExit raised in its thread, as soon as that runs Python again: at the next call."""
    assert sandbox._engine is not None
    thread = sandbox._engine._thread
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
    return thread


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 15
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_who_waits_is_told_and_the_next_call_is_answered() -> None:
    with LocalSandbox(1) as sandbox:
        found = outcome(lambda: sandbox.judge([SLOW]))
        until(lambda: sandbox.load.running_cases)
        server, thread = sandbox._link, kill(sandbox)
        sandbox.submit([QUICK], lambda *_: None)  # wakes it

        error = found.get(timeout=10)
        assert isinstance(error, SandboxUnavailable)
        assert "SystemExit" in str(error)
        thread.join(15)
        assert not thread.is_alive()
        assert server is not None
        assert server.process.poll() is not None
        assert sandbox.judge([QUICK])[0].verdict == "accepted"


@pytest.mark.parametrize(
    "ask", [lambda sandbox: sandbox.isolation, lambda sandbox: sandbox.judge([QUICK]), LocalSandbox.probe]
)
def test_a_call_under_which_it_dies_does_not_hang(ask: Callable[[LocalSandbox], object]) -> None:
    with LocalSandbox(1) as sandbox:
        sandbox.judge([QUICK])
        time.sleep(0.2)  # it sleeps: the next call wakes it, and it dies before it can answer
        kill(sandbox)
        assert isinstance(outcome(lambda: ask(sandbox)).get(timeout=10), SandboxUnavailable)
        assert outcome(lambda: sandbox.judge([QUICK])[0].verdict).get(timeout=30) == "accepted"


def test_each_job_is_answered_once_where_it_dies_of_a_listener() -> None:
    told: list[tuple[int, object]] = []

    def careless(index: int, result: object) -> None:
        told.append((index, result))
        raise KeyError("careless")

    with LocalSandbox(1) as sandbox:
        sandbox.judge([QUICK])
        sandbox.submit([QUICK, SLOW, Job("c", "print(2)", ONE)], careless)  # the first is known: answered at once
        until(lambda: len(told) == 3)
        assert sandbox.judge([Job("after", "print(1) ", ONE)])[0].verdict == "accepted"

    assert [index for index, _ in told] == [0, 1, 2]
    assert [isinstance(result, KeyError) for _, result in told] == [False, True, True]


def test_a_server_whose_thread_died_is_ready_again() -> None:
    with LocalSandbox(1) as sandbox:
        service = Service(sandbox, "L1", Bounds())
        asyncio.run(service.prove())
        assert service.why_not_ready() == ""
        kill(sandbox)
        asyncio.run(asyncio.wait_for(service.prove(), 20))
        assert "SystemExit" in service.why_not_ready()
        asyncio.run(asyncio.wait_for(service.prove(), 60))
        assert service.why_not_ready() == ""
        assert sandbox.judge([QUICK])[0].verdict == "accepted"


def test_a_sandbox_that_closes_tells_those_who_wait() -> None:
    sandbox = LocalSandbox(1)
    found = outcome(lambda: sandbox.judge([SLOW]))
    until(lambda: sandbox.load.running_cases)
    sandbox.close()
    error = found.get(timeout=10)
    assert isinstance(error, SandboxUnavailable)
    assert "the sandbox was closed" in str(error)
