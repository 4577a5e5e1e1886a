"""Mappers turn a row of a published data set into a row of ours: the built-in ones, or a function of the user's."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from qwq_rl.data.row import Row
from qwq_rl.errors import RowError, did_you_mean
from qwq_rl.sandbox import formats
from qwq_rl.verifiers.loading import find_callable

Mapper = Callable[[Row], Row]
"""Takes one published row and returns one row of ours. What it raises is reported with the number of the row's line."""

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
"""The instruction for mathematics that the model card of QwQ-32B recommends."""

_CALCULATOR = re.compile(r"<<.*?>>")


_PROGRAM = (
    "Write a program that reads standard input and writes standard output. "
    "Answer with the whole program in one ```{block} block."
)
_FUNCTION = "Answer with the whole program, imports included, in one ```python block."


def gsm8k(row: Row) -> Row:
    """Map a row of GSM8K (Cobbe et al. 2021): the answer follows `####`; calculator marks, `<<3*4=12>>`, are removed.

    GSM8K has no ids. The id is a hash of the question, so the same problem has the same id in every subset.
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
    """Map a row of HumanEval (Chen et al. 2021): the task is to complete a function; its asserts are the tests."""
    prompt, entry_point = row["prompt"].rstrip("\n"), row["entry_point"]
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
                "reference": {
                    "tests": _asserts(row["test"], entry_point),
                    "entry_point": entry_point,
                    "prelude": prompt + "\n",
                },
                "role": "score",
            }
        ],
        "solution": f"The body follows from the description.\n</think>\n\n{program}",
    }


def _asserts(test: str, entry_point: str) -> list[dict[str, Any]]:
    """Split HumanEval's `check(candidate)` into one test an assert; if it has other statements, it is one test."""
    checks = [node for node in ast.parse(test).body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    if not checks:
        raise ValueError("`test` has no function `check(candidate)`")
    check = checks[-1]
    if not all(isinstance(statement, ast.Assert) for statement in check.body):
        # Asserts that use a loop or a variable cannot stand alone.
        return [{"assert": f"{ast.unparse(check)}\ncheck({entry_point})"}]
    for node in ast.walk(check):
        if isinstance(node, ast.Name) and node.id == "candidate":
            node.id = entry_point
    # `assert True` tests nothing.
    asserts = [node for node in check.body if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant)]
    return [{"assert": ast.unparse(ast.Assert(node.test))} for node in asserts]


def mbpp(row: Row) -> Row:
    """Map a row of MBPP (Austin et al. 2021), sanitized or not: write a function; the prompt shows `test_list`."""
    fields = formats.mbpp(row)
    text = row.get("text") or row.get("prompt") or row["content"]
    examples = "\n".join(row["test_list"])
    question = f"{text}\n\nThe program must pass tests such as these:\n```python\n{examples}\n```\n\n{_FUNCTION}"
    number = row.get("task_id", row.get("id"))
    return _row(f"mbpp-{number}", "mbpp", question, fields, row.get("code") or row.get("canonical_solution"))


def livecodebench(row: Row) -> Row:
    """Map a row of LiveCodeBench (Jain et al. 2024): stdin programs, and methods of a given class."""
    fields = formats.livecodebench(row)
    question = str(row["question_content"] if "question_content" in row else row["content"])
    if starter := row.get("starter_code"):
        question += f"\n\nStart from this code:\n```python\n{starter}\n```"
    if "content" not in row:  # the form with `content` says itself how to answer
        question += f"\n\n{_FUNCTION if 'entry_point' in fields else _PROGRAM.format(block='python')}"
    name = row.get("question_id") or row.get("id")
    return _row(f"livecodebench-{name}", "livecodebench", question, fields, None)


def apps(row: Row) -> Row:
    """Map a row of APPS (Hendrycks et al. 2021)."""
    return _with_input_output(row, "apps")


def taco(row: Row) -> Row:
    """Map a row of TACO (Li et al. 2023). It has the columns of APPS but no ids: the id is a hash of the question."""
    return _with_input_output(row, "taco")


def code_contests(row: Row) -> Row:
    """Map a row of CodeContests (Li et al. 2022): Python or C++. The time limit is the row's own, at least 1 s."""
    fields = formats.code_contests(row)
    question = str(row["description"] if "description" in row else row["content"])
    question += f"\n\n{_PROGRAM.format(block='python or ```cpp')}"
    fields["language"] = ["python", "cpp"]
    limits: dict[str, Any] = {}
    if time_limit := row.get("time_limit"):
        limits["cpu_s"] = max(1.0, time_limit.get("seconds", 0) + time_limit.get("nanos", 0) / 1e9)
    if memory_bytes := row.get("memory_limit_bytes"):
        limits["memory_mb"] = max(64, int(memory_bytes) >> 20)
    if limits:
        fields["limits"] = limits
    return _row(f"code_contests-{row.get('name') or row.get('id')}", "code_contests", question, fields, _python3(row))


def _with_input_output(row: Row, family: str) -> Row:
    fields = formats.apps(row)
    question = str(row["question"])
    if starter := row.get("starter_code"):
        question += f"\n\nStart from this code:\n```python\n{starter}\n```"
    question += f"\n\n{_FUNCTION if 'entry_point' in fields else _PROGRAM.format(block='python')}"
    name = row.get("problem_id", row.get("id"))
    if name is None:
        name = hashlib.sha256(str(row["question"]).encode()).hexdigest()[:16]
    column = row.get("solutions") or []
    solutions = json.loads(column) if isinstance(column, str) else column
    return _row(f"{family}-{name}", family, question, fields, solutions[0] if solutions else None)


def _python3(row: Row) -> str | None:
    """Return the first solution in Python 3, which is language 3 in CodeContests."""
    columns = row.get("solutions") or {}
    pairs: Sequence[tuple[Any, str]] = list(zip(columns.get("language", ()), columns.get("solution", ()), strict=True))
    return next((code for language, code in pairs if language in (3, "PYTHON3")), None)


def _row(name: str, family: str, question: str, fields: dict[str, Any], solution: str | None) -> Row:
    response = (
        None
        if solution is None
        else f"It follows from the description.\n</think>\n\n```python\n{solution.rstrip()}\n```"
    )
    return {
        "id": name,
        "domain": "code",
        "family": family,
        "prompt": [{"role": "user", "content": question}],
        "checks": [{"verifier": "code", "reference": {"entry_point": None, **fields}, "role": "score"}],
        "solution": response,
    }


BUILT_IN: dict[str, Mapper] = {
    "gsm8k": gsm8k,
    "humaneval": humaneval,
    "mbpp": mbpp,
    "livecodebench": livecodebench,
    "apps": apps,
    "taco": taco,
    "code_contests": code_contests,
}


def resolve_mapper(name: str) -> Mapper:
    """Return the mapper with this name: one of `BUILT_IN`, `package.module:function` or `path/to/file.py:function`.

    Raises RowError if there is no such mapper, module, file or function; the message gives the nearest name.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    if ":" not in name:
        forms = f"{', '.join(BUILT_IN)}, module:function or file.py:function"
        raise RowError(f"mapper `{name}` is unknown{did_you_mean(name, BUILT_IN)} (a mapper is {forms})")
    try:
        return find_callable(name)  # type: ignore[no-any-return]
    except LookupError as error:
        raise RowError(f"mapper `{name}`: {error}") from error
