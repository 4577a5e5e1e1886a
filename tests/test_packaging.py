"""The wheel: everything under one name, linked folders as real files, nothing that belongs to another package."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(".venv", ".git", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")


def run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A copy: a build leaves files behind, and stale ones would end up in the next wheel.
    copy, out = tmp_path_factory.mktemp("copy") / "project", tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=LEFT_OUT)
    build = (
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        out,
        ".",
    )
    run(*build, folder=copy)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_owns_one_name_and_holds_what_the_links_lead_to(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    owned = {name.split("/")[0] for name in names if ".dist-info" not in name}

    assert owned == {"qwq_rl"}
    for folder, pattern in (("verifiers", "**/*.py"), ("sandbox", "**/*.py"), ("recipes", "**/*.yaml")):
        files = {f"qwq_rl/{folder}/{path.relative_to(ROOT / folder)}" for path in (ROOT / folder).glob(pattern)}
        assert files
        assert files <= set(names)
    assets = {
        f"qwq_rl/report/assets/{path.name}" for path in (ROOT / "qwq_rl/report/assets").iterdir() if path.is_file()
    }
    assert assets
    assert {*assets, "qwq_rl/py.typed"} <= set(names)


def test_the_installed_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, folder=tmp_path)
    (site,) = venv.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    # The packages it needs are those of this environment; the checkout is not on that path.
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "needed.pth").write_text(packages + "\n")
    recipe = site / "qwq_rl" / "recipes" / "tiny"

    where = run(venv / "bin/python", "-c", "import qwq_rl.verifiers as v; print(v.__file__)", folder=tmp_path)
    checked = run(venv / "bin/python", "-m", "qwq_rl.cli", "check", recipe, folder=tmp_path)
    trainer = run(venv / "bin/python", "-m", "qwq_rl.train", "--help", folder=tmp_path)

    assert where.startswith(str(site))
    assert checked
    assert "Train one stage of a recipe" in trainer
