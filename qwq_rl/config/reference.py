"""Writes docs/recipes.md from the dataclasses of a recipe: `python -m qwq_rl.config.reference > docs/recipes.md`."""

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
    owned = (
        (recipe_key, kinds, ", ".join(f"`{trl_field}`" for trl_field in trl_fields))
        for recipe_key, kinds, trl_fields in owned_fields()
    )
    parts.append(
        _TRL + "\n".join(f"| {recipe_key} | {kinds} | {trl_fields} |" for recipe_key, kinds, trl_fields in owned)
    )
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _titled(roots: Mapping[str, type]) -> dict[type, str]:
    """Map every block to its heading: its keys. If another block has the same key, the kinds of stage are added."""
    keys_of_block: dict[type, dict[str, None]] = {}
    kinds_of_block: dict[type, list[str]] = {}
    for kind, root in roots.items():
        for key, block in blocks_of(root):
            keys_of_block.setdefault(block, {})[key] = None
            kinds_of_block.setdefault(block, []).append(kind)
    all_keys = [key for block_keys in keys_of_block.values() for key in block_keys]
    titles = {}
    for block, block_keys in keys_of_block.items():
        ambiguous = any(all_keys.count(key) > 1 for key in block_keys)
        title = ", ".join(f"`{key}`" for key in block_keys)
        titles[block] = f"{title} of {', '.join(dict.fromkeys(kinds_of_block[block]))}" if ambiguous else title
    return titles


def _table(block: type, links: Mapping[type, str]) -> str:
    """The Markdown table of a block's fields; `links` maps each block to its heading."""
    lines = ["| key | value | default | |", "|---|---|---|---|"]
    for field in dataclasses.fields(block):
        value = _value(types_of(block)[field.name], field.metadata, links)
        lines.append(f"| `{key_of(field.name)}` | {value} | {_default(field)} | {field.metadata['help']} |")
    return "\n".join(lines)


def _value(field_type: Any, rules: Mapping[str, Any], links: Mapping[type, str]) -> str:
    """The values that a field may have: links to its blocks, or its type and limits."""
    blocks = [f"[{links[block]}](#{_anchor(links[block])})" for block in records_in(field_type)]
    if blocks:
        origins = {get_origin(member) for member in (field_type, *get_args(field_type))}
        prefix = "list of " if tuple in origins else "mapping of names to " if Mapping in _bases(origins) else ""
        return prefix + ", ".join(blocks)
    alternatives = (
        [member for member in get_args(field_type) if member is not NoneType]
        if NoneType in get_args(field_type)
        else [field_type]
    )
    words = " or ".join(_words(member) for member in alternatives)
    limits = {"above": ">", "least": "≥", "below": "<", "most": "≤"}
    bounds = ", ".join(f"{limits[name]} {limit:g}" for name, limit in rules["limits"].items())
    return f"{words}, {bounds}" if bounds else words


def _bases(origins: set[Any]) -> set[Any]:
    """`origins`, with `Mapping` added where `dict` is among them."""
    return origins | {Mapping for origin in origins if origin in (dict, Mapping)}


def _words(field_type: Any) -> str:
    """As `describe`, with each choice in backquotes."""
    return re.sub(
        r"one of (.+)$", lambda match: ", ".join(f"`{choice}`" for choice in match[1].split(", ")), describe(field_type)
    )


def _default(field: dataclasses.Field[Any]) -> str:
    """The default of a field as YAML in backquotes; "" where the key must be given."""
    if field.default is not dataclasses.MISSING:
        default = field.default
    elif field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    else:
        return ""
    plain = as_plain(default)
    if plain is None:
        return "none"
    # `lower`: Python's True and False are true and false in YAML.
    shown = str(plain).replace("'", "").lower() if isinstance(plain, (bool, list, dict)) else f"{plain}"
    return f"`{shown}`"


def _anchor(title: str) -> str:
    """The anchor that GitHub makes for a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


if __name__ == "__main__":
    print(recipe_reference(), end="")
