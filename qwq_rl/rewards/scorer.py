"""Scores responses: which verifiers judge a row's response, and how their verdicts become one reward.

`Scorer` is for training, `Grader` for evaluation. Both judge with `_judge_all` and combine with `_composed`.
"""

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
"""Gate -> whether a response passes it. An answer without any thinking passes `think_closed`."""


class DomainCheckLike(Protocol):
    """The fields of an entry of `domains.X.checks` that scoring uses."""

    @property
    def verifier(self) -> str:
        """A name under the domain's `verifiers`, or a verifier that needs no parameters."""

    @property
    def role(self) -> Literal["gate", "penalty"]:
        """Whether its verdicts are gates or penalties."""

    @property
    def reference(self) -> Any:
        """The reference, the same for all rows."""


class DomainLike(Protocol):
    """The fields of a recipe's entry under `domains` that scoring uses."""

    @property
    def weight(self) -> float:
        """The domain's weight in the loss; scoring does not use it."""

    @property
    def verifiers(self) -> Mapping[str, Any]:
        """Name -> parameters; or `{"use": SPEC, **parameters}` or SPEC to use another verifier under this name."""

    @property
    def reward_model(self) -> float:
        """The weight w of the preference on rows that have a `score` check."""

    @property
    def checks(self) -> Sequence[DomainCheckLike]:
        """The rules: checks for all rows of the domain."""


class Scorer:
    """Scores responses for training: verdicts, gates, preference and penalties give one reward."""

    def __init__(self, domains: Mapping[str, DomainLike], gates: Sequence[str]) -> None:
        """Load every verifier that `domains` names. Raises UserError for a verifier or gate that does not exist."""
        self._domains, self._gates = domains, _known_gates(gates)
        self._loaded: dict[str, Verifier] = {}
        self.counts: dict[str, dict[str, int]] = {}
        """By verifier name, the counts of the last call of `score` (`qwq_rl.verifiers.runner.dispatcher.COUNTS`)."""
        for name, domain in domains.items():
            # Loaded now, so that a wrong name or parameter stops the stage before it trains.
            for verifier_name in entries_of(domain):
                self._verifier(name, verifier_name)

    def score(
        self, items: Sequence[tuple[Row, Response]], preferences: Sequence[float | None] | None = None
    ) -> list[Scored]:
        """Return one result an item, in order. `preferences` are win rates q in [0, 1], one an item.

        All verifiers judge at the same time; those that batch get one call each. If a verifier fails, only its own
        verdicts are lost. Raises RowError for a row whose domain or verifier does not exist.
        """
        checks = [self._checks(row) for row, _ in items]
        verdicts, self.counts = _judge_all(
            items, checks, lambda problem, check: self._verifier(problem["domain"], check.verifier)
        )
        win_rates = preferences if preferences is not None else [None] * len(items)
        return [
            _composed(
                response,
                row_checks,
                row_verdicts,
                self._gates,
                win_rate,
                self._domains[row["domain"]].reward_model,
            )
            for (row, response), row_checks, row_verdicts, win_rate in zip(
                items, checks, verdicts, win_rates, strict=True
            )
        ]

    def checks(self, row: Row) -> list[tuple[Check, Verifier]]:
        """Return the checks of the row that `score` uses, each with its verifier."""
        return [(check, self._verifier(row["domain"], check.verifier)) for check in self._checks(row)]

    def _checks(self, row: Row) -> list[Check]:
        """Return the row's checks, then the domain's rules that the row does not replace."""
        if row["domain"] not in self._domains:
            domains = ", ".join(self._domains)
            raise RowError(f"row {row['id']}: its domain `{row['domain']}` is not among the recipe's ({domains})")
        row_checks, domain = self._own_checks(row), self._domains[row["domain"]]
        # A row that names the same verifier in the same role replaces the rule.
        replaced = {(check.verifier, check.role) for check in row_checks}
        rules = [rule for rule in domain.checks if (rule.verifier, rule.role) not in replaced]
        return [*row_checks, *(Check(rule.verifier, rule.reference, rule.role, of_domain=True) for rule in rules)]

    def _own_checks(self, row: Row) -> list[Check]:
        """Return the row's own checks. A `reference` without a verifier is for the domain's single verifier."""
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
    """Return the recipe's entry for every verifier that a domain names; None for a rule without an entry."""
    return {**{check.verifier: None for check in domain.checks}, **domain.verifiers}


def verifiers_of_rows(domain: DomainLike) -> list[str]:
    """Return the names under the domain's `verifiers` that rows may use: all but those of its rules."""
    rules = {check.verifier for check in domain.checks}
    return [name for name in domain.verifiers if name not in rules]


