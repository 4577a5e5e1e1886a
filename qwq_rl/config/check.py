"""`qwq-rl check`: reports every mistake of every stage at once, before a model loads. Imports no torch.

`check_data` and `check_rewards` hold the checks of data and of rewards.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwq_rl.config.check_data import Known, data_source, set_mistakes, sets_mistakes
from qwq_rl.config.check_rewards import domain_mistakes, reward_mistakes
from qwq_rl.config.loader import Contradictions, LoadedFile, in_order, key_meant, key_meant_or_all, raise_mistakes
from qwq_rl.config.recipe import (
    PIPELINE,
    Control,
    DataSource,
    Domain,
    Evaluate,
    FinalEvaluation,
    Gate,
    ModelSource,
    Pipeline,
    RewardModelSource,
    RlRecipe,
    Stage,
    kind_in,
    read_pipeline,
    read_stage,
    split_overrides,
    stage_files,
    stage_names,
)
from qwq_rl.config.yaml_tree import Mistake, Place, joined, read_tree
from qwq_rl.errors import RecipeError

_HUB_MODEL = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Surroundings:
    """The stages that a stage's recipe may name."""

    name: str
    earlier: tuple[str, ...]
    every: tuple[str, ...]
    kinds: Mapping[str, Any]
    """The kind of each stage; None where its file does not give it."""


def check(path: Path, overrides: Sequence[str] = ()) -> dict[str, Stage]:
    """Return the stages of a recipe folder by name, or the one stage of a file, if nothing is wrong with them.

    Overrides are `--STAGE.a.b=c` for a folder and `--a.b=c` for a file. Raises RecipeError with every mistake, within a
    file and between files. All data, stages, folders and verifiers that a recipe names must exist.
    """
    stages, mistakes = _examine(Path(path), overrides)
    raise_mistakes(mistakes)
    return {name: loaded.whole() for name, loaded in stages.items()}


def mistakes(path: Path, overrides: Sequence[str] = ()) -> list[str]:
    """As `check`, but returns the mistakes, each as `file:line: what`; an empty list if there are none."""
    try:
        return [str(mistake) for mistake in in_order(_examine(Path(path), overrides)[1])]
    except RecipeError as error:
        return str(error).splitlines()


def _examine(path: Path, overrides: Sequence[str]) -> tuple[dict[str, LoadedFile[Stage]], list[Mistake]]:
    if path.name == f"{PIPELINE}.yaml":
        path = path.parent
    if path.is_dir():
        return _examine_folder(path, overrides)
    if not path.exists():
        siblings = stage_files(path.parent) if path.parent.is_dir() else {}
        names = [str(file) for file in siblings.values()]
        raise_mistakes([Mistake(Place(str(path)), f"there is no such recipe{key_meant_or_all(str(path), names)}")])
    loaded = read_stage(path, overrides)
    _add(loaded, stage_mistakes(_kind(loaded), loaded.parts, _around_file(path)))
    return {path.stem: loaded}, loaded.mistakes


def _examine_folder(folder: Path, overrides: Sequence[str]) -> tuple[dict[str, LoadedFile[Stage]], list[Mistake]]:
    if not (folder / f"{PIPELINE}.yaml").exists():
        text = f"has no {PIPELINE}.yaml, which names the stages; to check one stage, name its file"
        raise_mistakes([Mistake(Place(str(folder)), text)])
    pipeline, stages = read_pipeline(folder, split_overrides(overrides, stage_files(folder)))
    kinds = {name: _kind(loaded) for name, loaded in stages.items()}
    names = tuple(stage_names(pipeline.tree))
    _add(pipeline, pipeline_mistakes(pipeline.parts, stages, names, kinds))
    for name, loaded in stages.items():
        surroundings = Surroundings(name, names[: names.index(name)], names, kinds)
        _add(loaded, stage_mistakes(kinds[name], loaded.parts, surroundings))
    all_mistakes = [*pipeline.mistakes, *(mistake for loaded in stages.values() for mistake in loaded.mistakes)]
    return stages, all_mistakes


