"""Published sets of programming problems into rows of ours, their tests read by `qwq_rl.sandbox.formats`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from qwq_rl.data.row import Row
from qwq_rl.sandbox import formats

_PROGRAM = (
    "Write a program that reads standard input and writes standard output. "
    "Answer with the whole program in one ```{block} block."
)
_FUNCTION = "Answer with the whole program, imports included, in one ```python block."


def mbpp(row: Row) -> Row:
    """Map a row of MBPP (Austin et al. 2021), sanitized or not: a function, told by the first of its tests."""
    fields = formats.mbpp(row)
    text = row.get("text") or row.get("prompt") or row["content"]
    examples = "\n".join(row["test_list"])
    question = f"{text}\n\nThe program must pass tests such as these:\n```python\n{examples}\n```\n\n{_FUNCTION}"
    number = row.get("task_id", row.get("id"))
    return _row(f"mbpp-{number}", "mbpp", question, fields, row.get("code") or row.get("canonical_solution"))


def livecodebench(row: Row) -> Row:
    """Map a row of LiveCodeBench (Jain et al. 2024): programs of standard input, and methods of a given class."""
    fields = formats.livecodebench(row)
    question = str(row["question_content"] if "question_content" in row else row["content"])
    if starter := row.get("starter_code"):
        question += f"\n\nStart from this code:\n```python\n{starter}\n```"
    if "content" not in row:  # that form says itself how to answer
        question += f"\n\n{_FUNCTION if 'entry_point' in fields else _PROGRAM.format(block='python')}"
    name = row.get("question_id") or row.get("id")
    return _row(f"livecodebench-{name}", "livecodebench", question, fields, None)


def apps(row: Row) -> Row:
    """Map a row of APPS (Hendrycks et al. 2021)."""
    return _with_input_output(row, "apps")


def taco(row: Row) -> Row:
    """Map a row of TACO (Li et al. 2023), laid out as APPS; it has no ids: the question's hash stands in."""
    return _with_input_output(row, "taco")


def code_contests(row: Row) -> Row:
    """Map a row of CodeContests (Li et al. 2022): Python or C++; the row's own time limit, at least a second."""
    fields = formats.code_contests(row)
    question = str(row["description"] if "description" in row else row["content"])
    question += f"\n\n{_PROGRAM.format(block='python or ```cpp')}"
    fields["language"] = ["python", "cpp"]
    limits: dict[str, Any] = {}
    if limit := row.get("time_limit"):
        limits["cpu_s"] = max(1.0, limit.get("seconds", 0) + limit.get("nanos", 0) / 1e9)
    if size := row.get("memory_limit_bytes"):
        limits["memory_mb"] = max(64, int(size) >> 20)
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
    found = row.get("solutions") or []
    solutions = json.loads(found) if isinstance(found, str) else found
    return _row(f"{family}-{name}", family, question, fields, solutions[0] if solutions else None)


def _python3(row: Row) -> str | None:
    """The first solution in Python 3, which CodeContests calls language 3."""
    given = row.get("solutions") or {}
    pairs: Sequence[tuple[Any, str]] = list(zip(given.get("language", ()), given.get("solution", ()), strict=True))
    return next((text for language, text in pairs if language in (3, "PYTHON3")), None)


def _row(name: str, family: str, question: str, fields: dict[str, Any], solution: str | None) -> Row:
    told = (
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
        "solution": told,
    }
