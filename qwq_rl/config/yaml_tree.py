"""Reads a YAML file and command-line overrides into a tree. Each value in it keeps the place where it was written."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_MAP, _SEQUENCE, _MERGE = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:merge"
BROKEN: Any = object()
"""The value of a node whose mistake is already in the list of mistakes."""
_FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


class Loader(yaml.SafeLoader):
    """Safe YAML that reads `1e-6` as a number, as YAML 1.2 does. PyYAML follows YAML 1.1 and reads it as text."""


class Dumper(yaml.SafeDumper):
    """Writes YAML that `Loader` reads back as the same values: text that looks like `1e-6` is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write shared values out in full: no anchors in a resolved recipe."""
        return True


for _resolver in (Loader, Dumper):
    _resolver.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _represent_text(dumper: Dumper, text: str) -> yaml.Node:
    """Quote text with U+0085: PyYAML would write it unquoted and read it back as a line break."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else None)


Dumper.add_representer(str, _represent_text)


@dataclass(frozen=True)
class Place:
    """Where a value is written: a line of a file, or an override (`--a.b`, line 0)."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True)
class Mistake:
    """One mistake and where it is."""

    place: Place
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


@dataclass(frozen=True)
class YamlNode:
    """A scalar, a `dict[str, YamlNode]` or a `list[YamlNode]`. `place` is the place of its key, if it has one."""

    value: Any
    place: Place


def joined(path: str, key: str | int) -> str:
    """Join `a.b` and `c` to `a.b.c`."""
    return f"{path}.{key}" if path else str(key)


def plain(node: YamlNode) -> Any:
    """Turn a tree into dicts, lists and scalars."""
    if isinstance(node.value, dict):
        return {key: plain(value) for key, value in node.value.items()}
    if isinstance(node.value, list):
        return [plain(value) for value in node.value]
    return node.value


def read_tree(path: Path, mistakes: list[Mistake]) -> YamlNode | None:
    """Read the mapping in a file, or return None. The reason and all other mistakes are added to `mistakes`."""
    source = str(path)
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        mistakes.append(Mistake(Place(source, line), "not UTF-8 text"))
        return None
    except OSError as error:
        mistakes.append(Mistake(Place(source), f"cannot be read: {error.strerror}"))
        return None
    node = parse(text, lambda line: Place(source, line), mistakes)
    if node is None:
        return None
    if node.value is None:
        mistakes.append(Mistake(Place(source), "is empty: a recipe is a mapping of keys to values"))
        return None
    if not isinstance(node.value, dict):
        mistakes.append(Mistake(node.place, "a recipe is a mapping of keys to values (`key: value`)"))
        return None
    return node


def parse(text: str, place: Callable[[int], Place], mistakes: list[Mistake]) -> YamlNode | None:
    """Parse one YAML document into a tree, or None if it is no valid YAML. `place` turns a line number into a place."""
    try:
        loader = Loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = ", ".join(part for part in (error.context, error.problem) if part)
        mistakes.append(Mistake(place(mark.line + 1 if mark else 1), f"broken YAML: {words}"))
        return None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        mistakes.append(Mistake(place(line), f"broken YAML: character {error.character!r} is not allowed"))
        return None
    except RecursionError:
        mistakes.append(Mistake(place(1), "broken YAML: nested too deep"))
        return None
    if root is None:
        return YamlNode(None, place(1))
    return _Converter(loader, place, mistakes).convert(root, place(root.start_mark.line + 1), "", ())


@dataclass(frozen=True)
class _Converter:
    """Turns PyYAML's nodes into ours; notes duplicate keys, unknown tags and values that JSON does not have."""

    loader: Loader
    place: Callable[[int], Place]
    mistakes: list[Mistake]

    def note(self, where: Place, path: str, text: str) -> None:
        self.mistakes.append(Mistake(where, f"{path}: {text}" if path else text))

    def convert(self, node: yaml.Node, where: Place, path: str, above: tuple[int, ...]) -> YamlNode:
        # `above` holds the ids of the enclosing nodes. An alias to one of them would never end.
        if id(node) in above:
            self.note(where, path, "contains itself, through an alias")
            return YamlNode(BROKEN, where)
        inside = (*above, id(node))
        if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
            return YamlNode(self.mapping(node, path, inside), where)
        if isinstance(node, yaml.SequenceNode) and node.tag == _SEQUENCE:
            items = (
                self.convert(item, self.place(item.start_mark.line + 1), joined(path, index), inside)
                for index, item in enumerate(node.value)
            )
            return YamlNode(list(items), where)
        return YamlNode(self.scalar(node, where, path), where)

    def mapping(self, node: yaml.MappingNode, path: str, inside: tuple[int, ...]) -> dict[str, YamlNode]:
        values: dict[str, YamlNode] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            where = self.place(key_node.start_mark.line + 1)
            if key_node.tag == _MERGE:
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            key = self.scalar(key_node, where, path)
            if key is BROKEN:
                continue
            if not isinstance(key, str):
                self.note(where, path, f"the key {key_node.value!r} is not text: quote it")
            elif key in values:
                text = f"is given twice, the first time in line {values[key].place.line}"
                self.note(where, joined(path, key), text)
            else:
                values[key] = self.convert(value_node, where, joined(path, key), inside)
        # `<<` gives defaults: keys of the mapping itself win, then those of earlier merged mappings.
        for merged_node in merged:
            where = self.place(merged_node.start_mark.line + 1)
            defaults = self.convert(merged_node, where, path, inside).value
            if isinstance(defaults, dict):
                values = defaults | values
            elif defaults is not BROKEN:
                self.note(where, path, "`<<` merges mappings only")
        return values

    def scalar(self, node: yaml.Node, where: Place, path: str) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            self.note(where, path, f"the YAML tag {node.tag} is not understood here")
            return BROKEN
        try:
            value = self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError):
            self.note(where, path, f"{node.value!r} cannot be read as {node.tag.rpartition(':')[2]}")
            return BROKEN
        # YAML turns an unquoted date into an object that JSON and recipes do not have.
        if isinstance(value, (datetime.date, bytes)):
            self.note(where, path, f"{node.value} reads as a {type(value).__name__}: quote it if it is text")
            return BROKEN
        if isinstance(value, float) and not math.isfinite(value):
            self.note(where, path, "must be a finite number")
            return BROKEN
        return value