def _add(loaded: LoadedFile[Any], contradictions: Contradictions) -> None:
    for path, text in list(contradictions):
        loaded.note(path, text)


def _kind(loaded: LoadedFile[Stage]) -> Any:
    return kind_in(loaded.tree) if loaded.tree else None


def _around_file(path: Path) -> Surroundings:
    """What a stage that is checked alone may name: those of pipeline.yaml beside it, else all stage files there."""
    files, ignored_mistakes = stage_files(path.parent), list[Mistake]()
    pipeline = path.parent / f"{PIPELINE}.yaml"
    stages_listed = stage_names(read_tree(pipeline, ignored_mistakes)) if pipeline.exists() else []
    names = stages_listed or list(files)
    trees = {name: read_tree(files[name], ignored_mistakes) for name in names if name in files}
    kinds = {name: kind_in(tree) if tree else None for name, tree in trees.items()}
    # Without a pipeline there is no order: any other stage may come earlier.
    earlier = stages_listed[: stages_listed.index(path.stem)] if path.stem in stages_listed else names
    return Surroundings(path.stem, tuple(earlier), tuple(names), kinds)


def pipeline_mistakes(
    parts: Mapping[str, Any], stages: Mapping[str, LoadedFile[Stage]], names: Sequence[str], kinds: Mapping[str, Any]
) -> Contradictions:
    """Yield `(path, text)` for each mistake in a pipeline.

    `parts` maps dotted paths to the dataclasses that could be built; `names` and `kinds` are those of all its stages.
    """
    recipes = [loaded.value for loaded in stages.values()]
    domains = {name for recipe in recipes if isinstance(recipe, RlRecipe) for name in recipe.domains}
    extended: set[str] = set()
    for path, part in parts.items():
        stages_named: dict[str, str] = {}
        match part:
            case Gate():
                stages_named = {"stage": part.stage}
                yield from ((joined(path, "set"), text) for text in set_mistakes(part.set))
                # A stage that could not be read may have the domain: then domains are not checked.
                yield from _gate(path, part, domains if all(recipes) else set())
                if part.extend and part.stage in extended:
                    yield joined(path, "extend"), f"does nothing: an earlier gate says how {part.stage} is extended"
                extended |= {part.stage} if part.extend else set()
            case Control():
                stages_named = {"stage": part.stage, "of": part.of}
                yield from ((joined(path, "stage"), text) for text in _other_start(part, stages))
            case FinalEvaluation():
                yield from sets_mistakes(joined(path, "sets"), part.sets)
            case Pipeline():
                stages_named = {"release": part.release}
        for key, name in stages_named.items():
            yield from ((joined(path, key), text) for text in _stage_name(name, names, kinds))


def _gate(path: str, gate: Gate, domains: set[str]) -> Contradictions:
    """Yield a mistake for each domain of the requirements that is not in `domains`; none if `domains` is empty."""
    for index, requirement in enumerate(gate.require):
        for position, name in enumerate(requirement.domains):
            if domains and name not in domains:
                text = f"no stage has a domain {name}{key_meant_or_all(name, sorted(domains))}"
                yield joined(path, f"require.{index}.domains.{position}"), text


def _other_start(control: Control, stages: Mapping[str, LoadedFile[Stage]]) -> Iterable[str]:
    """Yield a mistake if a control does not start from the same model as the stage it is compared with."""
    models = [stages[name].parts.get("model") for name in (control.stage, control.of) if name in stages]
    if len(models) == 2 and None not in models and models[0] != models[1]:
        starts = " and ".join(
            f"{name} starts from {stages[name].parts['model'].from_}" for name in (control.stage, control.of)
        )
        yield f"{starts}: a control starts from the same model"


