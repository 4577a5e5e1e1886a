"""From rows and responses to verdicts and rewards: which verifiers judge what, and what their verdicts add up to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from qwq_rl.data.chat import CLOSE
from qwq_rl.data.row import Check, Row, checks_of, grading_checks_of
from qwq_rl.errors import RowError, UserError, did_you_mean
from qwq_rl.rewards.reward import Scored, compose
from qwq_rl.verifiers import Response, Verdict, Verifier, load
from qwq_rl.verifiers.loading import resolvable
from qwq_rl.verifiers.runner.judge import Call, judge_all

GATES: Mapping[str, Callable[[Response], bool]] = {
    "think_closed": lambda response: CLOSE in response.text or bool(response.answer),
    "finished": lambda response: response.finish == "stop",
    "answered": lambda response: bool(response.answer.strip()),
}
"""Gate -> whether a response passes it. An answer without any thinking leaves no thinking open."""


class DomainCheckLike(Protocol):
    """What scoring reads of an entry of `domains.X.checks`."""

    @property
    def verifier(self) -> str:
        """A name under the domain's `verifiers`, or a verifier that needs no parameters."""

    @property
    def role(self) -> Literal["gate", "penalty"]:
        """What its verdicts are for."""

    @property
    def reference(self) -> Any:
        """What it compares with, for all rows."""


class DomainLike(Protocol):
    """What scoring reads of a recipe's entry under `domains`."""

    @property
    def weight(self) -> float:
        """The domain's weight in the loss; scoring leaves it alone."""

    @property
    def verifiers(self) -> Mapping[str, Any]:
        """Name -> parameters, or `{"use": SPEC, **parameters}` or SPEC to put another verifier in its place."""

    @property
    def reward_model(self) -> float:
        """The weight w of the preference on rows that have a `score` check."""

    @property
    def checks(self) -> Sequence[DomainCheckLike]:
        """The rules for all of its rows."""


class Scorer:
    """Scores responses for training: verdicts, gates, preference and penalties, composed into one reward."""

    def __init__(self, domains: Mapping[str, DomainLike], gates: Sequence[str]) -> None:
        """Load every verifier that `domains` name; raises UserError for a name or gate that does not exist."""
        self._domains, self._gates = domains, _known_gates(gates)
        self._loaded: dict[str, Verifier] = {}
        self.counts: dict[str, dict[str, int]] = {}
        """By verifier name, what running it came to in the last call of `score` (`dispatcher.COUNTS`)."""
        for name, domain in domains.items():
            for verifier in entries_of(domain):
                self._verifier(name, verifier)

    def score(
        self, items: Sequence[tuple[Row, Response]], preferences: Sequence[float | None] | None = None
    ) -> list[Scored]:
        """Score `items`, one result an item, in order; `preferences` are win rates q in [0, 1], one an item.

        All verifiers judge at the same time; those that batch get one call each. A verifier's failure costs its own
        verdicts only.
        Raises RowError for a row whose domain or verifier does not exist.
        """
        checks = [self._checks(row) for row, _ in items]
        verdicts, self.counts = _judge_all(items, checks, lambda r, check: self._verifier(r["domain"], check.verifier))
        known = preferences if preferences is not None else [None] * len(items)
        return [
            _composed(row, response, of, said, self._gates, preference, self._domains[row["domain"]].reward_model)
            for (row, response), of, said, preference in zip(items, checks, verdicts, known, strict=True)
        ]

    def checks(self, row: Row) -> list[tuple[Check, Verifier]]:
        """What `score` asks of the row's responses, and whom."""
        return [(check, self._verifier(row["domain"], check.verifier)) for check in self._checks(row)]

    def _checks(self, row: Row) -> list[Check]:
        """The row's checks, and the domain's that it does not ask itself."""
        if row["domain"] not in self._domains:
            known = ", ".join(self._domains)
            raise RowError(f"row {row['id']}: its domain `{row['domain']}` is not among the recipe's ({known})")
        own, domain = self._own_checks(row), self._domains[row["domain"]]
        asked = {(check.verifier, check.role) for check in own}
        rules = [one for one in domain.checks if (one.verifier, one.role) not in asked]
        return [*own, *(Check(one.verifier, one.reference, one.role, of_domain=True) for one in rules)]

    def _own_checks(self, row: Row) -> list[Check]:
        """The row's own; a `reference` without a verifier is for the domain's single one."""
        checks = checks_of(row)
        if checks or row.get("reference") is None:
            return checks
        names = verifiers_of_rows(self._domains[row["domain"]])
        if len(names) != 1:
            raise RowError(
                f"row {row['id']} has a reference but names no verifier, and its domain `{row['domain']}` has "
                f"{len(names)} ({', '.join(names) or 'none'}): name one in the row's `verifier`"
            )
        return [Check(names[0], row["reference"])]

    def _verifier(self, domain: str, name: str) -> Verifier:
        spec, params = chosen(name, self._domains[domain].verifiers.get(name))
        key = f"{spec} {json.dumps(params, sort_keys=True, default=repr)}"
        if key not in self._loaded:
            self._loaded[key] = load(spec, params)
        return self._loaded[key]


