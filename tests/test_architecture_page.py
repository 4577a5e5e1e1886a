"""docs/architecture.md names the rooms that there are, and every function of a sample's life is where it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()
LIFE = re.findall(r"^\| [^|]+ \| `([\w.]+)` \| `([\w/]+\.py)` \|$", PAGE, re.M)
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def definitions(path: Path) -> set[str]:
    """Functions and classes of a file, methods as `Class.method`."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


def test_the_floor_plan_names_every_room_and_no_other() -> None:
    plan = PAGE.split("## The floor plan")[1].split("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+)/` \|", plan, re.M))
    folders = {path.name for path in (ROOT / "qwq_rl").iterdir() if path.is_dir() and path.name[0] != "_"}

    assert named == folders - {"recipes"}


@pytest.mark.parametrize(("name", "file"), LIFE)
def test_every_step_of_a_sample_is_where_the_page_says(name: str, file: str) -> None:
    assert name in definitions(ROOT / "qwq_rl" / file)


def test_the_life_of_a_sample_is_told_in_full() -> None:
    assert len(LIFE) >= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    named = set(
        re.findall(
            r"`((?:qwq_rl|verifiers|sandbox|tests|benchmarks|recipes|docs|deploy)/[\w/]+\.\w+)`", page.read_text()
        )
    )

    assert [name for name in named if not (ROOT / name).exists() and not (ROOT / "qwq_rl" / name).exists()] == []
