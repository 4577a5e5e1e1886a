"""What is wrong with a stage beyond its own file: what it names must be there, and fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwq_rl.config.check_data import Known, data_source, sets_mistakes
from qwq_rl.config.check_rewards import domain_mistakes, reward_mistakes
from qwq_rl.config.loader import Contradictions, did_you_mean, did_you_mean_or_all
from qwq_rl.config.recipe import DataSource, Domain, Evaluate, ModelSource, RewardModelSource, RlRecipe
from qwq_rl.config.yaml_tree import joined

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
                yield from domain_mistakes(path, part)
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
