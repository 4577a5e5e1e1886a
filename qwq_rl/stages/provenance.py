"""The provenance of a stage's result: code, versions, recipe, command. This module does not import torch."""

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
    """Return the content of `provenance.json`; docs/contracts.md shows an example.

    `contract` is the stage contract (hashes of tokenizer, chat template, verifiers). `git_commit` is the commit of the
    checkout that the package runs from; it is None without a git checkout or without git.
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
    """Return the installed versions of the packages that can change a result, without those that are absent."""
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def source_revision(folder: Path) -> tuple[str | None, bool | None]:
    """Return (commit, whether tracked files differ from it) of the git checkout around `folder`, else (None, None).

    The checkout counts only if it tracks `folder`: a package installed inside another repository does not report that
    repository's commit.
    """
    if not _git(folder, "ls-files", "--error-unmatch", "__init__.py"):
        return None, None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return (commit, changes != "") if commit else (None, None)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
