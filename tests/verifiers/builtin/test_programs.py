"""Which part of an answer is the program."""

from __future__ import annotations

import time

import pytest

from qwq_rl.verifiers.builtin.code_tests import Block, Program, blocks, extract_program


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\na\n```", "a\n"),
        ("```python\na\n```\nor better\n```python\nb\n```", "b\n"),
        ("```python\na\n```\nwhich prints\n```text\n5\n```", "a\n"),
        ("```python\na\n```\nwhich prints\n```\n5\n```", "a\n"),
        ("```py\na\n```", "a\n"),
        ("```Python3\na\n```", "a\n"),
        ("``` python\na\n```", "a\n"),
        ("```{.python}\na\n```", "a\n"),
        ("```\na\n```", "a\n"),
        ("~~~python\na\n~~~", "a\n"),
        ("````python\n'''\n```\n'''\n````", "'''\n```\n'''\n"),
        ("```python\na\n`````", "a\n"),
        ("```python title=x\n    indented\n```", "    indented\n"),
        ("1. thus:\n   ```python\n   if x:\n       a\n   ```", "if x:\n    a\n"),
        ("```python\r\na\r\n```\r\n", "a\n"),
        ("```python\n```", ""),
        ("<answer>\n```python\na\n```\n</answer> as in\n```python\nb\n```", "a\n"),
        ("<answer>5</answer>\n```python\na\n```\n<answer>\n```python\nb\n```\n</answer>", "b\n"),
        ("```cpp\na\n```", None),
        ("```python\nnot closed", None),
        ("```python\na\n``` and more", None),
        ("say ```python print(1)``` inline", None),
        ("print(1)", None),
        ("", None),
    ],
)
def test_the_last_closed_python_block_is_the_program(text: str, program: str | None) -> None:
    found = extract_program(text)
    assert (found and found.text) == program


@pytest.mark.parametrize("definition", ["def f(x): return 1", "class Solution:\n    def f(self, x): ...", "f = abs"])
def test_an_example_of_use_after_the_function_is_not_the_program(definition: str) -> None:
    text = f"```python\n{definition}\n```\nFor example:\n```python\nprint(f(3))\n```"
    found = extract_program(text, entry_point="f")
    assert found is not None
    assert found.text == definition + "\n"
    unnamed = extract_program(text)
    assert unnamed is not None
    assert unnamed.text == "print(f(3))\n"


def test_the_label_says_the_language() -> None:
    text = "```c++\na\n```\n```js\nb\n```"
    assert extract_program(text, ("python", "cpp")) == Program("a\n", "cpp")
    assert extract_program(text, ("cpp", "javascript")) == Program("b\n", "javascript")
    assert extract_program("```\nc\n```", ("cpp", "python")) == Program("c\n", "cpp")


def test_blocks_may_hold_fences_of_the_other_kind() -> None:
    assert blocks("~~~md\n```python\na\n```\n~~~") == [Block("md", "```python\na\n```\n")]


@pytest.mark.parametrize("line", ["```\n", "`" * 50 + "\n~~~\n", " " * 50 + "```python\n", "`" * 3000])
def test_hostile_texts_take_linear_time(line: str) -> None:
    started = time.process_time()
    extract_program(line * (400_000 // len(line)))
    assert time.process_time() - started < 2
