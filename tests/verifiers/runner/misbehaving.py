"""Verifiers that go wrong in every way, by what the answer says; loaded by path, as a user's file would be."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from qwq_rl.errors import UserError
from qwq_rl.verifiers import Problem, Response, Verdict, run_as

LEAKED: list[bytes] = []


def act(answer: str) -> Any:
    """Go wrong as `answer` says; what is right says `good`, and what is wrong `bad`."""
    action = ACTIONS.get(answer)
    return action() if action is not None else answer == "good"


def recurse() -> int:
    return recurse()


def print_and_judge() -> bool:
    print('{"done": ""}' * 100)
    os.write(1, b"\x00\x01\n")
    os.write(2, b"this belongs to the test\n")
    return True


def fork_and_return() -> bool:
    os.fork()
    return True


def leak() -> bool:
    LEAKED.append(b"x" * 40_000_000)
    return True


def interrupt() -> None:
    raise KeyboardInterrupt


def mend() -> None:
    raise UserError("the licence server wants a key")


ACTIONS = {
    "hang": lambda: time.sleep(600),
    "regex": lambda: re.match(r"(a+)+$", "a" * 60 + "b"),
    "segfault": lambda: ctypes.string_at(0),
    "memory": lambda: [bytes(50_000_000) for _ in range(100)],
    "raise": lambda: 1 / 0,
    "nan": lambda: float("nan"),
    "text": lambda: "1",
    "metrics": lambda: Verdict(1.0, "correct", metrics={"x": "y"}),  # type: ignore[dict-item]
    "exit": lambda: sys.exit(0),
    "interrupt": interrupt,
    "os_exit": lambda: os._exit(0),
    "recursion": recurse,
    "print": print_and_judge,
    "close": lambda: os.closerange(0, 100),
    "fork": fork_and_return,
    "leak": leak,
    "mend": mend,
    "pid": lambda: Verdict(1.0, "correct", answer=str(os.getpid())),
}


@run_as(deadline_s=0.6, memory_mb=150)
def plain(problem: Problem, response: Response) -> Any:
    return act(response.answer)


@run_as(deadline_s=0.6, memory_mb=150)
async def coroutine(problem: Problem, response: Response) -> Any:
    await asyncio.sleep(600 if response.answer == "sleep" else 0.01)
    return act(response.answer)


@run_as(deadline_s=0.6, memory_mb=150)
class Batched:
    def __call__(self, problem: Problem, response: Response) -> Any:
        return act(response.answer)

    def batch(self, items: list[tuple[Problem, Response]]) -> list[Any]:
        return [act(response.answer) for _, response in items]


@run_as(deadline_s=1.0)
def leaves_a_child(problem: Problem, response: Response) -> bool:
    if response.answer == "good":
        return True
    if os.fork() == 0:
        os.setsid()
        Path(problem["mark"]).touch()
    time.sleep(600)
    return True


@run_as("thread", deadline_s=0.4)
def threaded(problem: Problem, response: Response) -> Any:
    return act(response.answer)


@run_as(deadline_s=60)
def patient(problem: Problem, response: Response) -> Any:
    return act(response.answer)


@run_as(deadline_s=20)
def after_the_other(problem: Problem, response: Response) -> bool:
    """Holds once the file of the other's name is there; makes its own before."""
    folder, own, other = Path(problem["folder"]), problem["own"], problem["other"]
    (folder / own).touch()
    while not (folder / other).exists():
        time.sleep(0.01)
    return True


@run_as(retries=1)
def second_time_lucky(problem: Problem, response: Response) -> bool:
    mark = Path(problem["folder"]) / response.answer
    if mark.exists():
        return True
    mark.touch()
    raise ConnectionError("the server is busy")


@run_as(cached=True)
def counting(problem: Problem, response: Response) -> Verdict:
    with open(problem["log"], "a") as log:
        log.write("x")
    if response.answer == "raise":
        raise ValueError
    return Verdict(float(response.answer == problem["reference"]), "scored")


@run_as()
def server_is_down(problem: Problem, response: Response) -> bool:
    with open(problem["log"], "a") as log:
        log.write("x")
    raise ConnectionRefusedError("no server at 127.0.0.1")
