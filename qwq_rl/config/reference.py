"""docs/recipes.md from the recipe's own dataclasses: `python -m qwq_rl.config.reference > docs/recipes.md`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from types import NoneType
from typing import Any, get_args, get_origin

from qwq_rl.config.loader import as_plain, blocks_of, describe, key_of, records_in, types_of
from qwq_rl.config.recipe import KINDS, Pipeline
from qwq_rl.config.trl_block import owned_fields

_HEAD = """# Recipes

<!-- Made by `python -m qwq_rl.config.reference > docs/recipes.md`; a test compares the two. -->

A recipe is a folder: `pipeline.yaml` names the stages in order, and each stage is one YAML file beside it.
[contracts.md](contracts.md) has a literal example of each. Every key there is stands below: its values, its default
and one sentence; a key without a default must be given.

- `qwq-rl check recipes/R` reports every mistake of every stage at once, with file, line and the nearest right name,
  before a model loads. A key that is unknown, out of range, or does nothing beside the others is a mistake.
- `--STAGE.a.b=c` on the command line (`--a.b=c` where the command is about one stage) puts the YAML value `c` in the
  place of the key `a.b`; a number in the path is an index into a list: `--1_math_code.data.0.weight=2`. The pipeline's
  own keys are `--pipeline.a.b=c`.
- Numbers may be written `1e-6`.
- The recipe as it ran, every default filled in, is `resolved.yaml` in the stage's run folder.
"""
_TRL = """## What `trl` refuses

`trl` passes any other field of TRL's configuration on by its own name. Refused is what the recipe itself says:

| said in | in a stage of kind | TRL's fields |
|---|---|---|
"""


def recipe_reference() -> str:
    """The page, as Markdown."""
    roots: dict[str, type] = {kind: recipe for kind, recipe in KINDS.items()}
    blocks = _titled({**roots, "pipeline": Pipeline})
    parts = [_HEAD]
    for kind, recipe in roots.items():
        parts.append(f"## A stage of kind `{kind}`\n\n{recipe.__doc__}\n\n{_table(recipe, blocks)}")
    parts.append(f"## `pipeline.yaml`\n\n{Pipeline.__doc__}\n\n{_table(Pipeline, blocks)}")
    parts.append("## The blocks in them")
    parts += [f"### {title}\n\n{block.__doc__}\n\n{_table(block, blocks)}" for block, title in blocks.items()]
    owned = ((said, kinds, ", ".join(f"`{field}`" for field in fields)) for said, kinds, fields in owned_fields())
    parts.append(_TRL + "\n".join(f"| {said} | {kinds} | {fields} |" for said, kinds, fields in owned))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _titled(roots: Mapping[str, type]) -> dict[type, str]:
    """Every block with its heading: its keys, and the kinds of stage it belongs to where another has the same key."""
    found: dict[type, dict[str, None]] = {}
    kinds: dict[type, list[str]] = {}
    for kind, root in roots.items():
        for key, block in blocks_of(root):
            found.setdefault(block, {})[key] = None
            kinds.setdefault(block, []).append(kind)
    keys = [key for names in found.values() for key in names]
    titles = {}
    for block, names in found.items():
        shared = any(keys.count(key) > 1 for key in names)
        title = ", ".join(f"`{key}`" for key in names)
        titles[block] = f"{title} of {', '.join(dict.fromkeys(kinds[block]))}" if shared else title
    return titles


def _table(kind: type, links: Mapping[type, str]) -> str:
    lines = ["| key | value | default | |", "|---|---|---|---|"]
    for one in dataclasses.fields(kind):
        value = _value(types_of(kind)[one.name], one.metadata, links)
        lines.append(f"| `{key_of(one.name)}` | {value} | {_default(one)} | {one.metadata['help']} |")
    return "\n".join(lines)


def _value(kind: Any, rules: Mapping[str, Any], links: Mapping[type, str]) -> str:
    blocks = [f"[{links[block]}](#{_anchor(links[block])})" for block in records_in(kind)]
    if blocks:
        origins = {get_origin(part) for part in (kind, *get_args(kind))}
        many = "list of " if tuple in origins else "mapping of names to " if Mapping in _bases(origins) else ""
        return many + ", ".join(blocks)
    kinds = [part for part in get_args(kind) if part is not NoneType] if NoneType in get_args(kind) else [kind]
    words = " or ".join(_words(part) for part in kinds)
    limits = {"above": ">", "least": "≥", "below": "<", "most": "≤"}
    bounds = ", ".join(f"{limits[name]} {limit:g}" for name, limit in rules["limits"].items())
    return f"{words}, {bounds}" if bounds else words


def _bases(origins: set[Any]) -> set[Any]:
    return origins | {Mapping for origin in origins if origin in (dict, Mapping)}


def _words(kind: Any) -> str:
    """As `describe`, with the choices as code."""
    return re.sub(r"one of (.+)$", lambda match: ", ".join(f"`{one}`" for one in match[1].split(", ")), describe(kind))


def _default(one: dataclasses.Field[Any]) -> str:
    if one.default is not dataclasses.MISSING:
        default = one.default
    elif one.default_factory is not dataclasses.MISSING:
        default = one.default_factory()
    else:
        return ""
    plain = as_plain(default)
    if plain is None:
        return "none"
    shown = str(plain).replace("'", "").lower() if isinstance(plain, (bool, list, dict)) else f"{plain}"
    return f"`{shown}`"


def _anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


if __name__ == "__main__":
    print(recipe_reference(), end="")
