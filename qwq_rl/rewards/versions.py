"""Versions of verifiers: a hash of parameters and source, which changes where verdicts can."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwq_rl.rewards.scorer import DomainLike, chosen, entries_of
from qwq_rl.verifiers import load


def verifier_versions(domains: Mapping[str, DomainLike]) -> dict[str, str]:
    """`DOMAIN.NAME` -> version, for every verifier that rows or rules of these domains may ask."""
    return {
        f"{domain}.{name}": verifier_version(name, entry)
        for domain, block in domains.items()
        for name, entry in entries_of(block).items()
    }


def verifier_version(name: str, entry: Any) -> str:
    """A hash of a verifier's parameters and source: it changes where the verdicts can.

    The source is its file. Where that is part of a package, it is all files of the package and of the packages below
    it; but in `qwq_rl.verifiers.builtin` every file stands for itself. `entry` is the recipe's under
    `domains.X.verifiers.NAME`.
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
    # In one package with all other built-in verifiers, each would change its version with every other.
    return [file] if folder == built_in or not _is_package(folder) else sorted(_files_of_package(folder))


def _files_of_package(folder: Path) -> Iterator[Path]:
    yield from folder.glob("*.py")
    # Folders that are no packages, such as a virtual environment, are none of the verifier's.
    for below in filter(_is_package, folder.iterdir()):
        yield from _files_of_package(below)


def _is_package(folder: Path) -> bool:
    return (folder / "__init__.py").exists()


def digest(text: str) -> str:
    """A short hash that says what it is."""
    return "sha256:" + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
