"""Where a stage's result came from: code, versions, recipe, command. Read without importing torch."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from qwq_rl.config.recipe import Stage, recipe_hash

PACKAGES = (
    "qwq-rl",
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "datasets",
    "tokenizers",
    "numpy",
    "math-verify",
    "deepspeed",
    "vllm",
)


def collect(
    stage_name: str,
    recipe_path: Path,
    stage: Stage,
    world_size: int,
    command: Sequence[str],
    contract: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of `provenance.json`: docs/contracts.md shows an example.

    `contract` is the stage contract (hashes of tokenizer, chat template, verifiers). `git_commit` is that of the tree
    the package runs from, None where that is no git checkout or git is absent.
    """
    commit, dirty = source_revision(Path(__file__).resolve().parent)
    return {
        "stage": stage_name,
        "recipe": str(recipe_path),
        "recipe_hash": recipe_hash(stage),
        "seed": stage.seed,
        "git_commit": commit,
        "git_dirty": dirty,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
        "world_size": world_size,
        "command": list(command),
        "contract": dict(contract),
    }


def versions() -> dict[str, str]:
    """The installed versions of the packages that can change a result; absent ones are left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def source_revision(folder: Path) -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ from it) of the git checkout around `folder`; (None, None) without one.

    A checkout counts only where it tracks `folder`: a package installed below somebody's own repository is not it.
    """
    if not _git(folder, "ls-files", "--error-unmatch", "__init__.py"):
        return None, None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return (commit, changes != "") if commit else (None, None)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
