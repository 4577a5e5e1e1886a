"""Chooses the prompts of each round of RL, and more prompts in place of groups that taught nothing (refills).

With "uniform", each source is walked epoch by epoch; without refills, the rows come exactly in the order of
`qwq_rl.data.order.mix`. With "adaptive", prompts are drawn within a source in proportion to how much they teach
(`adaptive`). There are no epochs then: a prompt that is always or never solved comes back rarely, one that is solved
sometimes comes back often, and one that was never tried counts as the mean of its family. So every row can be drawn.
The shares of the sources hold in both cases.

DAPO (arXiv 2503.14476) samples uniformly and drops useless groups after it has sampled them. Refills do the same here;
with "adaptive" there are fewer useless groups.
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
    """How many prompts of the round were drawn before it, refills included. It keys the noise of its samples."""
    row: Row
    source: int
    """The position of its source."""


class PromptSource:
    """Draws the prompts of all rounds of a stage.

    The draws depend only on the arguments and on the results passed to `learn`. Every process has its own
    `PromptSource`, makes the same calls, and gets the same prompts.
    """

    def __init__(self, sources: Sequence[tuple[Sequence[Row], float]], seed: int, sampling: Sampling) -> None:
        """`sources` has the rows and the weight of each source. Raises ValueError as `qwq_rl.data.order.mix` does."""
        self._shares = shares_of(sources)
        self._rows = [rows for rows, _ in sources]
        self._problems = number_problems(self._rows)
        self._seed, self._sampling = seed, sampling
        self._walks = [EpochOrder(len(rows), seed, source) for source, rows in enumerate(self._rows)]
        self._successes = Successes(self._problems.families)
        self._behind = [0] * len(sources)
        self._refills_behind: dict[str, list[int]] = {}
        self._begin(update=0)

    def draw(self, update: int, prompts: int) -> list[Prompt]:
        """Begin the round of `update` and draw `prompts` prompts. Each source gets its share of all draws so far.

        "adaptive" takes no row twice unless its source has no others; "uniform" may do so where an epoch ends.
        """
        self._begin(update)
        order = [furthest_behind(self._behind, self._shares) for _ in range(prompts)]
        return self._placed(
            order, {source: iter(self._first(source, order.count(source))) for source in sorted(set(order))}
        )

    def refill(self, lacking: Mapping[str, int]) -> list[Prompt]:
        """Draw more prompts for the current round, `lacking[domain]` of each domain. Domains come in sorted order.

        A source gives in proportion to its weight times the share of its rows that are of the domain, counted over all
        refills. A row that the round already has is drawn only if the domain has no others. Raises ValueError if no
        source with weight has a row of the domain.
        """
        return [prompt for domain in sorted(lacking) for prompt in self._more(domain, lacking[domain])]

    def learn(self, outcomes: Sequence[tuple[Row, float]]) -> None:
        """Add the mean success of prompts, 0 to 1; every process must pass them in the same order.

        Raises ValueError, and adds nothing, if a success is not in 0..1 or if no source has the row.
        """
        for row, success in outcomes:
            if not 0 <= success <= 1:
                raise ValueError(f"the success at {row['id']!r} is {success}; it must lie between 0 and 1")
        for problem, success in [(self._problems.number(row), success) for row, success in outcomes]:
            self._successes.learn(problem, success)

    def state_dict(self) -> dict[str, Any]:
        """Return the state to continue exactly, even within a round: JSON that grows with the prompts tried."""
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
                "problems": (drawn_problems := np.flatnonzero(self._times)).tolist(),
                "times": self._times[drawn_problems].tolist(),
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`. Raises RunStateError, and changes nothing, if `state` belongs to other rows."""
        if state["rows"] != self._problems.digest:
            raise RunStateError(
                "the checkpoint was made with other training rows than the recipe's sources have now, or in another "
                "order: put the data back as it was, or run the stage anew"
            )
        self._behind = list(state["behind"])
        self._refills_behind = {domain: list(behind) for domain, behind in state["refills_behind"].items()}
        for walk, walk_state in zip(self._walks, state["walks"], strict=True):
            walk.load_state_dict(walk_state)
        self._successes.load_state_dict(state["successes"])
        self._begin(state["round"]["update"])
        self._picks, self._places = state["round"]["picks"], state["round"]["places"]
        self._times[state["round"]["problems"]] = state["round"]["times"]

    def _begin(self, update: int) -> None:
        self._update, self._picks, self._places = update, 0, 0
        self._times = np.zeros(len(self._problems.domains), dtype=np.int64)

    def _first(self, source: int, count: int) -> list[int]:
        """Return the indices of the rows that source `source` gives at the start of the round."""
        problems, row_indices = self._problems.of_source[source], list[int]()
        if self._sampling == "uniform":
            row_indices = [self._walks[source].next() for _ in range(count)]
            # `add.at` counts a problem that comes twice as two; `self._times[...] += 1` would count one.
            np.add.at(self._times, problems[row_indices], 1)
        while len(row_indices) < count:
            times = self._times[problems]
            row_indices += self._pick(source, times == times.min(), count - len(row_indices))
        return row_indices

    def _more(self, domain: str, count: int) -> list[Prompt]:
        domain_number, of_source = self._problems.domain_numbers.get(domain, -1), self._problems.of_source
        in_domain = [self._problems.domains[problems] == domain_number for problems in of_source]
        parts = [
            Fraction(share * int(mask.sum()), max(len(mask), 1))
            for share, mask in zip(self._shares, in_domain, strict=True)
        ]
        if not any(parts):
            raise ValueError(f"no source with weight has a row of the domain {domain!r}")
        shares, prompts = whole_shares(parts), list[Prompt]()
        while len(prompts) < count:
            times = [self._times[problems] for problems in of_source]
            # Only the rows that this round has used least may be drawn; once all are used, the next pass begins.
            least = min(
                int(used[mask].min()) for used, mask, share in zip(times, in_domain, shares, strict=True) if share
            )
            free = [mask & (used == least) for used, mask in zip(times, in_domain, strict=True)]
            order = self._quotas(domain, shares, [int(mask.sum()) for mask in free], count - len(prompts))
            picked = {}
            for source in sorted(set(order)):
                # Checked again: another source may just have given a problem that this source has too.
                allowed = free[source] & (self._times[of_source[source]] == least)
                picked[source] = iter(self._pick(source, allowed, order.count(source)))
            prompts += self._placed(order, picked)
        return prompts

    def _quotas(self, domain: str, shares: Sequence[int], room: list[int], count: int) -> list[int]:
        """Return the source of each of `count` refills, in order. Changes `room`: how many rows each source can give.

        The list is shorter if no source has room left.
        """
        behind = self._refills_behind.setdefault(domain, [0] * len(shares))
        order: list[int] = []
        while len(order) < count:
            open_shares = [share if free_rows else 0 for share, free_rows in zip(shares, room, strict=True)]
            if not any(open_shares):
                break
            order.append(furthest_behind(behind, open_shares))
            room[order[-1]] -= 1
        return order

    def _pick(self, source: int, allowed: np.ndarray, count: int) -> list[int]:
        """Take up to `count` rows of source `source` for the round, each once, among those `allowed`, (rows,) bool."""
        problems = self._problems.of_source[source]
        if self._sampling == "uniform":
            row_indices = self._walks[source].take(allowed, count)
        else:
            # Noise for all rows, so that a row's noise does not depend on which others are allowed.
            noise = _noise(f"{self._seed}/{self._update}/{self._picks}/{source}", len(allowed))
            candidates = np.flatnonzero(allowed)
            row_weights = weights(self._successes.chances(problems[candidates]))
            row_indices = candidates[weighted_order(row_weights, noise[candidates], count)].tolist()
        self._picks += 1
        self._times[problems[row_indices]] += 1
        return row_indices

    def _placed(self, order: Sequence[int], picked: Mapping[int, Iterator[int]]) -> list[Prompt]:
        """Return the picked rows as prompts. `order` says from which source each one comes."""
        prompts = []
        for source in order:
            row_index = next(picked[source], None)
            # A source may have given fewer rows than planned; the caller then draws again.
            if row_index is not None:
                prompts.append(Prompt(self._places, self._rows[source][row_index], source))
                self._places += 1
        return prompts


