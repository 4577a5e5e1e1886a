"""What is wrong with a stage beyond its own file: what it names must be there, and fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwq_rl.check_data import Known, data_source, sets_mistakes
from qwq_rl.config import Contradictions, did_you_mean, did_you_mean_or_all
from qwq_rl.config_tree import joined
from qwq_rl.errors import UserError
from qwq_rl.recipe import DataSource, Domain, Evaluate, ModelSource, RewardModelSource, RlRecipe
from qwq_rl.scoring import chosen
from qwq_rl.verifiers.loading import load, resolvable

_HUB_MODEL = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Surroundings:
    """The stages that a stage's recipe may name."""

    name: str
    earlier: tuple[str, ...]
    every: tuple[str, ...]
    kinds: Mapping[str, Any]
    """The kind of each, None where its file does not say."""


def stage_mistakes(kind: Any, parts: Mapping[str, Any], around: Surroundings) -> Contradictions:
    """`(path, text)` for each mistake in `parts`: the dataclasses that could be built of a stage, by dotted path."""
    known: dict[str, Known] = {}
    for path, part in parts.items():
        match part:
            case ModelSource(from_=str(source)):
                yield from _at(path, "from", model_mistakes(source, around))
            case RewardModelSource():
                yield from _at(path, "from", _reward_model_source(part.from_, around))
            case DataSource():
                known[path], mistakes = data_source(part, kind)
                yield from ((joined(path, key), text) for key, text in mistakes)
            case Evaluate():
                yield from sets_mistakes(joined(path, "sets"), part.sets)
            case Domain():
                yield from _verifiers(path, part)
    if isinstance(parts.get(""), RlRecipe):
        yield from reward_mistakes(parts[""], known)


def _at(path: str, key: str, texts: Iterator[str]) -> Contradictions:
    return ((joined(path, key), text) for text in texts)


def model_mistakes(source: str, around: Surroundings) -> Iterator[str]:
    """What keeps a stage from starting from `source`."""
    if source == around.name:
        yield "a stage cannot start from itself"
    elif source in around.earlier:
        if around.kinds.get(source) == "reward_model":
            yield f"{source} trains a reward model, which writes no responses: start from another stage"
    elif source in around.every:
        yield f"{source} comes later in the pipeline: name an earlier stage, or move it forward in pipeline.yaml"
    elif Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            yield f"the folder {source} holds no model: there is no config.json in it"
    elif not _HUB_MODEL.fullmatch(source):
        near = did_you_mean(source, around.earlier)
        stages = f" (earlier stages: {', '.join(around.earlier)})" if around.earlier and not near else ""
        yield f"{source!r} is no stage of this pipeline, no folder and no Hub id (`org/name`){near}{stages}"


def _reward_model_source(source: str, around: Surroundings) -> Iterator[str]:
    trained = [name for name in around.every if around.kinds.get(name) == "reward_model"]
    if source not in around.every:
        yield f"there is no stage {source}{did_you_mean_or_all(source, trained)}"
    elif around.kinds.get(source) not in ("reward_model", None):
        yield f"{source} is a stage of kind {around.kinds[source]}, not reward_model{did_you_mean_or_all('', trained)}"
    elif source not in around.earlier:
        yield f"{source} comes later in the pipeline: move it forward in pipeline.yaml"


def _verifiers(path: str, domain: Domain) -> Contradictions:
    for name, given in domain.verifiers.items():
        problem = resolvable(*chosen(name, given))
        if problem:
            yield f"{path}.verifiers.{name}", problem
    if domain.reward_model and not domain.verifiers:
        yield joined(path, "reward_model"), "does nothing without verifiers: the reward of open rows is `gate * q`"


def reward_mistakes(recipe: RlRecipe, known: Mapping[str, Known]) -> Contradictions:
    """What of an rl stage's domains, data and reward model does not go together."""
    yield from _domains_and_rows(recipe, known)
    found = list(known.values())
    unscored = {name for one in found for name in one.open} | {n for n, d in recipe.domains.items() if not d.verifiers}
    weighted = [name for name, domain in recipe.domains.items() if domain.reward_model > 0]
    if recipe.reward_model is None:
        for name in weighted:
            yield f"domains.{name}.reward_model", "does nothing without `reward_model: {from: STAGE}`"
        for name in sorted(unscored & set(recipe.domains)):
            yield "reward_model", f"is missing: {name} has open rows, which a reward model alone can reward"
    elif not weighted and not unscored and len(found) == len(recipe.data) and all(one.whole for one in found):
        yield "reward_model", "does nothing: no domain gives it weight, and no row is open"
    for name in weighted:
        yield from _outranking(name, recipe.domains[name])


def _domains_and_rows(recipe: RlRecipe, known: Mapping[str, Known]) -> Contradictions:
    for path, one in known.items():
        for name in sorted(one.domains - set(recipe.domains)):
            near = did_you_mean(name, recipe.domains)
            yield f"{path}.source", f"has rows of the domain {name}, which `domains` does not name{near}"
        for domain, verifier in sorted(one.verifiers):
            if domain in recipe.domains and verifier not in recipe.domains[domain].verifiers:
                yield from (
                    (f"{path}.source", f"in rows of {domain}: {text}") for text in [resolvable(verifier)] if text
                )
    if len(known) == len(recipe.data) and all(one.whole for one in known.values()):
        yield from _unused(recipe, list(known.values()))


def _unused(recipe: RlRecipe, known: list[Known]) -> Contradictions:
    """Domains and verifiers that no row asks for, where every row is known."""
    domains, verifiers = {d for one in known for d in one.domains}, {v for one in known for v in one.verifiers}
    for name, domain in recipe.domains.items():
        if name not in domains:
            yield f"domains.{name}", "does nothing: no row of `data` is of this domain"
            continue
        for verifier in domain.verifiers:
            if (name, verifier) not in verifiers:
                asked = sorted(other for where, other in verifiers if where == name)
                hint = f" (they name {', '.join(asked)})" if asked else ""
                yield (
                    f"domains.{name}.verifiers.{verifier}",
                    f"does nothing: no row of {name} names this verifier{hint}",
                )


def _outranking(name: str, domain: Domain) -> Contradictions:
    """No failing response may be rewarded more than a passing one, which gets at least 1 - w, whatever its q."""
    worst = max((largest_failing_score(*chosen(name, given)) for name, given in domain.verifiers.items()), default=0.0)
    if domain.verifiers and 1 - domain.reward_model <= worst:
        gets = (
            f"a response that passes may get as little as 1 - {domain.reward_model:g}, one that fails up to {worst:g}"
        )
        yield f"domains.{name}.reward_model", f"{gets}: choose a weight below {1 - worst:g}"


def largest_failing_score(spec: str, parameters: Mapping[str, Any]) -> float:
    """The largest score a failing response can get from a verifier: its attribute of this name, 0 where it has none."""
    try:
        return float(getattr(load(spec, parameters).verifier, "largest_failing_score", 0.0))
    except UserError:  # said by `resolvable` already
        return 0.0
