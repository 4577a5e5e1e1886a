"""Where a stage's result came from."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from qwq_rl.config.recipe import load_stage, recipe_hash
from qwq_rl.rewards.versions import verifier_version
from qwq_rl.stages.provenance import source_revision, versions

RECIPE = """
kind: sft
model: {new: tiny}
seed: 7
data: [{source: tiny/math_demonstrations}]
batch: 16
max_length: 128
update: {lr: 4.0e-3}
steps: 20
evaluate: {every: 10, sets: [tiny/tuning], samples: 4}
checkpoint: {every: 10, keep: 2}
"""
CONTRACT = Path(__file__).parent.parent.parent / "docs" / "contracts.md"


def git(folder: Path, *arguments: str) -> None:
    author = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, env=os.environ | author)


def checkout(folder: Path) -> Path:
    package = folder / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(folder, "init")
    git(folder, "add", "package")
    git(folder, "commit", "-m", "first")
    return package


def test_what_the_contract_shows_is_collected_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "0_start.yaml"
    path.write_text(RECIPE)
    code = (
        "import json, sys; from pathlib import Path; from qwq_rl.stages.provenance import collect;"
        "from qwq_rl.config.recipe import load_stage; path = Path(sys.argv[1]);"
        "print(json.dumps(collect('0_start', path, load_stage(path), 2, ['qwq_rl.train', 'x'], {'eos': 'e'})));"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    example = re.search(r"<!-- example: provenance -->\n```json\n(.*?)```", CONTRACT.read_text(), re.DOTALL)
    assert example is not None
    assert list(found) == list(json.loads(example[1]))
    assert found["recipe_hash"] == recipe_hash(load_stage(path))
    assert (found["seed"], found["world_size"], found["contract"]) == (7, 2, {"eos": "e"})


def test_versions_name_what_is_installed() -> None:
    assert versions()["trl"] == importlib.metadata.version("trl")


def test_a_changed_file_makes_the_tree_dirty(tmp_path: Path) -> None:
    package = checkout(tmp_path)
    commit, dirty = source_revision(package)
    assert commit is not None
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    assert dirty is False
    (package / "__init__.py").write_text("changed")
    assert source_revision(package) == (commit, True)


def test_a_package_inside_a_foreign_repository_has_no_commit(tmp_path: Path) -> None:
    checkout(tmp_path)
    installed = tmp_path / ".venv" / "qwq_rl"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert source_revision(installed) == (None, None)


def test_no_repository(tmp_path: Path) -> None:
    assert source_revision(tmp_path) == (None, None)


def test_a_verifiers_version_changes_with_its_source_and_parameters(tmp_path: Path) -> None:
    found = set()
    for name, beside in (("one", "x = 1"), ("two", "x = 2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
        (tmp_path / name / "own.py").write_text("def verify(problem, response): return True\n")
        (tmp_path / name / "helper.py").write_text(beside)
        found.add(verifier_version("own", f"{tmp_path}/{name}/own.py:verify"))

    assert len(found) == 2
    assert verifier_version("constraints", {}) == verifier_version("constraints", None)
    assert verifier_version("code", {"cpu_s": 1.0}) != verifier_version("code", {"cpu_s": 2.0})