def apply_overrides(tree: YamlNode, overrides: Iterable[str], mistakes: list[Mistake], stage: str = "") -> YamlNode:
    """Apply each override `--a.b=c` in turn and return the tree. `c` is YAML; a number in the path is a list index.

    Mistakes are noted at `--a.b`, or at `--STAGE.a.b` if the command line named a stage.
    """
    for override in overrides:
        name, equals, text = override.partition("=")
        place = Place(f"--{joined(stage, name[2:])}")
        if not re.fullmatch(r"--[^.\s]+(\.[^.\s]+)*", name) or not equals:
            mistakes.append(Mistake(place, "an override is written --key.key=value, with no space in it"))
            continue
        # Every line of the value has the same place: the override.
        value = parse(text, lambda line, place=place: place, mistakes)  # type: ignore[misc]
        if value is not None:
            changed = _with(tree, name[2:].split("."), value, place)
            if isinstance(changed, str):
                mistakes.append(Mistake(place, changed))
            else:
                tree = changed
    return tree


def _with(node: YamlNode, keys: list[str], new: YamlNode, place: Place) -> YamlNode | str:
    """Return the tree with `new` at the path `keys`, or a text that says what is wrong with the path.

    Missing mappings on the way are created.
    """
    if not keys:
        return new
    key, rest = keys[0], keys[1:]
    # An override may also fill a key that is empty or has a mistake in the file.
    children = {} if node.value in (None, BROKEN) else node.value
    if isinstance(children, list):
        if not key.isdecimal() or int(key) >= len(children):
            return f"{key!r} is no index into a list of {len(children)} (the first is 0)"
        changed = _with(children[int(key)], rest, new, place)
        return changed if isinstance(changed, str) else YamlNode(_replaced(children, int(key), changed), node.place)
    if not isinstance(children, dict):
        return f"there is no {key!r} inside the value {node.value!r}"
    changed = _with(children.get(key, YamlNode(None, place)), rest, new, place)
    return changed if isinstance(changed, str) else YamlNode(children | {key: changed}, node.place)


def _replaced(items: list[YamlNode], index: int, item: YamlNode) -> list[YamlNode]:
    return [*items[:index], item, *items[index + 1 :]]
