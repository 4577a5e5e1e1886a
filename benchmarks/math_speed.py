"""Answers per CPU second of the built-in verifier `math`, TRL's `accuracy_reward` and math-verify, side by side.

    python benchmarks/math_speed.py [--quick] [--seed 0]

One process, main thread, all warmed. 60 % integers, 15 % fractions, 25 % expressions; completions of 2 to 20 thousand
characters with a closed thinking block; every pair is new, so no cache of verdicts can help. Golds are boxed for the
peers and bare for us; ours is timed with the splitting of the thinking. CPU seconds count the processes below too.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator

import math_peers
import psutil

THOUGHTS = (
    "Let me set up the equation first and see what follows from it.",
    "We know that the total is {a}, so the rest must be {b} after the first step.",
    "Substituting $x = {a}$ gives $x^2 + {b}x = {c}$, which I can check by hand.",
    "Wait, that does not look right; let me go over the case of {b} again.",
    r"So we need $\frac{{{a}}}{{{b}}}$ of the whole, and then multiply by {c}.",
    "Hmm, alternatively count the pairs: there are {a} of the first kind and {b} of the second.",
    "Therefore the two sides agree, and both conditions of the problem hold.",
)
Pair = tuple[str, str, str]
"""The gold, the same value written in another way, and another value."""


def integer(rng: random.Random) -> Pair:
    """A pair for which no formula needs to be read."""
    value = rng.choice([rng.randint(2, 999), rng.randint(1000, 9_999_999)]) * rng.choice([1, 1, 1, -1])
    return (
        str(value),
        rng.choice([f"{value:,}", f"{value}.0", f"x = {value}"]),
        str(value + rng.choice([-1, 1, 10, 100])),
    )


def fraction(rng: random.Random) -> Pair:
    """A fraction, which may come as a quotient or not reduced."""
    top, bottom = rng.randint(1, 400), rng.randint(2, 400)
    other = rng.choice([f"{top}/{bottom}", f"\\dfrac{{{2 * top}}}{{{2 * bottom}}}"])
    return f"\\frac{{{top}}}{{{bottom}}}", other, f"\\frac{{{top + 1}}}{{{bottom}}}"


def expression(rng: random.Random) -> Pair:
    """Roots, polynomials, tuples, intervals, complex numbers, powers, lines and sets."""
    a, b, c = rng.randint(2, 60), rng.choice([2, 3, 5, 6, 7, 10, 11, 13]), rng.randint(2, 60)
    root = f"\\sqrt{{{b}}}"
    return rng.choice(
        [
            (f"{a}{root}", f"\\sqrt{{{a * a * b}}}", f"{a + 1}{root}"),
            (f"\\frac{{{a}{root}}}{{{c}}}", f"\\frac{{{a}}}{{{c}}}{root}", f"\\frac{{{a}{root}}}{{{c + 1}}}"),
            (f"x^2+{a + c}x+{a * c}", f"(x+{a})(x+{c})", f"(x-{a})(x+{c})"),
            (f"{a * b}x^3-{c}x+{b}", f"{b}-{c}x+{a * b}x^3", f"{a * b}x^3+{c}x+{b}"),
            (f"{a}+{c}\\pi", f"{c}\\pi + {a}", f"{a + c}\\pi"),
            (f"\\frac{{{a}\\pi}}{{{b}}}", f"\\frac{{{a}}}{{{b}}}\\pi", f"\\frac{{{b}\\pi}}{{{a + b}}}"),
            (f"({a}, {-c})", f"\\left({a},{-c}\\right)", f"({-c}, {a})"),
            (f"({a}, {a + c}]", f"\\left({a},{a + c}\\right]", f"[{a}, {a + c}]"),
            (f"{a} - {c}i", f"-{c}i+{a}", f"{a} + {c}i"),
            (f"2^{{{a + 60}}}+{c}", f"{c} + 4 \\cdot 2^{{{a + 58}}}", f"2^{{{a + 61}}}+{c}"),
            (f"y={a}x+{c}", f"y={c}+{a}x", f"y={c}x+{a + 1}"),
            (f"\\{{{a}, {-b}, {a + c}\\}}", f"\\{{{-b}, {a}, {a + c}\\}}", f"\\{{{a}, {b}, {a + c}\\}}"),
        ]
    )  # fmt: skip


def pairs(rng: random.Random) -> Iterator[tuple[str, str, bool]]:
    """(gold, answer, whether it is right), each pair once: 40 % as the gold is written, 20 % otherwise, 40 % wrong."""
    seen = set()
    while True:
        kind: Callable[[random.Random], Pair] = rng.choices([integer, fraction, expression], [60, 15, 25])[0]
        gold, other, wrong = kind(rng)
        answer, right = rng.choices([(gold, True), (other, True), (wrong, False)], [40, 20, 40])[0]
        if (gold, answer) not in seen:
            seen.add((gold, answer))
            yield gold, answer, right


def completion(answer: str, rng: random.Random) -> str:
    """A response of 2 to 20 thousand characters that thinks, closes its thinking and boxes the answer."""
    length, thoughts = rng.randint(2_000, 20_000), []
    while length > 0:
        a, b, c = (rng.randint(2, 999) for _ in range(3))
        thoughts.append(rng.choice(THOUGHTS).format(a=a, b=b, c=c))
        length -= len(thoughts[-1]) + 1
    said = f"The two steps above give the result.\n\nThe answer is $\\boxed{{{answer}}}$."
    return f"<think>\n{' '.join(thoughts)}\n</think>\n{said}"


def cpu_seconds() -> float:
    """Of this process and everything below it, ended children included."""
    below = (process.cpu_times() for process in psutil.Process().children(recursive=True))
    return time.process_time() + sum(sum(spent[:4]) for spent in below)


def timed(grader: math_peers.Grader, items: list[tuple[str, str, bool]]) -> tuple[float, int]:
    """Answers per CPU second, and how many were judged as they are."""
    started = cpu_seconds()
    found = [grader(text, gold) for text, gold, _ in items]
    spent = cpu_seconds() - started
    return len(items) / spent, sum(bool(score) == right for score, (_, _, right) in zip(found, items, strict=True))


def main() -> None:
    """Let the graders judge by turns, each round beginning with another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 rounds of 60 instead of 7 of 300")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rounds, size = (2, 60) if options.quick else (7, 300)
    rng = random.Random(options.seed)
    source = pairs(rng)

    def batch(count: int) -> list[tuple[str, str, bool]]:
        return [(completion(answer, rng), gold, right) for gold, answer, right in (next(source) for _ in range(count))]

    graders = {
        "qwq_rl math": math_peers.ours(),
        "trl accuracy_reward": math_peers.trl(),
        "math-verify": math_peers.math_verify(),
    }
    warm = batch(40)
    for grader in graders.values():
        timed(grader, warm)
    speeds: dict[str, list[float]] = {name: [] for name in graders}
    agreed = dict.fromkeys(graders, 0)
    for number in range(rounds):
        items = batch(size)
        for turn in range(len(graders)):
            name = [*graders][(number + turn) % len(graders)]
            speed, right = timed(graders[name], items)
            speeds[name].append(speed)
            agreed[name] += right
    report(speeds, agreed, rounds * size)


def report(speeds: dict[str, list[float]], agreed: dict[str, int], count: int) -> None:
    """Print a line a grader: its speed, its speed beside TRL's, and how many of `count` it judged as they are."""
    print(f"{count} answers in {len(speeds['qwq_rl math'])} rounds; median, and lowest to highest round\n")
    print(f"{'grader':<22}{'answers per CPU s':>28}{'times TRL':>26}{'judged right':>16}")
    for name, found in speeds.items():
        ratios = [one / trl for one, trl in zip(found, speeds["trl accuracy_reward"], strict=True)]
        speed = f"{statistics.median(found):,.0f} ({min(found):,.0f} to {max(found):,.0f})"
        ratio = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        print(f"{name:<22}{speed:>28}{ratio:>26}{agreed[name] / count:>15.2%}")


if __name__ == "__main__":
    main()
