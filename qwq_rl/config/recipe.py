"""Reads recipes: a stage's YAML file, or a folder with its pipeline, into typed, frozen dataclasses.

Every setting is a field of a dataclass in `blocks`, `stages` or `pipeline` of this package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from qwq_rl.config.blocks import (
    CheckpointBlock,
    DataSource,
    Domain,
    Evaluate,
    LimitsBlock,
    ModelSource,
    RewardModelSource,
    RlUpdate,
    RolloutBlock,
    SupervisedUpdate,
)
from qwq_rl.config.loader import (
    LoadedFile,
    as_plain,
    fill,
    key_meant,
    key_meant_or_all,
    load,
    raise_mistakes,
    to_yaml,
)
from qwq_rl.config.pipeline import Control, Extend, FinalEvaluation, Gate, Pipeline, Requirement
from qwq_rl.config.stages import KINDS, RewardModelRecipe, RlRecipe, SftRecipe, Stage
from qwq_rl.config.yaml_tree import Loader, Mistake, Place, YamlNode, apply_overrides, joined, read_tree

__all__ = [
    "KINDS",
    "PIPELINE",
    "CheckpointBlock",
    "Control",
    "DataSource",
    "Domain",
    "Evaluate",
    "Extend",
    "FinalEvaluation",
    "Gate",
    "LimitsBlock",
    "ModelSource",
    "Pipeline",
    "Requirement",
    "RewardModelRecipe",
    "RewardModelSource",
    "RlRecipe",
    "RlUpdate",
    "RolloutBlock",
    "SftRecipe",
    "Stage",
    "SupervisedUpdate",
    "difference",
    "load_pipeline",
    "load_stage",
    "read_pipeline",
    "read_stage",
    "recipe_hash",
    "resolved_yaml",
    "split_overrides",
    "stage_files",
]

PIPELINE = "pipeline"
"""The name of a pipeline's file without `.yaml`, and the pipeline's name in overrides."""


def load_stage(path: Path, overrides: Sequence[str] = ()) -> Stage:
    """Read a stage's YAML file, with overrides `--a.b=c` on top.

    Raises RecipeError with every mistake inside the file; `qwq_rl.config.check` also checks what the file names.
    """
    return read_stage(path, overrides).whole()


def load_pipeline(
    folder: Path, overrides: Mapping[str, Sequence[str]] | None = None
) -> tuple[Pipeline, dict[str, Stage]]:
    """Read `folder/pipeline.yaml` and the stages it names, in order.

    `overrides` maps a stage's name, or `pipeline`, to its overrides `--a.b=c`.
    Raises RecipeError with every mistake of every file.
    """
    pipeline, stages = read_pipeline(folder, overrides or {})
    raise_mistakes([*pipeline.mistakes, *(mistake for loaded in stages.values() for mistake in loaded.mistakes)])
    return pipeline.whole(), {name: loaded.whole() for name, loaded in stages.items()}


def read_stage(path: Path, overrides: Sequence[str] = (), name: str = "") -> LoadedFile[Stage]:
    """As `load_stage`, but mistakes are collected, not raised. `name`: the stage, if the command line named it."""
    loaded: LoadedFile[Stage] = LoadedFile(Path(path))
    tree = read_tree(Path(path), loaded.mistakes)
    if tree is None:
        return loaded
    loaded.tree = apply_overrides(tree, overrides, loaded.mistakes, name)
    kind = kind_in(loaded.tree)
    if kind in KINDS:
        fill(loaded, cast(type[Stage], KINDS[kind]))
    else:
        problem = "is missing or no text" if kind is None else f"cannot be {kind!r}"
        loaded.note("kind", f"{problem}: a stage is one of {', '.join(KINDS)}{key_meant(kind, KINDS)}")
    return loaded


def read_pipeline(
    folder: Path, overrides: Mapping[str, Sequence[str]]
) -> tuple[LoadedFile[Pipeline], dict[str, LoadedFile[Stage]]]:
    """As `load_pipeline`, but the mistakes are collected in each part, not raised."""
    pipeline = load(Path(folder) / f"{PIPELINE}.yaml", Pipeline, overrides.get(PIPELINE, ()), PIPELINE)
    files = stage_files(folder)
    stages: dict[str, LoadedFile[Stage]] = {}
    for index, name in enumerate(stage_names(pipeline.tree)):
        if name in files:
            stages[name] = read_stage(files[name], overrides.get(name, ()), name)
        else:
            missing = Path(folder) / f"{name}.yaml"
            pipeline.note(joined("stages", index), f"there is no {missing}{key_meant_or_all(name, files)}")
    return pipeline, stages


def stage_files(folder: Path) -> dict[str, Path]:
    """The stage files of a recipe folder by stage name."""
    return {path.stem: path for path in sorted(Path(folder).glob("*.yaml")) if path.stem != PIPELINE}


def stage_names(pipeline: YamlNode | None) -> list[str]:
    """The stages that a pipeline's tree names; what cannot be read is left out."""
    stages = pipeline.value.get("stages") if pipeline else None
    items = stages.value if stages and isinstance(stages.value, list) else []
    return [item.value for item in items if isinstance(item.value, str)]


