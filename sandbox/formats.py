"""Turns rows of published test sets into fields of a job: `Job(name, code, **fields)`.

LiveCodeBench (https://livecodebench.github.io), APPS (arXiv 2105.09938), TACO (arXiv 2312.14852), CodeContests (arXiv
2203.07814), HumanEval (arXiv 2107.03374), MBPP (arXiv 2108.07732); also in the forms that SandboxFusion uses.
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
    """A row does not match its format; the text names the field."""


def livecodebench(row: Row) -> Fields:
    """LiveCodeBench: public and private tests, of stdin programs or of the function named in the metadata.

    Private tests are JSON text, or compressed and pickled JSON text; a pickle with anything but plain data is refused.
    Outputs are compared by `tokens`.
    """
    if "test" in row:
        content = _unpacked(row["test"], "test")
        content = _unpacked(content["input_output"], "test.input_output") if "input_output" in content else content
        name = content.get("fn_name")
        pairs = zip(content["inputs"], content["outputs"], strict=True)
        tests = [{"input": test_input, "output": test_output} for test_input, test_output in pairs]
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
    """APPS and TACO: `input_output` is JSON with inputs and outputs, of stdin programs or of the function `fn_name`.

    Outputs of functions are often wrapped in a list of one element. If all of them are, they are unwrapped.
    """
    content = _json(row.get("input_output") or "{}", "input_output")
    inputs, outputs = content.get("inputs") or [], content.get("outputs") or []
    if not inputs or len(inputs) != len(outputs):
        raise FormatError(f"input_output has {len(inputs)} inputs and {len(outputs)} outputs: give as many, and one")
    pairs = list(zip(inputs, outputs, strict=True))
    if (name := content.get("fn_name")) is None:
        return {
            "tests": [{"input": _text(test_input), "output": _text(test_output)} for test_input, test_output in pairs]
        }
    if all(isinstance(test_output, list) and len(test_output) == 1 for test_output in outputs):
        pairs = [(test_input, test_output[0]) for test_input, test_output in pairs]
    return {
        "tests": [{"args": test_input, "expected": test_output} for test_input, test_output in pairs],
        "entry_point": name,
    }


def code_contests(row: Row) -> Fields:
    """CodeContests: public, private and generated tests, each given as two lists. Outputs are compared by `tokens`."""
    if "test" in row:
        cases = _json(row["test"], "test")
        return {"tests": [{"input": case["input"]["stdin"], "output": case["output"]["stdout"]} for case in cases]}
    tests = [
        {"input": test_input, "output": test_output}
        for name in ("public_tests", "private_tests", "generated_tests")
        for test_input, test_output in zip(
            *((row.get(name) or {}).get(side) or [] for side in ("input", "output")), strict=True
        )
    ]
    if not tests:
        raise FormatError("public_tests, private_tests and generated_tests hold no test")
    return {"tests": tests}


def humaneval(row: Row) -> Fields:
    """HumanEval: the test calls `check(candidate)`. It may use helpers of the prompt, so the prompt comes first."""
    text = f"{row['prompt']}\n{row['test']}\ncheck(candidate)"
    return {"tests": [{"assert": text}], "entry_point": row["entry_point"]}


def mbpp(row: Row) -> Fields:
    """MBPP: one test per assert, with the set-up code before it. Challenge tests are included."""
    labels = row.get("labels") or {}
    setup = row.get("test_setup_code") or labels.get("test_setup_code") or ""
    setup = "\n".join([*(row.get("test_imports") or ()), setup]).strip()
    challenges = row.get("challenge_test_list") or labels.get("challenge_test_list") or []
    asserts = [*_list(row["test_list"]), *_list(challenges)]
    if not asserts:
        raise FormatError("test_list is empty")
    return {"tests": [{"assert": f"{setup}\n{text}".strip()} for text in asserts]}


FORMATS: dict[str, Callable[[Row], Fields]] = {
    "livecodebench": livecodebench,
    "apps": apps,
    "taco": apps,
    "code_contests": code_contests,
    "humaneval": humaneval,
    "mbpp": mbpp,
}
"""The functions above by the name of their data set."""


class _DataOnly(pickle.Unpickler):
    """Reads plain data. A pickle that imports anything is refused, since it could run code in this process."""

    def find_class(self, module: str, name: str) -> Any:
        raise FormatError(f"a pickled test set asks for {module}.{name}: only data is read")


def _unpacked(value: object, where: str) -> Any:
    """The value of a field that is stored as it is, as JSON, or as base64 of compressed JSON, pickled or not."""
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
        # LiveCodeBench pickles the JSON text before it compresses it
        text = _DataOnly(io.BytesIO(content)).load()
    except (pickle.UnpicklingError, EOFError, LookupError, ValueError) as error:
        raise FormatError(f"{where}: {error}") from None
    return _json(text, where)


def _call(test: Mapping[str, Any]) -> dict[str, Any]:
    """A function test: each line of the input is one argument in JSON; the output is one JSON value."""
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
    """A list of texts, given as a list or as the text of a Python list."""
    texts = ast.literal_eval(value) if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise FormatError(f"test_list is a {type(texts).__name__}: give a list of asserts")
    return texts


def _text(value: object) -> str:
    """The text for standard input or output, given as text or as a list of lines."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
