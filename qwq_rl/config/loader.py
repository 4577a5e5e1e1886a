"""Builds nested frozen dataclasses from YAML. Reports all mistakes, each with file, line and the nearest right name.

A field's metadata, made by `about`, holds one sentence of help and the allowed range. A dataclass may have a method
`contradictions`, which yields `(path, text)` for fields that are valid alone but not together. Read `LoadedFile`,
`load`, then `_Builder`.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin

import yaml

from qwq_rl.config.yaml_tree import BROKEN, Dumper, Mistake, Place, YamlNode, apply_overrides, joined, plain, read_tree
from qwq_rl.errors import RecipeError, close_to, did_you_mean

T = TypeVar("T")
_LIMITS = {
    "above": ("above", lambda value, limit: value > limit),
    "least": ("at least", lambda value, limit: value >= limit),
    "below": ("below", lambda value, limit: value < limit),
    "most": ("at most", lambda value, limit: value <= limit),
}


Contradictions = Iterator[tuple[str, str]]
"""What is wrong inside a value: pairs of a dotted path in it ('' for the whole) and a text."""


def about(
    sentence: str,
    *,
    later: Mapping[str, str] | None = None,
    some: str = "",
    check: Callable[[Any], Contradictions] | None = None,
    **limits: float,
) -> dict[str, Any]:
    """Return the metadata of a field: its sentence of help, and limits for each of its numbers.

    `limits` are `above`, `least`, `below` and `most`. `later` maps a value that users may expect among the choices to
    the reason why it is not allowed. `some`, for a list or mapping that must not be empty, says what an empty one would
    mean. `check` yields the mistakes of a value that has the right type.
    """
    return {"help": sentence, "later": later or {}, "some": some, "check": check, "limits": limits}


@dataclass
class LoadedFile(Generic[T]):
    """The result of reading a file: the object if all of it is right, every part that is right, and every mistake."""

    path: Path
    tree: YamlNode | None = None
    value: T | None = None
    parts: dict[str, Any] = field(default_factory=dict)
    """Every dataclass that could be built, by dotted path; the whole object is at the path ''."""
    mistakes: list[Mistake] = field(default_factory=list)

    def note(self, path: str, text: str) -> None:
        """Add a mistake at a dotted path; if the file has nothing there, at the nearest key that encloses it."""
        self.mistakes.append(mistake_at(self.place(path), path, text))

    def place(self, path: str) -> Place:
        """Where a dotted path is written, or else the nearest key that encloses it."""
        node, place = self.tree, Place(str(self.path))
        for key in path.split(".") if path else []:
            children = node.value if node else None
            if isinstance(children, dict) and key in children:
                node = children[key]
            elif isinstance(children, list) and key.isdecimal() and int(key) < len(children):
                node = children[int(key)]
            else:  # not in the file: the place of what encloses it stays
                break
            place = node.place
        return place

    def whole(self) -> T:
        """Return the object. Raises RecipeError with every mistake if there is one."""
        raise_mistakes(self.mistakes)
        assert self.value is not None
        return self.value


def mistake_at(place: Place, path: str, text: str) -> Mistake:
    """Return a mistake whose text begins with its key, unless `place` (an override) names the key already."""
    already_named = not path or place.source == f"--{path}" or (place.line == 0 and place.source.endswith(f".{path}"))
    return Mistake(place, text if already_named else f"{path}: {text}")


def raise_mistakes(mistakes: Iterable[Mistake]) -> None:
    """Raise RecipeError with every mistake, one per line, in the order of their lines. No mistakes: do nothing."""
    lines = [str(mistake) for mistake in in_order(mistakes)]
    if lines:
        raise RecipeError("\n".join(lines))


def in_order(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """Sort mistakes by file (in order of each file's first mistake), then by line. Repeats are dropped."""
    unique = list(dict.fromkeys(mistakes))
    files = list(dict.fromkeys(mistake.place.source for mistake in unique))
    return sorted(unique, key=lambda mistake: (files.index(mistake.place.source), mistake.place.line))


def load(path: Path, kind: type[T], overrides: Sequence[str] = (), name: str = "") -> LoadedFile[T]:
    """Read `path` as `kind`, with overrides `--a.b=c` (c is YAML) on top. Mistakes are collected, not raised.

    `name`: the stage name (or `pipeline`) that the overrides had on the command line, if any.
    """
    loaded: LoadedFile[T] = LoadedFile(path)
    tree = read_tree(path, loaded.mistakes)
    if tree is not None:
        loaded.tree = apply_overrides(tree, overrides, loaded.mistakes, name)
        fill(loaded, kind)
    return loaded


def fill(loaded: LoadedFile[T], kind: type[T]) -> None:
    """Build `loaded.value` from `loaded.tree`."""
    assert loaded.tree is not None
    value = _Builder(loaded, kind).record(kind, loaded.tree, "")
    loaded.value = None if value is BROKEN else value


def key_meant(name: Any, names: Iterable[str]) -> str:
    """`; did you mean X?` with the nearest of `names`, unquoted as in all mistakes of a recipe; "" if none is near."""
    return did_you_mean(name, names, quote="")


def key_meant_or_all(name: Any, names: Iterable[str]) -> str:
    """`; did you mean X?` with the nearest of `names`, or a list of all names if none is near."""
    known = list(names)
    return key_meant(name, known) or (f"; there is {', '.join(known)}" if known else "")


def key_of(name: str) -> str:
    """The YAML key of a field: `from_` is written `from`."""
    return name.rstrip("_")


@cache
def types_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields by field name."""
    return typing.get_type_hints(kind)


def records_in(kind: Any) -> Iterator[type]:
    """Yield the dataclasses in a type: the type itself, the type of its items, its alternatives."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        yield kind
    for argument in get_args(kind):
        yield from records_in(argument)


def blocks_of(kind: type, path: str = "") -> Iterator[tuple[str, type]]:
    """Yield every dataclass inside a dataclass with its dotted key, without list indices and names of entries."""
    for dataclass_field in dataclasses.fields(kind):
        key = joined(path, key_of(dataclass_field.name))
        for block in records_in(types_of(kind)[dataclass_field.name]):
            yield key, block
            yield from blocks_of(block, key)


def describe(kind: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " or ".join("null" if argument is NoneType else describe(argument) for argument in arguments)
    if origin is tuple and Ellipsis not in arguments:
        return "a list of " + " and ".join(describe(argument) for argument in arguments)
    if origin in (tuple, list):
        return "a list" if dataclasses.is_dataclass(arguments[0]) else f"a list, each {describe(arguments[0])}"
    if origin in (dict, Mapping) or dataclasses.is_dataclass(kind):
        return "a mapping"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false", Any: "any value"}[kind]


def _got(value: Any) -> str:
    """A wrong value in words, for the end of a message."""
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, str):
        return f"text {value!r}"
    return "nothing" if value is None else str(value).lower()


@dataclass
class _Builder:
    """Builds values from YAML nodes. A value that cannot be built is BROKEN, and its mistake is noted in `loaded`."""

    loaded: LoadedFile[Any]
    root: type

    def note(self, node: YamlNode, path: str, text: str) -> Any:
        self.loaded.mistakes.append(mistake_at(node.place, path, text))
        return BROKEN

    def record(self, kind: type, node: YamlNode, path: str) -> Any:
        if not isinstance(node.value, dict):
            return self.note(node, path, f"must be a mapping, not {_got(node.value)}")
        fields = {key_of(dataclass_field.name): dataclass_field for dataclass_field in dataclasses.fields(kind)}
        for key, child in node.value.items():
            if key not in fields:
                self.note(child, joined(path, key), f"unknown key{self.suggestion(key, path, fields)}")
        values: dict[str, Any] = {}
        for key, dataclass_field in fields.items():
            if key in node.value:
                child = node.value[key]
                values[dataclass_field.name] = self.checked(
                    types_of(kind)[dataclass_field.name], child, joined(path, key), dataclass_field.metadata
                )
            elif (
                dataclass_field.default is dataclasses.MISSING
                and dataclass_field.default_factory is dataclasses.MISSING
            ):
                values[dataclass_field.name] = self.note(
                    node, joined(path, key), f"is missing: {dataclass_field.metadata['help']}"
                )
        if any(value is BROKEN for value in values.values()):
            return BROKEN
        value = kind(**values)
        self.loaded.parts[path] = value
        self.contradict(path, value.contradictions() if hasattr(value, "contradictions") else ())
        return value

    def contradict(self, path: str, contradictions: Iterable[tuple[str, str]]) -> None:
        for inner, text in contradictions:
            self.loaded.note(joined(path, inner) if inner else path, text)

    def checked(self, kind: Any, node: YamlNode, path: str, rules: Mapping[str, Any]) -> Any:
        value = self.build(kind, node, path, rules)
        if rules["some"] and value is not BROKEN and not value:
            return self.note(node, path, f"is empty: {rules['some']}")
        if rules["check"] and value is not BROKEN:
            self.contradict(path, rules["check"](value))
        return value

    def suggestion(self, key: str, path: str, fields: Iterable[str]) -> str:
        """Suggest the nearest key of this mapping; else the block of the recipe with this exact key; else all keys."""
        elsewhere = [block for block, kind in blocks_of(self.root) if key in map(key_of, types_of(kind))]
        # A key that exists elsewhere is misplaced, unless a key of this mapping is similar: then it is misspelt.
        if elsewhere and not close_to(key, fields):
            return f"; did you mean {joined(elsewhere[0], key)}?"
        return key_meant_or_all(key, fields)

    def build(self, kind: Any, node: YamlNode, path: str, rules: Mapping[str, Any]) -> Any:
        if node.value is BROKEN:
            return BROKEN
        origin = get_origin(kind)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            return self.record(kind, node, path)
        if kind is Any:
            return plain(node)
        if origin is Literal:
            return self.choice(get_args(kind), node, path, rules)
        if origin in (Union, UnionType):
            return self.union(kind, node, path, rules)
        if origin in (tuple, list):
            return self.sequence(kind, node, path, rules)
        if origin in (dict, Mapping):
            return self.mapping(kind, node, path, rules)
        return self.scalar(kind, node, path, rules)

    def choice(self, choices: Sequence[Any], node: YamlNode, path: str, rules: Mapping[str, Any]) -> Any:
        # Types are compared too: 1 and True are equal in Python.
        if any(node.value == option and type(node.value) is type(option) for option in choices):
            return node.value
        names = [str(option) for option in choices]
        expected = "must be one of " + ", ".join(names) if len(names) > 1 else f"must be {names[0]}"
        if isinstance(node.value, str) and node.value in rules["later"]:
            return self.note(node, path, f"{rules['later'][node.value]}; {expected}")
        return self.note(node, path, f"{expected}, not {_got(node.value)}{key_meant(node.value, names)}")

    def union(self, kind: Any, node: YamlNode, path: str, rules: Mapping[str, Any]) -> Any:
        """Return the first alternative of a union that fits.

        If none fits, note the mistakes of the last one that has the shape (mapping, list, scalar) of the value.
        """
        if node.value is None and NoneType in get_args(kind):
            return None
        alternatives = [alternative for alternative in get_args(kind) if alternative is not NoneType]
        candidates = [
            alternative
            for alternative in alternatives
            if len(alternatives) == 1 or _shape(alternative) is _shape_of(node.value)
        ]
        for alternative in candidates:
            # Each try has its own list of mistakes, so that those of a rejected alternative are dropped.
            trial = _Builder(LoadedFile(self.loaded.path, self.loaded.tree), self.root)
            value = trial.build(alternative, node, path, rules)
            if value is not BROKEN or alternative is candidates[-1]:
                self.loaded.parts |= trial.loaded.parts
                self.loaded.mistakes += trial.loaded.mistakes
                return value
        return self.note(node, path, f"must be {describe(kind)}, not {_got(node.value)}")

    def sequence(self, kind: Any, node: YamlNode, path: str, rules: Mapping[str, Any]) -> Any:
        arguments = get_args(kind)
        if not isinstance(node.value, list):
            hint = "" if isinstance(node.value, dict) else f"; write [{'' if node.value is None else node.value}]"
            return self.note(node, path, f"must be {describe(kind)}, not {_got(node.value)}{hint}")
        fixed = get_origin(kind) is tuple and Ellipsis not in arguments
        if fixed and len(node.value) != len(arguments):
            return self.note(node, path, f"must be {describe(kind)}, not a list of {len(node.value)}")
        kinds = arguments if fixed else [arguments[0]] * len(node.value)
        pairs = enumerate(zip(kinds, node.value, strict=True))
        values = [self.build(kind, item, joined(path, index), rules) for index, (kind, item) in pairs]
        if any(value is BROKEN for value in values):
            return BROKEN
        return get_origin(kind)(values)

    def mapping(self, kind: Any, node: YamlNode, path: str, rules: Mapping[str, Any]) -> Any:
        if not isinstance(node.value, dict):
            hint = "; write {} for none" if node.value is None else ""
            return self.note(node, path, f"must be a mapping, not {_got(node.value)}{hint}")
        value_type = get_args(kind)[1]
        values = {key: self.build(value_type, child, joined(path, key), rules) for key, child in node.value.items()}
        return BROKEN if any(value is BROKEN for value in values.values()) else values

    def scalar(self, kind: Any, node: YamlNode, path: str, rules: Mapping[str, Any]) -> Any:
        value = node.value
        # `type`, not `isinstance`, so that True is no number. A larger int does not fit into a float.
        if kind is float and type(value) is int and abs(value) < 2**1023:
            value = float(value)
        # YAML reads `1e3` as a float.
        if kind is int and type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not kind:
            hint = ": quote it" if kind is str and not isinstance(value, (dict, list, NoneType)) else ""
            return self.note(node, path, f"must be {describe(kind)}, not {_got(node.value)}{hint}")
        for name, limit in rules["limits"].items() if kind in (int, float) else ():
            words, holds = _LIMITS[name]
            if not holds(value, limit):
                return self.note(node, path, f"must be {words} {limit}, not {node.value}")
        return value


def _shape(kind: Any) -> type:
    """The YAML shape of a type: `dict`, `list`, or `object` for a scalar."""
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind) or origin in (dict, Mapping):
        return dict
    return list if origin in (tuple, list) else object


def _shape_of(value: Any) -> type:
    """The YAML shape of a value, as `_shape` names it."""
    return type(value) if isinstance(value, (dict, list)) else object


def as_plain(value: Any) -> Any:
    """Turn dataclasses into dicts with YAML keys, and tuples into lists. A None that is the default is left out."""
    if dataclasses.is_dataclass(value):
        return {
            key_of(dataclass_field.name): as_plain(getattr(value, dataclass_field.name))
            for dataclass_field in dataclasses.fields(value)
            if getattr(value, dataclass_field.name) is not None or dataclass_field.default is not None
        }
    if isinstance(value, Mapping):
        return {key: as_plain(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [as_plain(inner) for inner in value]
    return value


def to_yaml(value: Any) -> str:
    """Write a dataclass as YAML that `load` reads back as an equal one."""
    return yaml.dump(
        as_plain(value), Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110
    )