def _stage_name(name: str, names: Sequence[str], kinds: Mapping[str, Any]) -> Iterable[str]:
    if name not in names:
        yield f"there is no stage {name}{key_meant_or_all(name, names)}"
    elif kinds.get(name) == "reward_model":
        yield f"{name} trains a reward model, which writes no responses: name another stage"


def table(stages: Mapping[str, Stage]) -> str:
    """A table of the stages: kind, starting model, data with their shares, steps, samples per update."""
    rows = [("stage", "kind", "from", "data", "steps", "samples per update")]
    rows += [(name, *_described(stage)) for name, stage in stages.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        # The last two columns are numbers: aligned right.
        cells = [
            cell.rjust(width) if column_index > 3 else cell.ljust(width)
            for column_index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _described(stage: Stage) -> tuple[str, str, str, str, str]:
    total_weight = sum(entry.weight for entry in stage.data)
    shares = [f" {entry.weight / total_weight:.0%}" if len(stage.data) > 1 else "" for entry in stage.data]
    data = ", ".join(entry.source + share for entry, share in zip(stage.data, shares, strict=True))
    source = stage.model.from_ or f"new {stage.model.new}"
    if isinstance(stage, RlRecipe):
        samples = stage.rollout.prompts * stage.rollout.generations // stage.update.updates_per_rollout
        return f"rl {stage.algorithm}", source, data, str(stage.steps), str(samples)
    return stage.kind, source, data, str(stage.steps), str(stage.batch)


def main(argv: Sequence[str] | None = None) -> int:
    """`qwq-rl check PATH [--STAGE.a.b=c ...]`: prints a table of the stages, or every mistake. Returns 0 or 2."""
    parser = argparse.ArgumentParser(
        prog="qwq-rl check",
        usage="qwq-rl check PATH [--STAGE.a.b=c ...]",
        description="Every mistake of every stage, before a model loads.",
        epilog="PATH is a recipe folder or one stage's file; for a file, overrides are written --a.b=c.",
        allow_abbrev=False,
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="recipe folder, or a stage's YAML file")
    arguments, overrides = parser.parse_known_args(argv)
    try:
        stages = check(arguments.path, overrides)
    except RecipeError as error:
        count = len(str(error).splitlines())
        print(f"{error}\n{count} mistake{'s' if count > 1 else ''} in {arguments.path}", file=sys.stderr)
        return error.exit_status
    print(table(stages))
    return 0


def stage_mistakes(kind: Any, parts: Mapping[str, Any], around: Surroundings) -> Contradictions:
    """Yield `(path, text)` for each mistake in a stage; `parts` maps dotted paths to dataclasses that were built."""
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
    # The whole recipe is at the path "". It is absent if any part of it could not be built.
    if isinstance(parts.get(""), RlRecipe):
        yield from reward_mistakes(parts[""], known)


def _at(path: str, key: str, texts: Iterator[str]) -> Contradictions:
    return ((joined(path, key), text) for text in texts)


def model_mistakes(source: str, around: Surroundings) -> Iterator[str]:
    """Yield why a stage cannot start from `source`, the value of `model.from`."""
    # The order matters: the name of a stage wins over a folder of the same name.
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
        suggestion = key_meant(source, around.earlier)
        stages = f" (earlier stages: {', '.join(around.earlier)})" if around.earlier and not suggestion else ""
        yield f"{source!r} is no stage of this pipeline, no folder and no Hub id (`org/name`){suggestion}{stages}"


def _reward_model_source(source: str, around: Surroundings) -> Iterator[str]:
    trained = [name for name in around.every if around.kinds.get(name) == "reward_model"]
    if source not in around.every:
        yield f"there is no stage {source}{key_meant_or_all(source, trained)}"
    elif around.kinds.get(source) not in ("reward_model", None):
        yield f"{source} is a stage of kind {around.kinds[source]}, not reward_model{key_meant_or_all('', trained)}"
    elif source not in around.earlier:
        yield f"{source} comes later in the pipeline: move it forward in pipeline.yaml"
