"""Hostile answers cost one verdict its deadline at most, are never run, and are judged alike everywhere."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwq_rl.verifiers import Response, Verdict, load
from qwq_rl.verifiers.contract import Verifier
from qwq_rl.verifiers.mathematics.algebra.client import shared

DEADLINE_S = 1.0
MEMORY_MB = 2048
LATE_S = 4.0
"""Of one verdict on a busy machine; benchmarks/math_hostile.py holds an idle one to the deadline and 0.2 s."""

BOMBS = {
    "nested brackets": ("1", "(" * 5_000 + "2" + ")" * 5_000),
    "nested roots": ("1", r"\sqrt{" * 900 + "2" + "}" * 900),
    "nested boxes": ("1", r"\boxed{" * 2_000 + "2" + "}" * 2_000),
    "signs": ("1", "-" * 40_001 + "1"),
    "many digits": ("1", "9" * 100_000),
    "many items": ("1", ",".join(map(str, range(20_000)))),
    "a long sum": ("1", "+".join(["1"] * 30_000)),
    "a tower": ("7", "9^{9^{9^{9}}}"),
    "a factorial": ("7", "(10^{10})!"),
    "an exponent": ("7", "1e999999999"),
    "a far sine": ("7", r"\sin(10^{5000})"),
    "a product": ("x", r"\prod_{k=1}^{10000000}k"),
    "a power of a sum": ("x", r"(\sin x+\cos x)^{60}"),
    "what C computes": ("x^2", r"\frac{7^{300000}+1}{3^{600000}+2}"),
    "many radicals": (r"\sqrt{2}", "+".join(f"\\sqrt{{{n}}}" for n in range(2, 60))),
    "one letter": ("1", "1\ud800"),
}
ORDINARY = {"a number": ("1000", "1,000"), "an expression": ("(x+1)^2", "x^2+2x+1"), "a wrong one": ("3", "-3")}


@pytest.fixture(scope="module", autouse=True)
def warm() -> Iterator[None]:
    pool = shared(DEADLINE_S, MEMORY_MB)
    pool.warm()
    pool.equal("x", "x")
    yield
    pool.close()


def verifier() -> Verifier:
    return load("math", {"deadline_s": DEADLINE_S, "memory_mb": MEMORY_MB})


def judged(gold: str, answer: str) -> Verdict:
    verdict = verifier()({"reference": gold}, Response(text=answer, answer=answer))
    assert isinstance(verdict, Verdict)
    return verdict


def boxed(text: str) -> str:
    return f"\\boxed{{{text}}}"


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_scores_nothing_in_bounded_time(name: str) -> None:
    gold, answer = BOMBS[name]
    started = time.monotonic()
    verdict = judged(gold, boxed(answer))
    assert time.monotonic() - started < LATE_S
    assert verdict.score == 0.0, verdict


def everything() -> list[float | None]:
    return [judged(gold, boxed(answer)).score for gold, answer in [*ORDINARY.values(), *BOMBS.values()]]


@pytest.fixture(scope="module")
def on_the_main_thread(warm: None) -> list[float | None]:
    found = everything()
    assert found[: len(ORDINARY)] == [1.0, 1.0, 0.0]
    return found


def test_another_thread_gives_the_same_scores(on_the_main_thread: list[float | None]) -> None:
    found: list[float | None] = []
    thread = threading.Thread(target=lambda: found.extend(everything()))
    thread.start()
    thread.join(120)

    assert found == on_the_main_thread


def test_a_running_event_loop_gives_the_same_scores(on_the_main_thread: list[float | None]) -> None:
    async def inside() -> list[float | None]:
        return everything()

    assert asyncio.run(inside()) == on_the_main_thread


def test_a_forked_child_gives_the_same_scores(on_the_main_thread: list[float | None]) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            shared(DEADLINE_S, MEMORY_MB).equal("x", "x")
            os.write(writer, repr(everything()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        found = said.read()
    os.waitpid(child, 0)

    assert found == repr(on_the_main_thread)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5", "5.0"),
        (r"\frac{14}{3}", "14/3"),
        ("(3,4]", "[3,4]"),
        (r"\text{even}", "even"),
        (r"\sin^2 x+\cos^2 x", "1"),
    ],
)
def test_a_gold_bare_in_dollars_and_in_a_box_is_the_same_gold(gold: str, answer: str) -> None:
    dressed = (gold, f"${gold}$", boxed(gold), f"${boxed(gold)}$")
    assert len({judged(form, boxed(answer)).score for form in dressed}) == 1


@pytest.mark.parametrize(
    "text",
    [
        "{call}",
        r"\text{{{call}}}",
        r"\pi;{call}",
        r"\begin{{pmatrix}} {call} \\ 1 \end{{pmatrix}}",
        "(lambda: {call})()",
        "x+eval('{call}')",
    ],
)
def test_model_text_is_never_run(tmp_path: Path, text: str) -> None:
    canary = tmp_path / "ran"
    answer = text.format(call=f"__import__('os').system('touch {canary}')")
    assert judged("x+1", boxed(answer)).score == 0.0
    with_symbols = shared(DEADLINE_S, MEMORY_MB).equal("x+1", answer)
    assert with_symbols == "different"
    assert not canary.exists()
