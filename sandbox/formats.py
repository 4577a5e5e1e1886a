"""Test sets as their owners publish them, as fields of a job: `Job(name, code, **fields)`.

LiveCodeBench (https://livecodebench.github.io), APPS (arXiv 2105.09938), TACO (arXiv 2312.14852), CodeContests (arXiv
2203.07814), HumanEval (arXiv 2107.03374), MBPP (arXiv 2108.07732); and the forms that SandboxFusion gives them.
"""

from __future__ import annotations

import ast
import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Fields = dict[str, Any]


class FormatError(ValueError):
    """A row is not what its format says; the text names the field."""


def livecodebench(row: Row) -> Fields:
    """Public and private tests, of standard input or of a function whose name the metadata gives; compare: tokens.

    Private tests are JSON, or that compressed and pickled, of which nothing but plain data is accepted.
    """
    if "test" in row:
        held = _unpacked(row["test"], "test")
        held = _unpacked(held["input_output"], "test.input_output") if "input_output" in held else held
        name = held.get("fn_name")
        pairs = zip(held["inputs"], held["outputs"], strict=True)
        tests = [{"input": left, "output": right} for left, right in pairs]
    else:
        name = _unpacked(row.get("metadata") or "{}", "metadata").get("func_name")
        kinds = ("public_test_cases", "private_test_cases")
        tests = [test for kind in kinds for test in _unpacked(row.get(kind) or "[]", kind)]
    if not tests:
        raise FormatError("public_test_cases and private_test_cases hold no test")
    if name is None:
        return {"tests": [{"input": test["input"], "output": test["output"]} for test in tests]}
    return {"tests": [_call(test) for test in tests], "entry_point": name}


def apps(row: Row) -> Fields:
    """APPS and TACO: `input_output` is JSON of inputs and outputs, of standard input or of the function `fn_name`.

    Outputs of functions are often wrapped in a list of one: where all are, they are unwrapped.
    """
    given = _json(row.get("input_output") or "{}", "input_output")
    inputs, outputs = given.get("inputs") or [], given.get("outputs") or []
    if not inputs or len(inputs) != len(outputs):
        raise FormatError(f"input_output has {len(inputs)} inputs and {len(outputs)} outputs: give as many, and one")
    pairs = list(zip(inputs, outputs, strict=True))
    if (name := given.get("fn_name")) is None:
        return {"tests": [{"input": _text(left), "output": _text(right)} for left, right in pairs]}
    if all(isinstance(right, list) and len(right) == 1 for right in outputs):
        pairs = [(left, right[0]) for left, right in pairs]
    return {"tests": [{"args": left, "expected": right} for left, right in pairs], "entry_point": name}


def code_contests(row: Row) -> Fields:
    """CodeContests: public, private and generated tests together, each a pair of lists; compare: tokens."""
    if "test" in row:
        cases = _json(row["test"], "test")
        return {"tests": [{"input": one["input"]["stdin"], "output": one["output"]["stdout"]} for one in cases]}
    tests = [
        {"input": left, "output": right}
        for name in ("public_tests", "private_tests", "generated_tests")
        for left, right in zip(*((row.get(name) or {}).get(side) or [] for side in ("input", "output")), strict=True)
    ]
    if not tests:
        raise FormatError("public_tests, private_tests and generated_tests hold no test")
    return {"tests": tests}


def humaneval(row: Row) -> Fields:
    """HumanEval: the test calls `check(candidate)`; helpers of the prompt are its too."""
    text = f"{row['prompt']}\n{row['test']}\ncheck(candidate)"
    return {"tests": [{"assert": text}], "entry_point": row["entry_point"]}


def mbpp(row: Row) -> Fields:
    """MBPP: one assert a test, after the set-up; the challenge tests too."""
    labels = row.get("labels") or {}
    before = row.get("test_setup_code") or labels.get("test_setup_code") or ""
    before = "\n".join([*(row.get("test_imports") or ()), before]).strip()
    challenges = row.get("challenge_test_list") or labels.get("challenge_test_list") or []
    asserts = [*_list(row["test_list"]), *_list(challenges)]
    if not asserts:
        raise FormatError("test_list is empty")
    return {"tests": [{"assert": f"{before}\n{text}".strip()} for text in asserts]}


FORMATS: dict[str, Callable[[Row], Fields]] = {
    "livecodebench": livecodebench,
    "apps": apps,
    "taco": apps,
    "code_contests": code_contests,
    "humaneval": humaneval,
    "mbpp": mbpp,
}
"""By the names that people know them by."""


class _DataOnly(pickle.Unpickler):
    """Reads plain data; a pickle that would import anything is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise FormatError(f"a pickled test set asks for {module}.{name}: only data is read")


def _unpacked(value: object, where: str) -> Any:
    """What a field holds: as it is, as JSON, or as compressed JSON, pickled or not."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith(("[", "{")):
        return _json(value, where)
    try:
        content = zlib.decompress(base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError, zlib.error) as error:
        raise FormatError(f"{where} is neither JSON nor compressed text: {error}") from None
    if content.lstrip().startswith((b"[", b"{")):
        return _json(content, where)
    try:
        held = _DataOnly(io.BytesIO(content)).load()
    except (pickle.UnpicklingError, EOFError, LookupError, ValueError) as error:
        raise FormatError(f"{where}: {error}") from None
    return _json(held, where)


def _call(test: Mapping[str, Any]) -> dict[str, Any]:
    """A functional test: one JSON value a line is one argument, the output is one too."""
    lines = [line for line in str(test["input"]).split("\n") if line.strip()]
    return {"args": [_json(line, "input") for line in lines], "expected": _json(test["output"], "output")}


def _json(text: object, where: str) -> Any:
    if not isinstance(text, str | bytes):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise FormatError(f"{where} is not JSON: {error}") from None


def _list(value: object) -> Sequence[str]:
    """A list of texts, or a list written as Python text."""
    found = ast.literal_eval(value) if isinstance(value, str) else value
    if not isinstance(found, list):
        raise FormatError(f"test_list is a {type(found).__name__}: give a list of asserts")
    return found


def _text(value: object) -> str:
    """What stands on standard input or output: text, or the lines of it."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