def entries_of(domain: DomainLike) -> dict[str, Any]:
    """The recipe's entry for every verifier that a domain names; None for a rule that has none."""
    return {**{check.verifier: None for check in domain.checks}, **domain.verifiers}


def verifiers_of_rows(domain: DomainLike) -> list[str]:
    """The names under the domain's `verifiers` that are there for rows to ask: all but its rules'."""
    rules = {check.verifier for check in domain.checks}
    return [name for name in domain.verifiers if name not in rules]


class Grader:
    """Scores responses for evaluation: a row's `grade` instead of its checks, every gate, default parameters."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        """`named`: entries of recipes under `verifiers`, for names that mean nothing by themselves."""
        self._named = named
        self._loaded: dict[str, Verifier] = {}

    def score(self, items: Sequence[tuple[Row, Response]]) -> list[Scored]:
        """Grade `items`: score and reward are 1.0 where all checks and gates hold, else 0.0; None on a fault.

        Raises RowError for an open row without `grade`.
        """
        checks = [self._checks(row) for row, _ in items]
        verdicts, _ = _judge_all(items, checks, lambda row, check: self.verifier(check.verifier))
        return [
            _graded(_composed(row, response, of, said, tuple(GATES), None, 0.0))
            for (row, response), of, said in zip(items, checks, verdicts, strict=True)
        ]

    def checks(self, row: Row) -> list[tuple[Check, Verifier]]:
        """What `score` asks of the row's responses, and whom."""
        return [(check, self.verifier(check.verifier)) for check in self._checks(row)]

    def _checks(self, row: Row) -> list[Check]:
        checks = grading_checks_of(row)
        if not any(check.role == "score" for check in checks):
            raise RowError(f"row {row['id']} has no check of role `score` and no `grade`, so it cannot be evaluated")
        return checks

    def verifier(self, name: str) -> Verifier:
        """The verifier that a row's check names; raises UserError where there is none."""
        if name not in self._loaded:
            own = name in self._named and resolvable(name) is not None
            self._loaded[name] = load(*chosen(name, self._named[name])) if own else load(name)
        return self._loaded[name]


def grader(named: Mapping[str, Any] | None = None) -> Grader:
    """Return what evaluation scores with; `named` as of `Grader`."""
    return Grader(named or {})


def chosen(name: str, entry: Any) -> tuple[str, dict[str, Any]]:
    """The verifier's spec and parameters that a recipe's entry `domains.X.verifiers.NAME` stands for."""
    if entry is None:
        return name, {}
    if isinstance(entry, str):
        return entry, {}
    params = dict(entry)
    return str(params.pop("use", name)), params


