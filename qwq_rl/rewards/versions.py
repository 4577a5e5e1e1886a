"""Versions of verifiers: a hash of parameters and source, which changes where verdicts can."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
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
