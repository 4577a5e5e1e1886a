"""Where a stage's result came from: code, versions, recipe, command. Read without importing torch."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from qwq_rl.config.recipe import Domain, Stage, recipe_hash
from qwq_rl.rewards.scorer import chosen, entries_of
from qwq_rl.verifiers import load

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


def verifier_versions(domains: Mapping[str, Domain]) -> dict[str, str]:
    """`DOMAIN.NAME` -> version, for every verifier that rows or rules of these domains may ask."""
    return {
        f"{domain}.{name}": verifier_version(name, entry)
        for domain, block in domains.items()
        for name, entry in entries_of(block).items()
    }


def verifier_version(name: str, entry: Any) -> str:
    """A hash of a verifier's parameters and source: it changes where the verdicts can.

    The source is its file, with the files beside it and below it where they are a package other than
    `qwq_rl.verifiers.builtin`. `entry` is the recipe's under `domains.X.verifiers.NAME`.
    """
    file, parameters = verifier_source(name, entry), chosen(name, entry)[1]
    source = "".join(path.read_text() for path in _files(file)) if file else ""
    return digest(json.dumps(parameters, sort_keys=True, default=repr) + source)


def verifier_source(name: str, entry: Any) -> Path | None:
    """The file that a verifier is written in, as far as Python knows; `entry` is as for `verifier_version`."""
    verifier = load(*chosen(name, entry)).verifier
    file = inspect.getsourcefile(verifier if inspect.isroutine(verifier) else type(verifier))
    return Path(file) if file else None


def _files(file: Path) -> list[Path]:
    folder = file.resolve().parent
    built_in = Path(inspect.getfile(load)).resolve().with_name("builtin")
    several = (folder / "__init__.py").exists() and folder != built_in
    return sorted(folder.rglob("*.py")) if several else [file]


def digest(text: str) -> str:
    """A short hash that says what it is."""
    return "sha256:" + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


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
