"""Four code families: three functions and one stdin program, judged by running them against hidden tests."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from qwq_rl.tiny.math_tasks import MODULUS, apply
from qwq_rl.tiny.task import Level, Task

WORDS = {"+": "add", "-": "minus", "*": "times"}
REDUCERS: dict[str, Callable[[list[int]], int]] = {"sum": sum, "max": max, "min": min, "len": len}
LIMITS = {"cpu_s": 1, "wall_s": 5, "memory_mb": 256, "output_kb": 16}


def _function(family: str, operands: tuple[Any, ...], prompt: str, reasoning: str, body: str, tests: list[Any]) -> Task:
    parameter = "xs" if family == "lists" else "x"
    code = f"def f({parameter}):\n return {body}"
    return _code(family, operands, prompt, reasoning, code, {"tests": tests, "entry_point": "f", "limits": LIMITS})


def _code(
    family: str, operands: tuple[Any, ...], prompt: str, reasoning: str, code: str, reference: dict[str, Any]
) -> Task:
    check = {"verifier": "code", "reference": reference}
    return Task("code", family, operands, prompt, reasoning, f"```python\n{code}\n```", check, terse=True)


def fold(rng: Random, level: Level) -> Task:
    """Several steps modulo 5 that must be folded into one `a * x + b`: the arithmetic belongs into the reasoning."""
    count = 4 if level == "harder" else 3
    operands = tuple(rng.randrange(1, MODULUS) for _ in range(count))
    operations = tuple(rng.choice("+-*") for _ in range(count))
    factor, shift, lines = 1, 0, []
    for operation, operand in zip(operations, operands, strict=True):
        new_shift = apply(operation, shift, operand)
        if operation == "*":
            new_factor = apply("*", factor, operand)
            lines.append(f"{factor}*{operand}={new_factor},{shift}*{operand}={new_shift}")
            factor = new_factor
        else:
            lines.append(f"{shift}{operation}{operand}={new_shift}")
        shift = new_shift
    steps = ", ".join(f"{WORDS[o]} {c}" for o, c in zip(operations, operands, strict=True))
    tests = [{"args": [x], "expected": (factor * x + shift) % MODULUS} for x in (0, 1, 9)]
    prompt = f"f(x) mod 5 as a*x+b: {steps}"
    return _function("fold", operands, prompt, "\n".join(lines), f"({factor}*x+{shift})%5", tests)


def lists(rng: Random, level: Level) -> Task:
    """Filter, map and reduce a list."""
    bound, operation, operand = rng.randrange(1, 9), rng.choice("+-*"), rng.randrange(2, 9)
    side, reducer = rng.choice("<>"), rng.choice(tuple(REDUCERS))
    second = rng.randrange(2, 9) if level == "harder" else None

    def value(xs: list[int]) -> int:
        kept = [x for x in xs if (x > bound if side == ">" else x < bound)]
        mapped = [x + operand if operation == "+" else x - operand if operation == "-" else x * operand for x in kept]
        return REDUCERS[reducer]([x + second for x in mapped] if second else mapped)

    inputs = [[0, 9, bound, bound + 1, bound - 1], [0, 9, 3, 5], [9, 0, 8, 7, 1, 2]]
    expression = f"x{operation}{operand}" + (f"+{second}" if second else "")
    steps = f"{WORDS[operation]} {operand}" + (f", add {second}" if second else "")
    operands = (bound, operand) if second is None else (bound, operand, second)
    return _function(
        "lists",
        operands,
        f"f(xs): keep {'over' if side == '>' else 'under'} {bound}, {steps}, {reducer}",
        f"x{side}{bound}\n{expression}\n{reducer}",
        f"{reducer}([{expression} for x in xs if x{side}{bound}])",
        [{"args": [xs], "expected": value(xs)} for xs in inputs],
    )


def branch(rng: Random, level: Level) -> Task:
    """A condition with two outcomes."""
    bound, yes, no = rng.randrange(1, 9), rng.randrange(2, 9), rng.randrange(2, 9)
    first, second = rng.choice("+-*"), rng.choice("+-*")
    side = rng.choice("<>")
    extra = rng.randrange(2, 9) if level == "harder" else None
    tail, words = (f"+{extra}", f", add {extra}") if extra else ("", "")

    def value(x: int) -> int:
        operation, operand = (first, yes) if (x > bound if side == ">" else x < bound) else (second, no)
        result = x + operand if operation == "+" else x - operand if operation == "-" else x * operand
        return result + (extra or 0)

    where = "over" if side == ">" else "under"
    operands = (bound, yes, no) if extra is None else (bound, yes, no, extra)
    return _function(
        "branch",
        operands,
        f"f(x): if {where} {bound} {WORDS[first]} {yes} else {WORDS[second]} {no}{words}",
        f"x{side}{bound}\nx{first}{yes}\nx{second}{no}" + (f"\n+{extra}" if extra else ""),
        f"(x{first}{yes} if x{side}{bound} else x{second}{no}){tail}",
        [{"args": [x], "expected": value(x)} for x in (bound - 1, bound, bound + 1, 11)],
    )


def stdin(rng: Random, level: Level) -> Task:
    """A program that reads two numbers and prints one."""
    operands = tuple(rng.randrange(2, 10) for _ in range(3 if level == "harder" else 2))
    join, last = rng.choice("+-*"), rng.choice("+-")
    scaled, other = rng.choice(("ab", "ba"))
    expression = f"{scaled}*{operands[0]}{join}{other}" + "".join(f"{last}{c}" for c in operands[1:])

    def value(a: int, b: int) -> int:
        left, right = (a * operands[0], b) if scaled == "a" else (b * operands[0], a)
        joined = left + right if join == "+" else left - right if join == "-" else left * right
        return joined + sum(operands[1:]) * (1 if last == "+" else -1)

    steps = ", ".join(f"{WORDS[last]} {c}" for c in operands[1:])
    prompt = f"program: read a b, {scaled} times {operands[0]}, {WORDS[join]} {other}, {steps}, print"
    code = f"a, b = map(int, input().split())\nprint({expression})"
    tests = [{"input": f"{a} {b}\n", "output": f"{value(a, b)}\n"} for a, b in ((0, 1), (2, 3), (-4, 9))]
    reference = {"tests": tests, "entry_point": None, "limits": LIMITS}
    reasoning = f"{scaled}*{operands[0]}\n{join}{other}" + "".join(f"\n{last}{c}" for c in operands[1:])
    return _code("stdin", operands, prompt, reasoning, code, reference)


FAMILIES = (fold, lists, branch, stdin)
