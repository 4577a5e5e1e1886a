"""A verifier's name in a recipe becomes a verifier, or one message that says what would be right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwq_rl.errors import UserError
from qwq_rl.verifiers import Response, load, resolvable, run_as

CHECKER = """
import functools
from qwq_rl.verifiers import run_as

LIMIT = 3

def verify(problem, response):
    return response.answer == problem["reference"]

def near(tolerance=0.5):
    return lambda problem, response: abs(float(response.answer) - problem["reference"]) <= tolerance

def pair(low, high):
    return lambda problem, response: low <= float(response.answer) <= high

def text_only(text):
    return text

def nothing():
    return 5

def picky(size=1):
    if size < 1:
        raise ValueError("size must be above 0")
    return verify

def swapped(response, problem):
    return True

def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper

@logged
def wrapped(problem, response):
    return response.answer == problem["reference"]

def with_settings(problem, response, *, strict):
    return strict

partial = functools.partial(with_settings, strict=True)

@run_as("thread", deadline_s=3)
def declared(problem, response):
    return True

@run_as("inline")
def declared_builder(word="yes"):
    return lambda problem, response: response.answer == word

class Fixed:
    def __init__(self, word="yes"):
        self.word = word

    def __call__(self, problem, response):
        return response.answer == self.word
"""


@pytest.fixture
def checker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "checker.py").write_text(CHECKER)
    monkeypatch.chdir(tmp_path)
    return "checker.py"


def answer(text: str) -> Response:
    return Response(text=text, answer=text)


def test_a_plain_function_is_used_as_it_is(checker: str) -> None:
    assert load(f"{checker}:verify")({"reference": "a"}, answer("a")) is True


def test_a_factory_without_parameters_is_called(checker: str) -> None:
    assert load(f"{checker}:near")({"reference": 1.0}, answer("1.4")) is True


def test_parameters_reach_the_factory(checker: str) -> None:
    assert load(f"{checker}:near", {"tolerance": 0.1})({"reference": 1.0}, answer("1.4")) is False


def test_a_factory_of_two_parameters_is_no_verifier_when_they_are_given(checker: str) -> None:
    assert load(f"{checker}:pair", {"low": 1, "high": 2})({}, answer("1.5")) is True


def test_a_class_is_a_factory(checker: str) -> None:
    assert load(f"{checker}:Fixed", {"word": "no"})({}, answer("no")) is True


def test_a_module_of_the_working_folder_resolves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_lab_of_checkers"
    package.mkdir()
    (package / "words.py").write_text(CHECKER)
    monkeypatch.chdir(tmp_path)
    assert load("my_lab_of_checkers.words:verify")({"reference": "a"}, answer("b")) is False


def test_a_file_is_imported_once(checker: str) -> None:
    assert load(f"{checker}:verify").verifier is load(f"{checker}:verify").verifier


def test_an_entry_point_resolves(tmp_path: Path) -> None:
    info = tmp_path / "shop-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[qwq_rl.verifiers]\nshop_rule = shop_checker:verify\n")
    (tmp_path / "shop_checker.py").write_text(CHECKER)
    script = (
        "from qwq_rl.verifiers import load, resolvable, Response\n"
        "assert load('shop_rule')({'reference': 'a'}, Response(text='a', answer='a')) is True\n"
        "assert 'did you mean `shop_rule`' in resolvable('shop_rules')\n"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, "-c", script], check=True, env={"PYTHONPATH": f"{root}:{tmp_path}"}, cwd=tmp_path, timeout=60
    )


@pytest.mark.parametrize("name", ["wrapped", "partial", "Fixed"])
def test_callables_of_every_kind_are_verifiers(checker: str, name: str) -> None:
    assert load(f"{checker}:{name}")({"reference": "yes"}, answer("yes")) is True


@pytest.mark.parametrize(
    ("name", "isolation"), [("declared", "thread"), ("declared_builder", "inline"), ("verify", "process")]
)
def test_a_verifier_runs_as_it_declares_and_else_apart(checker: str, name: str, isolation: str) -> None:
    assert load(f"{checker}:{name}").running.isolation == isolation


def test_a_built_in_verifier_runs_in_line() -> None:
    assert load("exact").running.isolation == "inline"


@pytest.mark.parametrize(("isolation", "deadline_s"), [("docker", 1.0), ("thread", 0.0)])
def test_what_cannot_be_declared_is_told_at_once(isolation: Any, deadline_s: float) -> None:
    with pytest.raises(ValueError, match=r"isolation|deadline_s"):
        run_as(isolation, deadline_s=deadline_s)


def test_two_files_of_one_name_are_two_modules(checker: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "checker.py").write_text("def verify(problem, response): return 0.5")
    assert load("other/checker.py:verify")({}, answer("a")) == 0.5
    assert load(f"{checker}:verify")({"reference": "a"}, answer("a")) is True


def test_a_file_that_ends_the_process_while_it_is_imported_is_told(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(UserError, match="cannot be imported: SystemExit"):
        load(f"{tmp_path}/script.py:verify")


@pytest.mark.parametrize(
    ("spec", "params", "said"),
    [
        ("maths", {}, "did you mean `math`?"),
        ("nothing_like_it", {}, "known: math, code"),
        ("checker.py:verfy", {}, "did you mean `verify`?"),
        ("checker.py:LIMIT", {}, "not a function"),
        ("checker.py", {}, "write `package.module:name` or `path/to/file.py:name`"),
        ("checker.py:", {}, "names no function"),
        ("checker.py:swapped", {}, "takes (response, problem): a verifier takes (problem, response)"),
        ("checker.py:with_settings", {}, "takes (problem, response, *, strict)"),
        ("gone.py:verify", {}, "there is no file gone.py"),
        ("no_such_package.mod:verify", {}, "cannot be imported: ModuleNotFoundError"),
        ("checker.py:text_only", {}, "takes (text): a verifier takes (problem, response)"),
        ("checker.py:near", {"tolerence": 1}, "no parameter `tolerence`; did you mean `tolerance`?"),
        ("checker.py:pair", {"low": 1}, "is used as it is and takes no parameters"),
        ("checker.py:verify", {"x": 1}, "is used as it is and takes no parameters; it was given x"),
        ("math", {"deadline": 1}, "did you mean `deadline_s`?"),
        ("exact", {"no_such": True}, "has no parameter `no_such` (parameters: "),
    ],
)
def test_a_wrong_name_or_parameter_is_one_helpful_message(
    checker: str, spec: str, params: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError) as error:
        load(spec, params)
    assert said in str(error.value)
    assert resolvable(spec, params) == str(error.value)


def test_a_factory_s_own_refusal_is_told(checker: str) -> None:
    with pytest.raises(UserError, match="size must be above 0"):
        load(f"{checker}:picky", {"size": 0})


def test_a_factory_that_returns_no_verifier_is_told(checker: str) -> None:
    with pytest.raises(UserError, match="returned 5, which is no verifier"):
        load(f"{checker}:nothing")


def test_a_file_that_does_not_parse_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("x = 1\ndef verify(:\n")
    with pytest.raises(UserError, match=r"SyntaxError.*broken\.py, line 2"):
        load(f"{tmp_path}/broken.py:verify")


def test_what_resolves_says_nothing(checker: str) -> None:
    assert [resolvable(spec) for spec in ("math", "constraints", f"{checker}:verify", f"{checker}:Fixed")] == [None] * 4


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("nowhere_at_all.checker:verify", r"No module named 'nowhere_at_all'"),
        ("torn.py:verify", r"No module named 'nowhere_at_all' \(\S*torn\.py:2\)"),
    ],
)
def test_what_cannot_be_imported_is_told_without_lines_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torn.py").write_text("\nimport nowhere_at_all\n")

    with pytest.raises(UserError, match=told) as raised:
        load(spec, {})

    assert "loading.py" not in str(raised.value)
