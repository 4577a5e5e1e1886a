"""What a verifier's version hangs on: its parameters, and the files that it is written in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwq_rl.rewards.versions import verifier_source, verifier_version

RULE = "def verify(problem, response):\n    return 1.0\n"


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A package with a verifier, a package below it, and a folder that is none."""
    package = tmp_path / "lab"
    for folder in (package, package / "reading", package / "scratch"):
        folder.mkdir()
        (folder / "helpers.py").write_text("LIMIT = 1\n")
    for folder in (package, package / "reading"):
        (folder / "__init__.py").write_text("")
    (package / "rule.py").write_text(RULE)
    return package


def version(lab: Path) -> str:
    return verifier_version("rule", f"{lab}/rule.py:verify")


@pytest.mark.parametrize("changed", ["rule.py", "helpers.py", "reading/helpers.py"])
def test_it_changes_with_every_file_of_the_package(lab: Path, changed: str) -> None:
    before = version(lab)

    with (lab / changed).open("a") as file:
        file.write("# another\n")

    assert version(lab) != before


def test_it_does_not_change_with_a_folder_that_is_no_package(lab: Path) -> None:
    before = version(lab)

    (lab / "scratch" / "helpers.py").write_text("LIMIT = 2\n")

    assert version(lab) == before


def test_it_changes_with_the_parameters() -> None:
    assert verifier_version("math", {}) != verifier_version("math", {"percent": "strict"})


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The verifiers' files that are read from here on."""
    paths: list[Path] = []
    read_text = Path.read_text

    def noted(path: Path, *arguments: Any, **options: Any) -> str:
        if "verifiers" in path.parts:
            paths.append(path)
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", noted)
    return paths


@pytest.mark.parametrize("name", ["choice", "code", "exact", "json_schema", "think_format"])
def test_a_built_in_verifier_is_one_file(name: str, read: list[Path]) -> None:
    """Versions that hung on all of them would stop every run with every mend of one."""
    verifier_version(name, {})

    assert read == [verifier_source(name, {})]


def test_mathematics_is_a_package_with_packages_below(read: list[Path]) -> None:
    verifier_version("math", {})

    assert {path.parent.name for path in read} == {"mathematics", "reading", "comparing", "algebra"}
