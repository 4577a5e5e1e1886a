"""Checks of an rl stage's rewards: do its domains, their verifiers and rules, its rows and the weights fit together?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qwq_rl.config.blocks import DomainCheck
from qwq_rl.config.check_data import Known
from qwq_rl.config.loader import Contradictions, key_meant
from qwq_rl.config.recipe import Domain, RlRecipe
from qwq_rl.config.yaml_tree import joined
from qwq_rl.errors import UserError
from qwq_rl.rewards.scorer import chosen, verifiers_of_rows
from qwq_rl.verifiers import BUILT_IN, Response, Verdict
from qwq_rl.verifiers.loading import load, resolvable


def domain_mistakes(path: str, domain: Domain) -> Contradictions:
    """Yield `(path, text)` for each verifier or rule of a domain that does not exist or refuses its parameters.

    Also for a reward model weight that has no effect.
    """
    for name, entry in domain.verifiers.items():
        problem = _problem(name, entry)
        if problem:
            yield f"{path}.verifiers.{name}", problem
    for index, check in enumerate(domain.checks):
        yield from ((joined(f"{path}.checks.{index}", key), text) for key, text in _rule_mistakes(check, domain))
    if domain.reward_model and not verifiers_of_rows(domain):
        yield joined(path, "reward_model"), "does nothing without verifiers: the reward of open rows is `gate * q`"


def _problem(name: str, entry: Any) -> str | None:
    """Return what is wrong with a verifier's name or parameters, or None.

    The values of parameters are checked only for built-in verifiers.
    """
    spec, parameters = chosen(name, entry)
    problem = resolvable(spec, parameters)
    if problem is None and spec in BUILT_IN:
        try:
            load(spec, parameters)
        except UserError as error:
            return str(error)
    return problem


def _rule_mistakes(check: DomainCheck, domain: Domain) -> Contradictions:
    """Yield `(key, text)` for each mistake of a rule that holds for all rows of the domain."""
    entry = domain.verifiers.get(check.verifier)
    problem = _problem(check.verifier, entry)
    if problem:
        if check.verifier not in domain.verifiers:  # else it is reported at its entry there
            suggestion = key_meant(check.verifier, domain.verifiers)
            advice = f"; its parameters belong under the domain's `verifiers`, as `{check.verifier}: {{...}}`"
            exists = resolvable(check.verifier) is None or check.verifier in BUILT_IN
            yield (
                "verifier",
                f"the domain has no verifier {check.verifier}{suggestion}" if suggestion else problem + advice * exists,
            )
        return
    spec, parameters = chosen(check.verifier, entry)
    # Judging an empty response shows whether the rule can read its reference.
    if spec in BUILT_IN:
        row = {"prompt": "?", "reference": check.reference, "role": check.role}
        verdict = load(spec, parameters)(row, Response("", ""))
        if isinstance(verdict, Verdict) and verdict.status == "bad_reference":
            yield "reference", verdict.reason


def reward_mistakes(recipe: RlRecipe, known: Mapping[str, Known]) -> Contradictions:
    """Yield `(path, text)` for each conflict between an rl stage's domains, data and reward model.

    `known` maps the dotted path of each data source to what is known of its rows.
    """
    yield from _domains_and_rows(recipe, known)
    sources = list(known.values())
    unscored = {name for source in sources for name in source.open}
    unscored |= {name for name, domain in recipe.domains.items() if not verifiers_of_rows(domain)}
    weighted = [name for name, domain in recipe.domains.items() if domain.reward_model > 0]
    if recipe.reward_model is None:
        for name in weighted:
            yield f"domains.{name}.reward_model", "does nothing without `reward_model: {from: STAGE}`"
        for name in sorted(unscored & set(recipe.domains)):
            yield "reward_model", f"is missing: {name} has open rows, which a reward model alone can reward"
    # Rows that are not known may be open, so only a complete view allows this conclusion.
    elif not weighted and not unscored and len(sources) == len(recipe.data) and all(source.whole for source in sources):
        yield "reward_model", "does nothing: no domain gives it weight, and no row is open"
    for name, domain in recipe.domains.items():
        yield from _outranking(
            name, domain, (names for source in sources for penalised, names in source.penalties if penalised == name)
        )


def _domains_and_rows(recipe: RlRecipe, known: Mapping[str, Known]) -> Contradictions:
    """Yield `(path, text)` where the domains and verifiers that rows name do not fit `domains`."""
    for path, source in known.items():
        for name in sorted(source.domains - set(recipe.domains)):
            suggestion = key_meant(name, recipe.domains)
            yield f"{path}.source", f"has rows of the domain {name}, which `domains` does not name{suggestion}"
        for domain, verifier in sorted(source.verifiers):
            if domain in recipe.domains and verifier not in recipe.domains[domain].verifiers:
                yield from (
                    (f"{path}.source", f"in rows of {domain}: {text}") for text in [resolvable(verifier)] if text
                )
        for domain in sorted(source.unnamed & set(recipe.domains)):
            names = verifiers_of_rows(recipe.domains[domain])
            if len(names) != 1:
                choices = f"the domain has {len(names)} ({', '.join(names) or 'none'})"
                yield f"{path}.source", f"has rows of {domain} with a reference that name no verifier, and {choices}"
    if len(known) == len(recipe.data) and all(source.whole for source in known.values()):
        yield from _unused(recipe, list(known.values()))


def _unused(recipe: RlRecipe, known: list[Known]) -> Contradictions:
    """Yield the domains and verifiers that no row names. Only right if every row of the stage is known."""
    domains, verifiers = (
        {row_domain for source in known for row_domain in source.domains},
        {pair for source in known for pair in source.verifiers},
    )
    unnamed = {domain for source in known for domain in source.unnamed}
    for name, domain in recipe.domains.items():
        if name not in domains:
            yield f"domains.{name}", "does nothing: no row of `data` is of this domain"
            continue
        for verifier in verifiers_of_rows(domain):
            if (name, verifier) not in verifiers and name not in unnamed:
                named = sorted(row_verifier for owner, row_verifier in verifiers if owner == name)
                hint = f" (they name {', '.join(named)})" if named else ""
                yield (
                    f"domains.{name}.verifiers.{verifier}",
                    f"does nothing: no row of {name} names this verifier{hint}",
                )


def _outranking(name: str, domain: Domain, penalties_of_rows: Iterable[tuple[str, ...]]) -> Contradictions:
    """Yield a mistake if a failing response can get as much reward as one that passes.

    A passing response gets at least 1 - w less the penalties, whatever its q. `penalties_of_rows` holds, for each kind
    of row, the names of the penalties that it asks for.
    """
    scoring = verifiers_of_rows(domain)
    rules = [check.verifier for check in domain.checks if check.role == "penalty"]
    rule_sizes = {verifier: _stated("largest_penalty", verifier, domain, 1.0) for verifier in rules}
    sizes_of_rows = [
        {verifier: _stated("largest_penalty", verifier, domain, 1.0) for verifier in names}
        for names in penalties_of_rows
    ]
    # The worst case: the rules of the domain plus the row whose own penalties take most.
    penalties = max(
        [rule_sizes, *({**rule_sizes, **row_sizes} for row_sizes in sizes_of_rows)],
        key=lambda sizes: sum(sizes.values()),
    )
    if not scoring or not (domain.reward_model or penalties):
        return
    worst = max(_stated("largest_failing_score", verifier, domain, 0.0) for verifier in scoring)
    # Rounded, so that floating-point noise does not decide.
    if round(1 - domain.reward_model - sum(penalties.values()), 9) > worst:
        return
    deductions = " - ".join(f"{amount:g}" for amount in (domain.reward_model, *penalties.values()))
    range_text = f"a response that passes may get as little as 1 - {deductions}, one that fails up to {worst:g}"
    if not penalties:
        yield f"domains.{name}.reward_model", f"{range_text}: choose a weight below {1 - worst:g}"
        return
    listed = ", ".join(penalties)
    advice = f"lower `most` of the penalties ({listed}), or say what a verifier takes at most by its `largest_penalty`"
    yield f"domains.{name}.checks" if rules else f"domains.{name}", f"{range_text}: {advice}"


def _stated(attribute: str, name: str, domain: Domain, default: float) -> float:
    """The value of a verifier's attribute; `default` where it has none or cannot be loaded."""
    try:
        loaded = load(*chosen(name, domain.verifiers.get(name)))
    except UserError:  # reported by `domain_mistakes`
        return default
    return float(getattr(loaded.verifier, attribute, default))
