"""What of an rl stage's rewards does not go together: its domains, their verifiers and rules, its rows, the weights."""

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
    """`(path, text)` for each verifier of a domain that does not exist or refuses what it is given."""
    for name, given in domain.verifiers.items():
        problem = _problem(name, given)
        if problem:
            yield f"{path}.verifiers.{name}", problem
    for place, check in enumerate(domain.checks):
        yield from ((joined(f"{path}.checks.{place}", key), text) for key, text in _rule_mistakes(check, domain))
    if domain.reward_model and not verifiers_of_rows(domain):
        yield joined(path, "reward_model"), "does nothing without verifiers: the reward of open rows is `gate * q`"


def _problem(name: str, given: Any) -> str | None:
    """What is wrong with a verifier's name or parameters; their values are looked at where it is one of ours."""
    spec, parameters = chosen(name, given)
    problem = resolvable(spec, parameters)
    if problem is None and spec in BUILT_IN:
        try:
            load(spec, parameters)
        except UserError as error:
            return str(error)
    return problem


def _rule_mistakes(check: DomainCheck, domain: Domain) -> Contradictions:
    """What is wrong with a rule for all rows: `(key, text)`."""
    given = domain.verifiers.get(check.verifier)
    problem = _problem(check.verifier, given)
    if problem:
        if check.verifier not in domain.verifiers:  # said at its entry where it has one
            near = key_meant(check.verifier, domain.verifiers)
            give = f"; its parameters belong under the domain's `verifiers`, as `{check.verifier}: {{...}}`"
            known = resolvable(check.verifier) is None or check.verifier in BUILT_IN
            yield "verifier", f"the domain has no verifier {check.verifier}{near}" if near else problem + give * known
        return
    spec, parameters = chosen(check.verifier, given)
    if spec in BUILT_IN:
        asked = {"prompt": "?", "reference": check.reference, "role": check.role}
        verdict = load(spec, parameters)(asked, Response("", ""))
        if isinstance(verdict, Verdict) and verdict.status == "bad_reference":
            yield "reference", verdict.reason


def reward_mistakes(recipe: RlRecipe, known: Mapping[str, Known]) -> Contradictions:
    """What of an rl stage's domains, data and reward model does not go together."""
    yield from _domains_and_rows(recipe, known)
    found = list(known.values())
    unscored = {name for one in found for name in one.open}
    unscored |= {name for name, domain in recipe.domains.items() if not verifiers_of_rows(domain)}
    weighted = [name for name, domain in recipe.domains.items() if domain.reward_model > 0]
    if recipe.reward_model is None:
        for name in weighted:
            yield f"domains.{name}.reward_model", "does nothing without `reward_model: {from: STAGE}`"
        for name in sorted(unscored & set(recipe.domains)):
            yield "reward_model", f"is missing: {name} has open rows, which a reward model alone can reward"
    elif not weighted and not unscored and len(found) == len(recipe.data) and all(one.whole for one in found):
        yield "reward_model", "does nothing: no domain gives it weight, and no row is open"
    for name, domain in recipe.domains.items():
        yield from _outranking(name, domain, (names for one in found for of, names in one.penalties if of == name))


def _domains_and_rows(recipe: RlRecipe, known: Mapping[str, Known]) -> Contradictions:
    for path, one in known.items():
        for name in sorted(one.domains - set(recipe.domains)):
            near = key_meant(name, recipe.domains)
            yield f"{path}.source", f"has rows of the domain {name}, which `domains` does not name{near}"
        for domain, verifier in sorted(one.verifiers):
            if domain in recipe.domains and verifier not in recipe.domains[domain].verifiers:
                yield from (
                    (f"{path}.source", f"in rows of {domain}: {text}") for text in [resolvable(verifier)] if text
                )
        for domain in sorted(one.unnamed & set(recipe.domains)):
            names = verifiers_of_rows(recipe.domains[domain])
            if len(names) != 1:
                has = f"the domain has {len(names)} ({', '.join(names) or 'none'})"
                yield f"{path}.source", f"has rows of {domain} with a reference that name no verifier, and {has}"
    if len(known) == len(recipe.data) and all(one.whole for one in known.values()):
        yield from _unused(recipe, list(known.values()))


def _unused(recipe: RlRecipe, known: list[Known]) -> Contradictions:
    """Domains and verifiers that no row asks for, where every row is known."""
    domains, verifiers = {d for one in known for d in one.domains}, {v for one in known for v in one.verifiers}
    unnamed = {domain for one in known for domain in one.unnamed}
    for name, domain in recipe.domains.items():
        if name not in domains:
            yield f"domains.{name}", "does nothing: no row of `data` is of this domain"
            continue
        for verifier in verifiers_of_rows(domain):
            if (name, verifier) not in verifiers and name not in unnamed:
                asked = sorted(other for where, other in verifiers if where == name)
                hint = f" (they name {', '.join(asked)})" if asked else ""
                yield (
                    f"domains.{name}.verifiers.{verifier}",
                    f"does nothing: no row of {name} names this verifier{hint}",
                )


def _outranking(name: str, domain: Domain, of_rows: Iterable[tuple[str, ...]]) -> Contradictions:
    """No failing response may be rewarded more than one that passes, which gets 1 - w less penalties whatever its q."""
    scoring = verifiers_of_rows(domain)
    rules = [check.verifier for check in domain.checks if check.role == "penalty"]
    sizes = {one: _stated("largest_penalty", one, domain, 1.0) for one in rules}
    rows = [{one: _stated("largest_penalty", one, domain, 1.0) for one in names} for names in of_rows]
    penalties = max([sizes, *({**sizes, **own} for own in rows)], key=lambda of: sum(of.values()))
    if not scoring or not (domain.reward_model or penalties):
        return
    worst = max(_stated("largest_failing_score", one, domain, 0.0) for one in scoring)
    if round(1 - domain.reward_model - sum(penalties.values()), 9) > worst:
        return
    less = " - ".join(f"{one:g}" for one in (domain.reward_model, *penalties.values()))
    gets = f"a response that passes may get as little as 1 - {less}, one that fails up to {worst:g}"
    if not penalties:
        yield f"domains.{name}.reward_model", f"{gets}: choose a weight below {1 - worst:g}"
        return
    named = ", ".join(penalties)
    lower = f"lower `most` of the penalties ({named}), or say what a verifier takes at most by its `largest_penalty`"
    yield f"domains.{name}.checks" if rules else f"domains.{name}", f"{gets}: {lower}"


def _stated(attribute: str, name: str, domain: Domain, unsaid: float) -> float:
    """What a verifier says of itself by an attribute, `unsaid` where it says nothing."""
    try:
        loaded = load(*chosen(name, domain.verifiers.get(name)))
    except UserError:  # told by `domain_mistakes`
        return unsaid
    return float(getattr(loaded.verifier, attribute, unsaid))
