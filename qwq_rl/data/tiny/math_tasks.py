"""Three math families over arithmetic modulo 5, answered in `\\boxed{}`.

Modulo 5 there are 75 facts to learn (three operations, 25 pairs). A model of 0.1 M parameters learns them in a minute;
it does not learn the 300 facts of modulo 10 in that time.
"""

from __future__ import annotations

from random import Random

from qwq_rl.data.tiny.task import Level, Task, Teacher

MODULUS = 5
NAMES = ("Ann", "Bob", "Eve", "Max", "Mia", "Tom", "Zoe", "Sam")
ITEMS = ("figs", "pens", "nuts", "eggs", "cups", "keys")
VERBS = {"+": "finds", "-": "loses", "*": "has times"}


def apply(operation: str, left: int, right: int) -> int:
    """Return `left operation right` modulo 5."""
    value = {"+": left + right, "-": left - right, "*": left * right}[operation]
    return value % MODULUS


def worked(operands: tuple[int, ...], operations: tuple[str, ...], teacher: Teacher) -> tuple[str, int]:
    """Return the steps from left to right, one a line, and the result, as the teacher computes them."""
    lines, value = [], operands[0]
    for operation, operand in zip(operations, operands[1:], strict=True):
        result = teacher.result(apply(operation, value, operand), MODULUS)
        lines.append(f"{value}{operation}{operand}={result}")
        value = result
    return "\n".join(lines), value


def _draw(rng: Random, level: Level) -> tuple[tuple[int, ...], tuple[str, ...]]:
    steps = 4 if level == "harder" else rng.choice((2, 3, 3))
    operands = tuple(rng.randrange(MODULUS) for _ in range(steps + 1))
    return operands, tuple(rng.choice("+-*") for _ in range(steps))


def _task(family: str, prompt: str, operands: tuple[int, ...], operations: tuple[str, ...], teacher: Teacher) -> Task:
    # The reference comes from a teacher without slips, whatever `teacher` answers.
    _, right = worked(operands, operations, Teacher())
    reasoning, value = worked(operands, operations, teacher)
    check = {"verifier": "math", "reference": str(right)}
    return Task("math", family, operands, prompt, reasoning, f"\\boxed{{{value}}}", check, terse=True)


def chain(rng: Random, level: Level, teacher: Teacher) -> Task:
    """An expression to be computed from left to right."""
    operands, operations = _draw(rng, level)
    tail = "".join(f"{operation}{x}" for operation, x in zip(operations, operands[1:], strict=True))
    return _task("chain", f"left to right mod 5: {operands[0]}{tail}", operands, operations, teacher)


def story(rng: Random, level: Level, teacher: Teacher) -> Task:
    """A word problem."""
    operands, operations = _draw(rng, level)
    name, item = rng.choice(NAMES), rng.choice(ITEMS)
    events = ", ".join(f"{VERBS[operation]} {x}" for operation, x in zip(operations, operands[1:], strict=True))
    prompt = f"{name} has {operands[0]} {item}, {events}. how many mod 5?"
    return _task("story", prompt, operands, operations, teacher)


def assign(rng: Random, level: Level, teacher: Teacher) -> Task:
    """A sequence of assignments."""
    operands, operations = _draw(rng, level)
    names = "abcdefg"
    lines = [f"a={operands[0]}"]
    for index, (operation, operand) in enumerate(zip(operations, operands[1:], strict=True)):
        lines.append(f"{names[index + 1]}={names[index]}{operation}{operand}")
    prompt = "; ".join(lines) + f". {names[len(operations)]} mod 5?"
    return _task("assign", prompt, operands, operations, teacher)


FAMILIES = (chain, story, assign)
