"""Checks of data before training: does it exist, does it fit the stage, which domains and verifiers does it name?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from qwq_rl.config.loader import Contradictions, key_meant_or_all
from qwq_rl.config.recipe import DataSource
from qwq_rl.config.yaml_tree import joined
from qwq_rl.data.mappers import resolve_mapper
from qwq_rl.data.row import Kind, checks_of
from qwq_rl.data.sources import load_rows
from qwq_rl.data.tiny import sets
from qwq_rl.data.tiny.task import Teacher
from qwq_rl.errors import RowError

READ_AHEAD = 500
"""How many rows of a JSONL file are read here; training reads and checks the rest."""

HELD_OUT = ("tuning", "final", "harder")
_HUB_DATA = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+){0,2}")
_ROWS: Mapping[str, Kind] = {"rl": "rl", "sft": "sft", "reward_model": "preference"}
_TINY: Mapping[str, tuple[str, ...]] = {
    "rl": tuple(sets.DOMAINS),
    "sft": tuple(name for name in sets.NAMES if name.endswith(("_demonstrations", "_worked"))),
    "reward_model": ("preferences",),
}


@dataclass(frozen=True)
class Known:
    """What is known of a source's rows before training."""

    domains: frozenset[str] = frozenset()
    open: frozenset[str] = frozenset()
    """The domains that have open rows."""
    verifiers: frozenset[tuple[str, str]] = frozenset()
    """Each domain with the name of a verifier that its rows check."""
    unnamed: frozenset[str] = frozenset()
    """The domains that have rows with a reference and no verifier. The only verifier of the domain judges them."""
    penalties: frozenset[tuple[str, tuple[str, ...]]] = frozenset()
    """Each domain with the names of the penalties that one of its rows asks for."""
    whole: bool = False
    """Whether this covers all rows of the source."""


def data_source(part: DataSource, kind: Any) -> tuple[Known, list[tuple[str, str]]]:
    """Look at a data source as far as that is quick. Return what is known of it, and `(key, text)` per mistake."""
    if part.mapper is not None:
        if part.source.startswith("tiny/"):
            return Known(), [("mapper", "does nothing on tiny/ sets, whose rows are ours already: leave it out")]
        try:
            resolve_mapper(part.mapper)
        except RowError as error:
            return Known(), [("mapper", str(error))]
    mistakes: list[str] = []
    known = (_tiny if part.source.startswith("tiny/") else _rows_ahead)(part, kind, mistakes)
    return known, [("source", text) for text in mistakes]


def _tiny(part: DataSource, kind: Any, mistakes: list[str]) -> Known:
    """What is known of a generated set `tiny/NAME`; mistakes are added to `mistakes`."""
    source, name = part.source, part.source.removeprefix("tiny/")
    usable = [f"tiny/{set_name}" for set_name in _TINY.get(kind, ())]
    if name not in sets.NAMES:
        mistakes.append(
            f"there is no {source}{key_meant_or_all(source, [f'tiny/{set_name}' for set_name in sets.NAMES])}"
        )
    elif name in HELD_OUT:
        mistakes.append(f"{source} is held out for evaluation: train on {', '.join(usable)}")
    elif source not in usable:
        mistakes.append(f"{source} has no rows for a stage of kind {kind}: use {', '.join(usable)}")
    elif name in sets.DOMAINS:
        # One generated row of each family shows which verifier all its rows name.
        checks = [family(Random(0), "normal", Teacher()).check for family in sets.DOMAINS[name]]
        verifiers = frozenset((name, check["verifier"]) for check in checks if check is not None)
        return Known(frozenset({name}), frozenset({name} if None in checks else ()), verifiers, whole=True)
    return Known()


def _rows_ahead(part: DataSource, kind: Any, mistakes: list[str]) -> Known:
    """What is known from the first rows of a file. Parquet files and Hub data sets are opened only by training."""
    path = Path(part.source)
    if path.suffix == ".parquet" and path.is_file():
        return Known()
    if path.suffix not in (".jsonl", ".parquet") and not path.exists() and _HUB_DATA.fullmatch(part.source):
        return Known()
    limit = min(part.limit or READ_AHEAD, READ_AHEAD)
    try:
        rows = load_rows(part.source, mapper=part.mapper, limit=limit, kind=_ROWS.get(kind))
    except RowError as error:
        mistakes += str(error).splitlines()
        return Known()
    if kind != "rl":  # rows of other kinds have no verifiers
        return Known()
    row_checks = [(row, row["domain"], checks_of(row)) for row in rows]
    unnamed = {row["id"] for row, _, checks in row_checks if not checks and row.get("reference") is not None}
    unscored = [(row, domain) for row, domain, checks in row_checks if all(check.role != "score" for check in checks)]
    penalties = [
        (domain, tuple(rule.verifier for rule in checks if rule.role == "penalty")) for _, domain, checks in row_checks
    ]
    return Known(
        domains=frozenset(domain for _, domain, _ in row_checks),
        open=frozenset(domain for row, domain in unscored if row["id"] not in unnamed),
        verifiers=frozenset((domain, check.verifier) for _, domain, checks in row_checks for check in checks),
        unnamed=frozenset(domain for row, domain in unscored if row["id"] in unnamed),
        penalties=frozenset((domain, names) for domain, names in penalties if names),
        # Fewer rows than asked for: the file has no more.
        whole=len(rows) < limit or limit == part.limit,
    )


def sets_mistakes(path: str, names: tuple[str, ...]) -> Contradictions:
    """Yield `(path, text)` for each evaluation set that cannot be used; `path` is where the list is in the recipe."""
    for index, name in enumerate(names):
        yield from ((joined(path, index), text) for text in set_mistakes(name))
        if name in names[:index]:
            yield joined(path, index), f"{name} is named twice"


def set_mistakes(name: str) -> Iterator[str]:
    """Yield why an evaluation cannot use the set `name`."""
    if name.startswith("tiny/"):
        held_out = [f"tiny/{set_name}" for set_name in HELD_OUT]
        if name.removeprefix("tiny/") in sets.NAMES and name not in held_out:
            yield f"{name} is for training: evaluate on {', '.join(held_out)}"
        elif name not in held_out:
            yield f"there is no {name}{key_meant_or_all(name, held_out)}"
    else:
        mistakes: list[str] = []
        _rows_ahead(DataSource(name), "rl", mistakes)
        yield from mistakes
