"""Published rows into rows of ours: the built-in mappers, and any function of the user's."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable
from typing import Any

from qwq_rl.data import mappers_code
from qwq_rl.data.row import Row, nearest
from qwq_rl.errors import RowError
from qwq_rl.verifiers.importing import find_callable

Mapper = Callable[[Row], Row]
"""One published row in, one row of ours out; what it raises is reported with the row's line."""

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
"""What the authors of QwQ-32B ask for in mathematics (its model card)."""

_CALCULATOR = re.compile(r"<<.*?>>")


def gsm8k(row: Row) -> Row:
    """Map a row of GSM8K (Cobbe et al. 2021): the answer follows `####`; calculator marks, `<<3*4=12>>`, are dropped.

    GSM8K has no ids: a hash of the question stands in, so that the same problem has the same id in every subset.
    """
    question, (worked, mark, answer) = row["question"], row["answer"].rpartition("####")
    reference = answer.strip().replace(",", "")
    if not mark or not reference:
        raise ValueError("`answer` has no `#### ANSWER` at its end")
    worked = _CALCULATOR.sub("", worked).strip()
    return {
        "id": "gsm8k-" + hashlib.sha256(question.encode()).hexdigest()[:16],
        "domain": "math",
        "family": "gsm8k",
        "prompt": [{"role": "user", "content": f"{question}\n\n{BOXED}"}],
        "checks": [{"verifier": "math", "reference": reference, "role": "score"}],
        "solution": f"{worked}\n</think>\n\n\\boxed{{{reference}}}",
    }


def humaneval(row: Row) -> Row:
    """Map a row of HumanEval (Chen et al. 2021): complete a function; its asserts are the tests."""
    prompt, name = row["prompt"].rstrip("\n"), row["entry_point"]
    program = f"```python\n{prompt}\n{row['canonical_solution'].rstrip()}\n```"
    task = "Complete this function. Answer with the whole program, imports included, in one ```python block.\n\n"
    return {
        "id": row["task_id"],
        "domain": "code",
        "family": "humaneval",
        "prompt": [{"role": "user", "content": f"{task}```python\n{prompt}\n```"}],
        "checks": [
            {
                "verifier": "code",
                # The prompt's imports and helper functions stand before the answer, as in the published harness.
                "reference": {"tests": _asserts(row["test"], name), "entry_point": name, "prelude": prompt + "\n"},
                "role": "score",
            }
        ],
        "solution": f"The body follows from the description.\n</think>\n\n{program}",
    }


def _asserts(test: str, entry_point: str) -> list[dict[str, Any]]:
    """Take HumanEval's `check(candidate)` apart, one test an assert; with loops or variables in it, it is one test."""
    checks = [node for node in ast.parse(test).body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    if not checks:
        raise ValueError("`test` has no function `check(candidate)`")
    check = checks[-1]
    if not all(isinstance(statement, ast.Assert) for statement in check.body):
        return [{"assert": f"{ast.unparse(check)}\ncheck({entry_point})"}]
    for node in ast.walk(check):
        if isinstance(node, ast.Name) and node.id == "candidate":
            node.id = entry_point
    telling = [node for node in check.body if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant)]
    return [{"assert": ast.unparse(ast.Assert(node.test))} for node in telling]


BUILT_IN: dict[str, Mapper] = {
    "gsm8k": gsm8k,
    "humaneval": humaneval,
    "mbpp": mappers_code.mbpp,
    "livecodebench": mappers_code.livecodebench,
    "apps": mappers_code.apps,
    "taco": mappers_code.taco,
    "code_contests": mappers_code.code_contests,
}


def resolve_mapper(name: str) -> Mapper:
    """Find a mapper by its name: one of `BUILT_IN`, `package.module:function` or `path/to/file.py:function`.

    Raises RowError: there is no such mapper, module, file or function; the nearest name is given.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    if ":" not in name:
        forms = f"{', '.join(BUILT_IN)}, module:function or file.py:function"
        raise RowError(f"mapper `{name}` is unknown{nearest(name, BUILT_IN)} (a mapper is {forms})")
    try:
        return find_callable(name)  # type: ignore[no-any-return]
    except LookupError as error:
        raise RowError(f"mapper `{name}`: {error}") from error
