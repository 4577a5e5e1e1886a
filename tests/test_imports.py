"""The direction of imports, what is imported when, and how long a file may get."""

from __future__ import annotations

import ast
import graphlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"qwq_rl": "qwq_rl", "verifiers": "qwq_rl.verifiers", "sandbox": "qwq_rl.sandbox"}

# Lowest first. A room imports from itself and from the rooms of the lines before its own.
WAY = (
    ("errors",),
    ("run_folder", "algorithms", "sandbox"),
    ("verifiers",),
    ("data",),
    ("inference",),
    ("rewards",),
    ("config", "evals"),
    ("audit", "rollouts"),
    ("training",),
    ("stages",),
    ("train",),
)
BESIDE = (("report",), ("export",), ("pipeline",))
"""Verbs that read what a run left: they stand on `config` and `evals`, and import nothing of training."""
FOUNDATION = {room for line in WAY[: WAY.index(("config", "evals")) + 1] for room in line}
ROOMS = {room for line in (*WAY, *BESIDE) for room in line}

ALONE = {"sandbox", "algorithms", "errors"}
"""Rooms that import nothing else of ours."""
THIRD_PARTY: dict[str, set[str]] = {
    "errors": set(),
    "sandbox": set(),
    "algorithms": {"torch"},
    "run_folder": {"psutil"},
    "verifiers": {"math_verify", "jsonschema", "referencing", "mpmath"},
}
OVER_HTTP = {"fastapi", "starlette", "uvicorn"}
"""For these modules alone; the sandbox itself, its client too, needs the standard library only."""
SERVERS = {"qwq_rl.sandbox.http.server", "qwq_rl.sandbox.http.serve"}


DISTRIBUTIONS = {"yaml": "pyyaml", "math_verify": "math-verify"}
MOST_LINES, MOST_FUNCTION_LINES = 500, 80
FRAGMENT, MOST_FRAGMENTS = 80, 12


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by its name; `qwq_rl.verifiers` stands for `qwq_rl/verifiers/__init__.py`."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if not (folder == "qwq_rl" and parts[0] in ("verifiers", "sandbox", "recipes")):
                name = ".".join([package, *(part for part in parts if part != "__init__")])
                found[name] = ast.parse(path.read_text(), str(path))
    return found


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules that a tree imports; `from package import module` names the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                yield deeper if deeper in modules() else str(node.module)


def ours(tree: ast.AST) -> set[str]:
    return {name for name in imports(tree) if name.split(".")[0] == "qwq_rl"}


def foreign(tree: ast.AST) -> set[str]:
    tops = {name.split(".")[0] for name in imports(tree)}
    return {name for name in tops if name not in sys.stdlib_module_names and name not in ("qwq_rl", "__future__")}


def room(module: str) -> str:
    """`rewards` of `qwq_rl.rewards.reward`, `train` of `qwq_rl.train`."""
    return [*module.split("."), ""][1]


def allowed(name: str) -> set[str]:
    """The rooms that a room may import from."""
    if name in ALONE:
        return {name}
    for lines, below in ((WAY, set[str]()), (BESIDE, FOUNDATION)):
        for number, line in enumerate(lines):
            if name in line:
                return {name} | below | {room for before in lines[:number] for room in before}
    return ROOMS | {name}  # the command line


def test_rooms_import_one_way() -> None:
    wrong = set()
    for module, tree in modules().items():
        for name in ours(tree) - {"qwq_rl"}:
            if room(name) not in allowed(room(module)):
                wrong.add(f"{module} imports {name}")

    assert wrong == set(), "WAY says which rooms stand below which"


def test_every_file_is_in_a_room() -> None:
    files = {path.name for path in (ROOT / "qwq_rl").glob("*.py")}
    folders = {path.name for path in (ROOT / "qwq_rl").iterdir() if path.is_dir() and not path.name.startswith("__")}

    assert files == {"__init__.py", "cli.py", "train.py", "errors.py"}
    assert folders - {"recipes"} == ROOMS - {"errors", "train"}


def test_a_room_re_exports_nothing() -> None:
    libraries = {"qwq_rl.verifiers", "qwq_rl.sandbox"}
    packages = [
        name for name in modules() if any(other.startswith(f"{name}.") for other in modules()) and name not in libraries
    ]

    assert {name: sorted(imports(modules()[name])) for name in packages if list(imports(modules()[name]))} == {}


def test_no_class_name_exists_twice() -> None:
    places: dict[str, list[str]] = {}
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(module)

    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: ours(tree) & modules().keys() - {name} for name, tree in modules().items()}

    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"a cycle: {' <- '.join(error.args[1])}")


def test_the_lower_rooms_need_few_packages() -> None:
    used = {
        module: foreign(tree) - (OVER_HTTP if module in SERVERS else set())
        for module, tree in modules().items()
        if room(module) in THIRD_PARTY
    }

    assert {name: packages for name, packages in used.items() if packages - THIRD_PARTY[room(name)]} == {}


def test_every_package_that_is_imported_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    names = {re.split(r"[^A-Za-z0-9_-]", requirement)[0].lower() for requirement in declared}
    used = {DISTRIBUTIONS.get(name, name) for tree in modules().values() for name in foreign(tree)}

    assert used <= names


LIGHT = (
    "qwq_rl.sandbox",
    "qwq_rl.verifiers",
    "qwq_rl.data.sources",
    "qwq_rl.config.recipe",
    "qwq_rl.cli",
    "qwq_rl.report.build",
)
HEAVY = ("torch", "transformers", "trl", "datasets", "pandas", "numpy", "jsonschema", "math_verify", "fastapi")
WATCH = f"""
import importlib, json, sys
for name in {LIGHT!r}:
    importlib.import_module(name)
    print(json.dumps([name, [heavy for heavy in {HEAVY!r} if heavy in sys.modules]]))
"""


def test_what_people_import_first_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", WATCH], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[name, []] for name in LIGHT]


def python_files() -> list[Path]:
    folders = (*FOLDERS, "tests", "benchmarks")
    return sorted({path.resolve() for folder in folders for path in (ROOT / folder).rglob("*.py")})


def test_no_file_is_longer_than_can_be_read() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python_files()}

    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_few_files_are_fragments() -> None:
    """A file of a few lines is a place more to look at."""
    own = [path for path in (ROOT / "qwq_rl").rglob("*.py") if path.name != "__init__.py"]
    short = [path for path in own if path.is_file() and len(path.read_text().splitlines()) < FRAGMENT]
    rooms = [path for path in short if path.relative_to(ROOT / "qwq_rl").parts[0] not in FOLDERS]

    assert len(rooms) <= MOST_FRAGMENTS, sorted(map(str, rooms))


def test_no_function_is_longer_than_can_be_read() -> None:
    long = {}
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MOST_FUNCTION_LINES:
                    long[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = lines

    assert long == {}


@pytest.mark.parametrize("name", ["verifiers", "sandbox", "recipes"])
def test_a_top_level_folder_is_reached_through_its_link(name: str) -> None:
    link = ROOT / "qwq_rl" / name

    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