def _known_gates(gates: Sequence[str]) -> tuple[str, ...]:
    for gate in gates:
        if gate not in GATES:
            hint = did_you_mean(gate, GATES) or f"; known: {', '.join(GATES)}"
            raise UserError(f"unknown gate `{gate}`{hint}")
    return tuple(gates)


def _judge_all(
    items: Sequence[tuple[Row, Response]],
    checks: Sequence[Sequence[Check]],
    verifier_of: Callable[[Row, Check], Verifier],
) -> tuple[list[list[Verdict]], dict[str, dict[str, int]]]:
    """One verdict a check, in the shape of `checks`, and counts by name; a verifier is asked once a role and name."""
    places: dict[tuple[int, str, str], list[tuple[int, int]]] = {}
    verifiers: dict[int, Verifier] = {}
    for index, (row, _) in enumerate(items):
        for place, check in enumerate(checks[index]):
            verifier = verifier_of(row, check)
            verifiers[id(verifier)] = verifier
            places.setdefault((id(verifier), check.role, check.verifier), []).append((index, place))
    calls = [
        Call(verifiers[which], [_asked(items[at], checks[at][place]) for at, place in of], role)  # type: ignore[arg-type]
        for (which, role, _), of in places.items()
    ]
    found: dict[tuple[int, int], Verdict] = {}
    counts: dict[str, Counter[str]] = {}
    for ((_, _, name), of), judged in zip(places.items(), judge_all(calls), strict=True):
        found |= zip(of, judged.verdicts, strict=True)
        counts.setdefault(name, Counter()).update(judged.counts)
    verdicts = [[found[index, place] for place in range(len(of))] for index, of in enumerate(checks)]
    return verdicts, {name: dict(count) for name, count in counts.items()}


def _asked(item: tuple[Row, Response], check: Check) -> tuple[Row, Response]:
    return {**item[0], "reference": check.reference, "role": check.role}, item[1]


def _composed(
    row: Row,
    response: Response,
    checks: Sequence[Check],
    verdicts: Sequence[Verdict],
    gate_names: Sequence[str],
    preference: float | None,
    weight: float,
) -> Scored:
    by_role: dict[str, list[float | None]] = {"score": [], "gate": [], "penalty": []}
    named: dict[str, Verdict] = {}
    gates = {gate: GATES[gate](response) for gate in gate_names}
    for check, name, verdict in zip(checks, names_of(checks), verdicts, strict=True):
        by_role[check.role].append(verdict.score)
        named[name] = verdict
        if check.role == "gate" and verdict.score is not None:
            gates[name] = verdict.score == 1
    score = _lowest(by_role["score"])
    holds = None if all(gates.values()) and None in by_role["gate"] else all(gates.values())
    value, share = (score, weight) if by_role["score"] else (1.0, 1.0)
    reward = compose(value, holds, preference, share, by_role["penalty"])
    return Scored(score, reward, named, gates, preference)


def _lowest(scores: Sequence[float | None]) -> float | None:
    """Every check has to hold, so the lowest score counts; a 0 is the lowest whatever could not be judged."""
    known = [score for score in scores if score is not None]
    return min(known) if known and (len(known) == len(scores) or min(known) == 0) else None


def names_of(checks: Sequence[Check]) -> list[str]:
    """What the verdicts of a response's checks are called: by verifier, one that comes again `#2` and so on."""
    seen: Counter[str] = Counter()
    names = []
    for check in checks:
        seen[check.verifier] += 1
        number = seen[check.verifier]
        names.append(check.verifier if number == 1 else f"{check.verifier}#{number}")
    return names


def _graded(scored: Scored) -> Scored:
    if scored.reward is None:
        return Scored(None, None, scored.verdicts, scored.gates, None)
    passed = float(scored.score == 1.0 and all(scored.gates.values()))
    return Scored(passed, passed, scored.verdicts, scored.gates, None)