def _noise(key: str, count: int) -> np.ndarray:
    """Return (count,) numbers in (0, 1), computed from `key` only.

    They are made from raw bits, because NumPy guarantees the stream of raw bits but not that of its distributions.
    """
    bits = np.random.Philox(key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16])).random_raw(count)
    # 52 bits and a half: exact in a float64, and never 0 or 1.
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


@dataclass(frozen=True)
class Problems:
    """The problems of all sources. Each has a number, from 0 in the order of the sources."""

    of_source: tuple[np.ndarray, ...]
    """For each source (rows,): the problem number of each row."""
    domains: np.ndarray
    """(problems,): the number of each problem's domain."""
    families: np.ndarray
    """(problems,): the number of each problem's family; if the row names no family, its domain counts as one."""
    domain_numbers: Mapping[str, int]
    digest: str
    """A hash that changes with the rows' ids, domains, families and order."""
    _rows: Sequence[Row]
    _with_id: Mapping[str, Sequence[int]]

    def number(self, row: Row) -> int:
        """Return the problem number of `row` or of an equal row. Raises ValueError if no source has it."""
        candidates = self._with_id.get(row["id"], ())
        for problem in candidates:
            # Whole rows are compared only if several problems have the same id.
            if len(candidates) == 1 or self._rows[problem] is row or self._rows[problem] == row:
                return problem
        raise ValueError(f"no source has the row {row['id']!r}")


def number_problems(sources: Sequence[Sequence[Row]]) -> Problems:
    """Number the rows of all sources. An id is unique only within its source, so equal rows are one problem."""
    rows: list[Row] = []
    with_id: dict[str, Sequence[int]] = {}
    digest = hashlib.sha256()
    of_source = []
    for source in sources:
        numbers = []
        for row in source:
            same_id = with_id.get(row["id"], ())
            number = next((problem for problem in same_id if rows[problem] == row), -1) if same_id else -1
            if number < 0:
                number = len(rows)
                with_id[row["id"]] = (*same_id, number)
                rows.append(row)
            numbers.append(number)
        of_source.append(np.array(numbers, dtype=np.int64))
        digest.update(json.dumps([(row["id"], row["domain"], row.get("family")) for row in source]).encode())
    domains, domain_numbers = _numbered([row["domain"] for row in rows])
    families, _ = _numbered([(row["domain"], row.get("family") or row["domain"]) for row in rows])
    return Problems(tuple(of_source), domains, families, domain_numbers, digest.hexdigest(), rows, with_id)


def _numbered(names: Sequence[Name]) -> tuple[np.ndarray, dict[Name, int]]:
    """Number the distinct names from 0, and return the number of each entry and the numbers by name."""
    numbers: dict[Name, int] = {}
    column = np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
    return column, numbers
