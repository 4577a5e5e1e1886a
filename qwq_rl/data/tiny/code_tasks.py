"""Four code families: three functions and one stdin program, judged by hidden tests.

The prompts give constants as arithmetic modulo 5 (`2+4` stands for 1). So the program needs reasoning, and the same
facts as the math families.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from qwq_rl.data.tiny.math_tasks import MODULUS, apply, worked
from qwq_rl.data.tiny.task import Level, Task, Teacher

WORDS = {"+": "add", "-": "minus", "*": "times"}
REDUCERS: dict[str, Callable[[list[int]], int]] = {"sum": sum, "max": max, "min": min}
LIMITS = {"cpu_s": 1, "wall_s": 5, "memory_mb": 256, "output_kb": 16}


@dataclass(frozen=True)
class Constant:
    """A number given as one operation modulo 5."""

    left: int
    operation: str
    right: int
    taught: int
    """The value that the teacher computes; wrong for a slip."""

    @property
    def value(self) -> int:
        """The right value."""
        return apply(self.operation, self.left, self.right)

    @property
    def text(self) -> str:
        """The text in the prompt."""
        return f"{self.left}{self.operation}{self.right}"

    @property
    def line(self) -> str:
        """The line of the reasoning that computes it."""
        return f"{self.text}={self.taught}"


def _constants(rng: Random, count: int, teacher: Teacher) -> list[Constant]:
    # All are drawn before the teacher computes any: both may use the same generator.
    drawn = [(rng.randrange(MODULUS), rng.choice("+-*"), rng.randrange(MODULUS)) for _ in range(count)]
    return [
        Constant(left, operation, right, teacher.result(apply(operation, left, right), MODULUS))
        for left, operation, right in drawn
    ]


def _operands(constants: list[Constant]) -> tuple[int, ...]:
    return tuple(number for constant in constants for number in (constant.left, constant.right))


def _calculate(operation: str, left: int, right: int) -> int:
    """Return the result as the programs compute it, without the modulo 5."""
    return left + right if operation == "+" else left - right if operation == "-" else left * right


def _program(
    family: str, operands: tuple[Any, ...], prompt: str, reasoning: str, code: str, tests: list[Any], entry: str | None
) -> Task:
    reference = {"tests": tests, "entry_point": entry, "limits": LIMITS}
    check = {"verifier": "code", "reference": reference}
    answer = f"```python\n{code}\n```"
    return Task("code", family, operands, f"mod 5 {prompt}", reasoning, answer, check, terse=True)


def shift(rng: Random, level: Level, teacher: Teacher) -> Task:
    """Several additions and subtractions that the program must combine into one `x+b`."""
    operands = tuple(rng.randrange(MODULUS) for _ in range(4 if level == "harder" else 3))
    operations = tuple(rng.choice("+-") for _ in operands)
    _, right = worked((0, *operands), operations, Teacher())
    reasoning, value = worked((0, *operands), operations, teacher)
    steps = ", ".join(f"{WORDS[operation]} {operand}" for operation, operand in zip(operations, operands, strict=True))
    tests = [{"args": [x], "expected": (x + right) % MODULUS} for x in (0, 3, 9)]
    code = f"def f(x):\n return (x+{value})%5"
    return _program("shift", operands, f"f(x) as x+b: {steps}", reasoning, code, tests, "f")


def lists(rng: Random, level: Level, teacher: Teacher) -> Task:
    """A function that filters, maps and reduces a list."""
    constants = _constants(rng, 3 if level == "harder" else 2, teacher)
    side, operation, reducer = rng.choice("<>"), rng.choice("+-*"), rng.choice(tuple(REDUCERS))
    bound, operand = constants[0].value, constants[1].value
    extra = constants[2].value if level == "harder" else 0

    def value(xs: list[int]) -> int:
        kept = [x for x in xs if (x > bound if side == ">" else x < bound)]
        return REDUCERS[reducer]([_calculate(operation, x, operand) + extra for x in kept])

    # The first list has the values around the bound, so that `<` and `<=` give different results.
    inputs = ([-1, 9, bound, bound + 1, bound - 1], [8, -2, 3, 5], [9, -3, 8, 7, 1, 2])
    expression, words = f"x{operation}{constants[1].taught}", f"{WORDS[operation]} {constants[1].text}"
    if level == "harder":
        expression, words = f"{expression}+{constants[2].taught}", f"{words}, add {constants[2].text}"
    return _program(
        "lists",
        _operands(constants),
        f"f(xs): keep {'over' if side == '>' else 'under'} {constants[0].text}, {words}, {reducer}",
        "\n".join(constant.line for constant in constants),
        f"def f(xs):\n return {reducer}([{expression} for x in xs if x{side}{constants[0].taught}])",
        [{"args": [xs], "expected": value(xs)} for xs in inputs],
        "f",
    )


def branch(rng: Random, level: Level, teacher: Teacher) -> Task:
    """A function with a condition and two outcomes."""
    constants = _constants(rng, 3 if level == "harder" else 2, teacher)
    side, operation = rng.choice("<>"), rng.choice("+-*")
    bound, operand = constants[0].value, constants[1].value
    otherwise = f"-{constants[2].taught}" if level == "harder" else ""

    def value(x: int) -> int:
        if x > bound if side == ">" else x < bound:
            return _calculate(operation, x, operand)
        return x - constants[2].value if level == "harder" else x

    condition = f"if {'over' if side == '>' else 'under'} {constants[0].text}"
    words = f"minus {constants[2].text}" if level == "harder" else "same"
    return _program(
        "branch",
        _operands(constants),
        f"f(x): {condition} {WORDS[operation]} {constants[1].text} else {words}",
        "\n".join(constant.line for constant in constants),
        f"def f(x):\n return x{operation}{constants[1].taught} if x{side}{constants[0].taught} else x{otherwise}",
        [{"args": [x], "expected": value(x)} for x in (bound - 1, bound, bound + 1, 11)],
        "f",
    )


def stdin(rng: Random, level: Level, teacher: Teacher) -> Task:
    """A program that reads two numbers and prints one."""
    constants = _constants(rng, 3 if level == "harder" else 2, teacher)
    join, last = rng.choice("+-*"), rng.choice("+-")
    scaled, unscaled = rng.choice(("ab", "ba"))
    factor, shifts = constants[0].value, [constant.value for constant in constants[1:]]

    def value(a: int, b: int) -> int:
        left, right = (a * factor, b) if scaled == "a" else (b * factor, a)
        return _calculate(join, left, right) + sum(shifts) * (1 if last == "+" else -1)

    steps = ", ".join(f"{WORDS[last]} {constant.text}" for constant in constants[1:])
    taught = [constant.taught for constant in constants]
    expression = f"{scaled}*{taught[0]}{join}{unscaled}" + "".join(f"{last}{number}" for number in taught[1:])
    return _program(
        "stdin",
        _operands(constants),
        f"program: read a b, {scaled} times {constants[0].text}, {WORDS[join]} {unscaled}, {steps}, print",
        "\n".join([constants[0].line, f"{scaled}*{taught[0]}", *(constant.line for constant in constants[1:])]),
        f"a, b = map(int, input().split())\nprint({expression})",
        [{"input": f"{a} {b}\n", "output": f"{value(a, b)}\n"} for a, b in ((0, 1), (2, 3), (-4, 9))],
        None,
    )


FAMILIES = (shift, lists, branch, stdin)
