"""The version of a verifier: a hash of its parameters and its source. It changes if its verdicts may change."""

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
    """Return `DOMAIN.NAME` -> version, for every verifier that rows or rules of these domains may use."""
    return {
        f"{domain}.{name}": verifier_version(name, entry)
        for domain, block in domains.items()
        for name, entry in entries_of(block).items()
    }


def verifier_version(name: str, entry: Any) -> str:
    """Return a hash of a verifier's parameters and source. It changes if the verdicts may change.

    The source is the verifier's file. If the file is in a package, the source is all files of this package and of the
    packages below it; but in `qwq_rl.verifiers.builtin`, each file counts alone. `entry` is the recipe's entry under
    `domains.X.verifiers.NAME`.
    """
    file, parameters = verifier_source(name, entry), chosen(name, entry)[1]
    source = "".join(path.read_text() for path in _files(file)) if file else ""
    return digest(json.dumps(parameters, sort_keys=True, default=repr) + source)


def verifier_source(name: str, entry: Any) -> Path | None:
    """Return the verifier's source file, or None if Python does not know it. `entry` is as in `verifier_version`."""
    verifier = load(*chosen(name, entry)).verifier
    # A callable object has no file of its own; its class has.
    file = inspect.getsourcefile(verifier if inspect.isroutine(verifier) else type(verifier))
    return Path(file) if file else None


def _files(file: Path) -> list[Path]:
    folder = file.resolve().parent
    built_in = Path(inspect.getfile(load)).resolve().with_name("builtin")
    # The built-in verifiers are in one package; counted as one, a change of one would change the version of all.
    return [file] if folder == built_in or not _is_package(folder) else sorted(_files_of_package(folder))


def _files_of_package(folder: Path) -> Iterator[Path]:
    yield from folder.glob("*.py")
    # Folders that are not packages, such as a virtual environment, do not belong to the verifier.
    for subfolder in filter(_is_package, folder.iterdir()):
        yield from _files_of_package(subfolder)


def _is_package(folder: Path) -> bool:
    return (folder / "__init__.py").exists()


def digest(text: str) -> str:
    """Return a short SHA-256 of `text`, with the prefix `sha256:`."""
    return "sha256:" + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