def kind_in(tree: YamlNode) -> str | None:
    """The `kind` in a stage's tree, right or wrong; None if there is none or it is not text."""
    kind = tree.value["kind"].value if "kind" in tree.value else None
    return kind if isinstance(kind, str) else None


def split_overrides(arguments: Iterable[str], stages: Iterable[str]) -> dict[str, list[str]]:
    """Sort overrides `--STAGE.a.b=c` by stage, each as `--a.b=c`; those of the pipeline are `--pipeline.a.b=c`.

    Raises RecipeError if an argument has another form or names no stage.
    """
    by_stage: dict[str, list[str]] = {}
    names, mistakes = [*stages, PIPELINE], []
    for argument in arguments:
        stage, dot, rest = argument.removeprefix("--").partition(".")
        if not argument.startswith("--") or not dot or "=" not in rest:
            mistakes.append(Mistake(Place(argument), "an override is written --STAGE.key=value"))
        elif stage not in names:
            name = argument.partition("=")[0]
            mistakes.append(Mistake(Place(name), f"there is no stage {stage}{key_meant_or_all(stage, names)}"))
        else:
            by_stage.setdefault(stage, []).append(f"--{rest}")
    raise_mistakes(mistakes)
    return by_stage


def resolved_yaml(stage: Stage) -> str:
    """The recipe with every default filled in, as YAML that `load_stage` reads back as an equal stage."""
    return to_yaml(stage)


def recipe_hash(stage: Stage) -> str:
    """SHA-256 (hex) of the resolved recipe. Equal settings give an equal hash, however the file is written.

    `accept_changes` is not part of it: it only says which changes outside the recipe are allowed.
    """
    settings = {key: value for key, value in as_plain(stage).items() if key != "accept_changes"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def difference(before: str, after: str) -> str:
    """What changed between two resolved recipes (YAML): one `key: old -> new` per line, "" if nothing did."""
    old, new = (dict(_leaves(yaml.load(text, Loader=Loader))) for text in (before, after))
    lines = []
    for path in dict.fromkeys((*old, *new)):
        if path not in new:
            lines.append(f"{path}: {_shown(old[path])} -> left out")
        elif path not in old:
            lines.append(f"{path}: not there -> {_shown(new[path])}")
        # Types are compared too: 1, 1.0 and True are equal in Python.
        elif old[path] != new[path] or type(old[path]) is not type(new[path]):
            lines.append(f"{path}: {_shown(old[path])} -> {_shown(new[path])}")
    return "\n".join(lines)


def is_free(changed: str) -> bool:
    """Whether a stage may continue with the changes that `difference` lists.

    It may if only `limits`, `accept_changes` and the block `rollout.server` differ.
    """
    return all(line.startswith(("limits.", "accept_changes", "rollout.server.")) for line in changed.splitlines())


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every scalar and every empty list or mapping with its dotted path."""
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    if not pairs:  # a scalar, or empty: it has no leaves below it
        yield path, value
    for key, child in pairs:
        yield from _leaves(child, joined(path, key))


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
