"""Which prompts a round of RL takes, and which more it takes for groups that taught nothing.

"uniform" goes through each source epoch by epoch, as `qwq_rl.data.order.mix` does: where nothing is refilled, the
rows come exactly in its order. "adaptive" draws within a source in proportion to what a prompt has to teach
(`adaptive`). It has no epochs: what is always or never solved comes back rarely, what is solved at times comes back
often, and what was never tried counts as its family does, so that no row is ever out of reach. The shares of the
sources hold in both.
DAPO (arXiv 2503.14476) samples uniformly and drops the useless groups after it paid for them; refills do that here,
and "adaptive" lowers how many there are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeVar

import numpy as np

from qwq_rl.data.adaptive import Successes, weighted_order, weights
from qwq_rl.data.order import EpochOrder, furthest_behind, shares_of, whole_shares
from qwq_rl.data.row import Row
from qwq_rl.errors import RunStateError

Sampling = Literal["uniform", "adaptive"]


Name = TypeVar("Name")


@dataclass(frozen=True)
class Prompt:
    """One prompt of a round."""

    place: int
    """How many of the round were drawn before it, refills included: it keys the noise of its samples."""
    row: Row
    source: int
    """The position of its source."""


class PromptSource:
    """The prompts of all rounds of a stage; what it draws depends on its arguments and on what was learned alone.

    Every process has its own, calls it alike, and gets the same.
    """

    def __init__(self, sources: Sequence[tuple[Sequence[Row], float]], seed: int, sampling: Sampling) -> None:
        """`sources`: rows and weight of each; raises ValueError as `qwq_rl.data.order.mix` does."""
        self._shares = shares_of(sources)
        self._rows = [rows for rows, _ in sources]
        self._problems = number_problems(self._rows)
        self._seed, self._sampling = seed, sampling
        self._walks = [EpochOrder(len(rows), seed, at) for at, rows in enumerate(self._rows)]
        self._successes = Successes(self._problems.families)
        self._behind = [0] * len(sources)
        self._refills_behind: dict[str, list[int]] = {}
        self._begin(update=0)

    def draw(self, update: int, prompts: int) -> list[Prompt]:
        """Begin the round of `update` with so many prompts, each source having its share of all draws so far.

        "adaptive" takes no row twice unless its source has no others; "uniform" may where an epoch ends.
        """
        self._begin(update)
        order = [furthest_behind(self._behind, self._shares) for _ in range(prompts)]
        return self._placed(order, {at: iter(self._first(at, order.count(at))) for at in sorted(set(order))})

    def refill(self, lacking: Mapping[str, int]) -> list[Prompt]:
        """So many more prompts of the given domains for the round that was drawn last, domain by domain by name.

        A source gives in proportion to its weight and to how much of it is of the domain, counted over all refills. No
        row comes that the round already has, unless the domain has no others. Raises ValueError for a domain of which
        no source with weight has a row.
        """
        return [drawn for domain in sorted(lacking) for drawn in self._more(domain, lacking[domain])]

    def learn(self, outcomes: Sequence[tuple[Row, float]]) -> None:
        """Take in the mean success of prompts, 0 to 1, in the same order on every process.

        Raises ValueError, with nothing learned: a success is outside of 0..1, or a row is of none of the sources.
        """
        for row, success in outcomes:
            if not 0 <= success <= 1:
                raise ValueError(f"the success at {row['id']!r} is {success}; it must lie between 0 and 1")
        for problem, success in [(self._problems.number(row), success) for row, success in outcomes]:
            self._successes.learn(problem, success)

    def state_dict(self) -> dict[str, Any]:
        """All that it needs to go on exactly, in the middle of a round too: JSON, of the size of what was tried."""
        return {
            "rows": self._problems.digest,
            "behind": list(self._behind),
            "refills_behind": {domain: list(behind) for domain, behind in self._refills_behind.items()},
            "walks": [walk.state_dict() for walk in self._walks],
            "successes": self._successes.state_dict(),
            "round": {
                "update": self._update,
                "picks": self._picks,
                "places": self._places,
                "problems": (drawn := np.flatnonzero(self._times)).tolist(),
                "times": self._times[drawn].tolist(),
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; raises RunStateError, with nothing changed, where it is of other rows."""
        if state["rows"] != self._problems.digest:
            raise RunStateError(
                "the checkpoint was made with other training rows than the recipe's sources have now, or in another "
                "order: put the data back as it was, or run the stage anew"
            )
        self._behind = list(state["behind"])
        self._refills_behind = {domain: list(behind) for domain, behind in state["refills_behind"].items()}
        for walk, its_state in zip(self._walks, state["walks"], strict=True):
            walk.load_state_dict(its_state)
        self._successes.load_state_dict(state["successes"])
        self._begin(state["round"]["update"])
        self._picks, self._places = state["round"]["picks"], state["round"]["places"]
        self._times[state["round"]["problems"]] = state["round"]["times"]

    def _begin(self, update: int) -> None:
        self._update, self._picks, self._places = update, 0, 0
        self._times = np.zeros(len(self._problems.domains), dtype=np.int64)

    def _first(self, at: int, count: int) -> list[int]:
        """The rows of source `at` that begin the round."""
        problems, found = self._problems.of_source[at], list[int]()
        if self._sampling == "uniform":
            found = [self._walks[at].next() for _ in range(count)]
            np.add.at(self._times, problems[found], 1)
        while len(found) < count:
            times = self._times[problems]
            found += self._pick(at, times == times.min(), count - len(found))
        return found

    def _more(self, domain: str, count: int) -> list[Prompt]:
        number, of_source = self._problems.domain_numbers.get(domain, -1), self._problems.of_source
        of_domain = [self._problems.domains[problems] == number for problems in of_source]
        parts = [
            Fraction(share * int(rows.sum()), max(len(rows), 1))
            for share, rows in zip(self._shares, of_domain, strict=True)
        ]
        if not any(parts):
            raise ValueError(f"no source with weight has a row of the domain {domain!r}")
        shares, found = whole_shares(parts), list[Prompt]()
        while len(found) < count:
            times = [self._times[problems] for problems in of_source]
            least = min(int(of[rows].min()) for of, rows, share in zip(times, of_domain, shares, strict=True) if share)
            free = [rows & (of == least) for of, rows in zip(times, of_domain, strict=True)]
            order = self._quotas(domain, shares, [int(rows.sum()) for rows in free], count - len(found))
            picked = {}
            for at in sorted(set(order)):
                # Looked at again: a source may just have given a problem that this one has too.
                allowed = free[at] & (self._times[of_source[at]] == least)
                picked[at] = iter(self._pick(at, allowed, order.count(at)))
            found += self._placed(order, picked)
        return found

    def _quotas(self, domain: str, shares: Sequence[int], room: list[int], count: int) -> list[int]:
        """The sources of `count` refills in turn, fewer where all have no more `room`, which is used up."""
        behind = self._refills_behind.setdefault(domain, [0] * len(shares))
        order: list[int] = []
        while len(order) < count:
            open_shares = [share if places else 0 for share, places in zip(shares, room, strict=True)]
            if not any(open_shares):
                break
            order.append(furthest_behind(behind, open_shares))
            room[order[-1]] -= 1
        return order

    def _pick(self, at: int, allowed: np.ndarray, count: int) -> list[int]:
        """Up to `count` rows of source `at`, each once, of those `allowed`, (rows,) bool; the round has them then."""
        problems = self._problems.of_source[at]
        if self._sampling == "uniform":
            found = self._walks[at].take(allowed, count)
        else:
            noise = _noise(f"{self._seed}/{self._update}/{self._picks}/{at}", len(allowed))
            rows = np.flatnonzero(allowed)
            weight = weights(self._successes.chances(problems[rows]))
            found = rows[weighted_order(weight, noise[rows], count)].tolist()
        self._picks += 1
        self._times[problems[found]] += 1
        return found

    def _placed(self, order: Sequence[int], picked: Mapping[int, Iterator[int]]) -> list[Prompt]:
        """The picked rows of each source, in the order of the sources."""
        drawn = []
        for at in order:
            row = next(picked[at], None)
            if row is not None:
                drawn.append(Prompt(self._places, self._rows[at][row], at))
                self._places += 1
        return drawn


def _noise(key: str, count: int) -> np.ndarray:
    """(count,) numbers in (0, 1), from `key` alone; NumPy keeps the stream of raw bits, not of its distributions."""
    bits = np.random.Philox(key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16])).random_raw(count)
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


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