class Grader:
    """Scores responses for evaluation, with all gates and default parameters: by a row's `grade`, else its checks."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        """`named` has entries of recipes under `verifiers`; they are used for names that no verifier has."""
        self._named = named
        self._loaded: dict[str, Verifier] = {}

    def score(self, items: Sequence[tuple[Row, Response]]) -> list[Scored]:
        """Grade `items`. Score and reward are 1.0 if all checks and gates hold, else 0.0, and None on a fault.

        Raises RowError for an open row without `grade`.
        """
        checks = [self._checks(row) for row, _ in items]
        verdicts, _ = _judge_all(items, checks, lambda row, check: self.verifier(check.verifier))
        return [
            _graded(_composed(response, row_checks, row_verdicts, tuple(GATES), None, 0.0))
            for (_, response), row_checks, row_verdicts in zip(items, checks, verdicts, strict=True)
        ]

    def checks(self, row: Row) -> list[tuple[Check, Verifier]]:
        """Return the checks of the row that `score` uses, each with its verifier."""
        return [(check, self.verifier(check.verifier)) for check in self._checks(row)]

    def _checks(self, row: Row) -> list[Check]:
        checks = grading_checks_of(row)
        if not any(check.role == "score" for check in checks):
            raise RowError(f"row {row['id']} has no check of role `score` and no `grade`, so it cannot be evaluated")
        return checks

    def verifier(self, name: str) -> Verifier:
        """Return the verifier that a row's check names. Raises UserError if there is none."""
        if name not in self._loaded:
            use_entry = name in self._named and resolvable(name) is not None
            self._loaded[name] = load(*chosen(name, self._named[name])) if use_entry else load(name)
        return self._loaded[name]


def grader(named: Mapping[str, Any] | None = None) -> Grader:
    """Return the grader of an evaluation; `named` is as in `Grader`."""
    return Grader(named or {})


def chosen(name: str, entry: Any) -> tuple[str, dict[str, Any]]:
    """Return (spec, parameters) of the verifier that a recipe's entry `domains.X.verifiers.NAME` means."""
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
    """Return one verdict a check, in the shape of `checks`, and the counts by verifier name.

    There is one call for each verifier, role and name, with all the items that it judges.
    """
    places: dict[tuple[int, str, str], list[tuple[int, int]]] = {}
    verifiers: dict[int, Verifier] = {}
    for index, (row, _) in enumerate(items):
        for place, check in enumerate(checks[index]):
            verifier = verifier_of(row, check)
            verifiers[id(verifier)] = verifier
            places.setdefault((id(verifier), check.role, check.verifier), []).append((index, place))
    calls = [
        Call(verifiers[key], [_problem_item(items[item], checks[item][nth]) for item, nth in call_places], role)  # type: ignore[arg-type]
        for (key, role, _), call_places in places.items()
    ]
    verdict_at: dict[tuple[int, int], Verdict] = {}
    counts: dict[str, Counter[str]] = {}
    for ((_, _, name), call_places), judged in zip(places.items(), judge_all(calls), strict=True):
        verdict_at |= zip(call_places, judged.verdicts, strict=True)
        counts.setdefault(name, Counter()).update(judged.counts)
    verdicts = [
        [verdict_at[index, place] for place in range(len(row_checks))] for index, row_checks in enumerate(checks)
    ]
    return verdicts, {name: dict(count) for name, count in counts.items()}


def _problem_item(item: tuple[Row, Response], check: Check) -> tuple[Row, Response]:
    """Return the item as a verifier gets it: the row with the check's own reference and role."""
    return {**item[0], "reference": check.reference, "role": check.role}, item[1]


def _composed(
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
    # A gate that could not be judged leaves the result open, unless another gate fails.
    gates_hold = None if all(gates.values()) and None in by_role["gate"] else all(gates.values())
    # Without a check of role `score` the row is open: the preference alone decides.
    verified_score, preference_weight = (score, weight) if by_role["score"] else (1.0, 1.0)
    reward = compose(verified_score, gates_hold, preference, preference_weight, by_role["penalty"])
    return Scored(score, reward, named, gates, preference)


def _lowest(scores: Sequence[float | None]) -> float | None:
    """Return the lowest score, because every check has to hold.

    If a score is None, the result is None; but 0 is the lowest possible, so a 0 counts in any case.
    """
    judged = [score for score in scores if score is not None]
    return min(judged) if judged and (len(judged) == len(scores) or min(judged) == 0) else None


def names_of(checks: Sequence[Check]) -> list[str]:
    """Return the name of each check's verdict: its verifier, with `#2` and so on if the verifier comes again."""
    counts: Counter[str] = Counter()
    names = []
    for check in checks:
        counts[check.verifier] += 1
        number = counts[check.verifier]
        names.append(check.verifier if number == 1 else f"{check.verifier}#{number}")
    return names


def _graded(scored: Scored) -> Scored:
    if scored.reward is None:
        return Scored(None, None, scored.verdicts, scored.gates, None)
    passed = float(scored.score == 1.0 and all(scored.gates.values()))
    return Scored(passed, passed, scored.verdicts, scored.gates, None)
