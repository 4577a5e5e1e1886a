"""The longest verdict of `math` under hostile answers, and whether all places give the same verdicts.

    python benchmarks/math_hostile.py [--deadline 1.0] [--slowest 10]

Each payload of math_payloads.py is judged on the main thread, on another thread, inside a running event loop and in a
forked child, by a new verifier each time and with its processes warmed. Besides: golds bare, in dollars and in a box
must give one verdict, and no payload is ever run.

Exits 1 if a verdict took longer than the deadline and 0.2 s, if two places give different scores, or if a payload was
run. What is wrong after nearly the whole deadline may be a timeout where the machine is busier: listed, scored alike.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import os
import pickle
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from math_payloads import payloads

from qwq_rl.verifiers import Response, load
from qwq_rl.verifiers.mathematics.algebra.client import shared

MEMORY_MB = 2048
MARGIN_S = 0.2
PAIRS = [
    ("5", "5.0"), ("1000", "1,000"), ("-3", "3"), ("0.5", r"\frac{1}{2}"), (r"\frac{14}{3}", "14/3"), ("2.5", "5/2"),
    (r"3\sqrt{13}", r"\sqrt{117}"), (r"\frac{\pi}{2}", r"\pi/2"), ("(x+1)^2", "x^2+2x+1"), ("(1,2)", "(2,1)"),
    ("(3,4]", r"3<x\le 4"), ("(3,4]", "[3,4]"), ("1,-2", "-2, 1"), (r"\{1,2\}", r"\{2,1\}"), (r"90^\circ", "90"),
    (r"\text{Evelyn}", "Evelyn"), (r"\text{even}", "odd"), (r"\text{(C)}", "C"), (r"\$18.90", "18.9"), ("52_8", "52_9"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}"), ("y = 2x + 3", "y=3+2x"),
    ("6 - 5i", "-5i+6"), (r"3 \pm 2\sqrt{2}", r"3+2\sqrt{2}, 3-2\sqrt{2}"), (r"(-\infty, 0]", r"x \le 0"), ("x=5", "5"),
    (r"15\mbox{ cm}^2", "15"), ("58,500", "58500"), (r"50\%", "0.5"), (r"\sin^2 x+\cos^2 x", "1"), ("@@", "1"),
    ("2^{10}", "1024"),
]  # fmt: skip


class Judged(NamedTuple):
    """A verdict, as far as it is compared, and the wall seconds that it took."""

    score: float | None
    status: str
    seconds: float


async def judged(verifier: Any, gold: str, answer: str) -> Judged:
    """Judge one answer, be the verifier async or not."""
    started = time.perf_counter()
    verdict = verifier({"reference": gold}, Response(text=answer, answer=answer))
    if inspect.isawaitable(verdict):
        verdict = await verdict
    return Judged(verdict.score, verdict.status, time.perf_counter() - started)


def new_verifier(deadline_s: float) -> Any:
    """It remembers nothing of what another has judged; the processes of math-verify are shared, and running."""
    shared(deadline_s, MEMORY_MB).equal("x", "x")
    return load("math", {"deadline_s": deadline_s, "memory_mb": MEMORY_MB})


def all_judged(verifier: Any, items: list[tuple[str, str, str]]) -> list[Judged]:
    """Judge where no event loop runs: a verifier that is not async never waits for one."""
    found = []
    for _, gold, answer in items:
        started = time.perf_counter()
        verdict = verifier({"reference": gold}, Response(text=answer, answer=answer))
        assert not inspect.isawaitable(verdict)
        found.append(Judged(verdict.score, verdict.status, time.perf_counter() - started))
    return found


def on_a_thread(verifier: Any, items: list[tuple[str, str, str]]) -> list[Judged]:
    """Judge in a thread that is not the main one."""
    found: list[Judged] = []
    thread = threading.Thread(target=lambda: found.extend(all_judged(verifier, items)))
    thread.start()
    thread.join()
    return found


def in_a_loop(verifier: Any, items: list[tuple[str, str, str]]) -> list[Judged]:
    """Judge inside a running event loop."""

    async def everything() -> list[Judged]:
        return [await judged(verifier, gold, answer) for _, gold, answer in items]

    return asyncio.run(everything())


def in_a_child(deadline_s: float, items: list[tuple[str, str, str]]) -> list[Judged]:
    """Judge in a forked copy of this process, which has a verifier of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = all_judged(new_verifier(deadline_s), items)
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump([tuple(one) for one in found], pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        found = [Judged(*one) for one in pickle.load(pipe)]
    os.waitpid(child, 0)
    return found


def forms_that_differ(verifier: Any) -> list[str]:
    """The pairs whose verdict hangs on how the gold is dressed."""
    differing = []
    for gold, answer in PAIRS:
        dressed = {"bare": gold, "dollars": f"${gold}$", "boxed": f"\\boxed{{{gold}}}"}
        found = {
            name: all_judged(verifier, [("", form, f"\\boxed{{{answer}}}")])[0][:2] for name, form in dressed.items()
        }
        if len(set(found.values())) > 1:
            differing.append(f"{gold} and {answer}: {found}")
    return differing


def main() -> int:
    """Judge every hostile answer at every place; 1 where that is late, differs, or ran a text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deadline", type=float, default=1.0)
    parser.add_argument("--slowest", type=int, default=10)
    options = parser.parse_args()
    deadline_s: float = options.deadline
    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder) / "ran"
        items = payloads(str(canary))
        places = {
            "main thread": all_judged(new_verifier(deadline_s), items),
            "other thread": on_a_thread(new_verifier(deadline_s), items),
            "event loop": in_a_loop(new_verifier(deadline_s), items),
            "forked child": in_a_child(deadline_s, items),
        }
        ran = canary.exists()
    print(f"{len(items)} hostile answers, deadline {deadline_s:g} s; worst wall seconds of one verdict:")
    for place, found in places.items():
        print(f"  {place:<14}{max(one.seconds for one in found):8.3f}")
    slowest = sorted(zip(items, *places.values(), strict=True), key=lambda row: -max(one.seconds for one in row[1:]))
    for (name, _, _), *found in slowest[: options.slowest]:
        print(f"  {name:<28}{found[0].status:<12}", " ".join(f"{one.seconds:7.3f}" for one in found))
    accepted = [f"{name} passed as {gold}" for (name, gold, _), first, *_ in slowest if first.score and gold != "1"]
    differing = [f"{name}: {found}" for (name, _, _), *found in slowest if len({one.score for one in found}) > 1]
    times = [
        f"{name}: {[one.status for one in found]}"
        for (name, _, _), *found in slowest
        if len({one.status for one in found}) > 1
    ]
    dressed = forms_that_differ(new_verifier(deadline_s))
    lists = {
        "Accepted": accepted,
        "Scores differ": differing,
        "Statuses differ": times,
        "Golds differ by dress": dressed,
    }
    for title, lines in lists.items():
        print(f"{title}: {len(lines)}", *lines, sep="\n  ")
    print(f"Run as code: {'YES' if ran else 'never'}")
    late = max(one.seconds for found in places.values() for one in found) > deadline_s + MARGIN_S
    return int(late or bool(differing) or bool(dressed) or ran)


if __name__ == "__main__":
    sys.exit(main())
