"""The rows of all sources as columns of numbers, in which a problem that several sources have is one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from qwq_rl.data.row import Row

Name = TypeVar("Name")


@dataclass(frozen=True)
class Problems:
    """Every problem has a number, from 0 in the order of the sources."""

    of_source: tuple[np.ndarray, ...]
    """For each source (rows,): the problems of its rows."""
    domains: np.ndarray
    """(problems,): the number of each problem's domain."""
    families: np.ndarray
    """(problems,): the number of each problem's family; that of its domain where the row names none."""
    domain_numbers: Mapping[str, int]
    digest: str
    """Changes with the rows' ids, domains, families and order."""
    _rows: Sequence[Row]
    _with_id: Mapping[str, Sequence[int]]

    def number(self, row: Row) -> int:
        """The problem that `row`, or an equal copy, is; raises ValueError where no source has it."""
        known = self._with_id.get(row["id"], ())
        for problem in known:
            if len(known) == 1 or self._rows[problem] is row or self._rows[problem] == row:
                return problem
        raise ValueError(f"no source has the row {row['id']!r}")


def number_problems(sources: Sequence[Sequence[Row]]) -> Problems:
    """Number the rows of all sources. An id is unique in its source only, so rows are one problem if they are equal."""
    rows: list[Row] = []
    with_id: dict[str, Sequence[int]] = {}
    digest = hashlib.sha256()
    of_source = []
    for source in sources:
        numbers = []
        for row in source:
            same = with_id.get(row["id"], ())
            number = next((problem for problem in same if rows[problem] == row), -1) if same else -1
            if number < 0:
                number = len(rows)
                with_id[row["id"]] = (*same, number)
                rows.append(row)
            numbers.append(number)
        of_source.append(np.array(numbers, dtype=np.int64))
        digest.update(json.dumps([(row["id"], row["domain"], row.get("family")) for row in source]).encode())
    domains, domain_numbers = _numbered([row["domain"] for row in rows])
    families, _ = _numbered([(row["domain"], row.get("family") or row["domain"]) for row in rows])
    return Problems(tuple(of_source), domains, families, domain_numbers, digest.hexdigest(), rows, with_id)


def _numbered(names: Sequence[Name]) -> tuple[np.ndarray, dict[Name, int]]:
    numbers: dict[Name, int] = {}
    column = np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
    return column, numbers
