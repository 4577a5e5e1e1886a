"""The generic half: YAML with lines, overrides, dataclasses, and every mistake at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq_rl.config.loader import LoadedFile, about, load, to_yaml
from qwq_rl.errors import RecipeError


@dataclass(frozen=True)
class Engine:
    power: float = field(metadata=about("Kilowatts.", above=0, most=500))
    fuel: Literal["petrol", "diesel"] = field(
        default="petrol", metadata=about("What it burns.", later={"hydrogen": "hydrogen comes later"})
    )
    cylinders: int | None = field(default=None, metadata=about("How many.", least=1))


@dataclass(frozen=True)
class Wheel:
    size: int = field(metadata=about("Inches."))

    def contradictions(self) -> Iterator[tuple[str, str]]:
        if self.size == 13:
            yield "size", "is unlucky"


@dataclass(frozen=True)
class Car:
    name: str = field(metadata=about("Its name."))
    engine: Engine = field(metadata=about("Its engine."))
    wheels: tuple[Wheel, ...] = field(default=(), metadata=about("Its wheels."))
    pair: tuple[float, float] = field(default=(1.0, 2.0), metadata=about("Two numbers.", above=0))
    tags: list[str] = field(default_factory=list, metadata=about("Words.", some="a car has a tag"))
    doors: Mapping[str, Wheel] = field(default_factory=dict, metadata=about("Wheels by door."))
    extra: Mapping[str, str | Mapping[str, Any]] = field(default_factory=dict, metadata=about("Anything."))
    electric: bool = field(default=False, metadata=about("Whether."))
    from_: str | None = field(default=None, metadata=about("Where from."))


def read(folder: Path, text: str, *overrides: str) -> LoadedFile[Car]:
    path = folder / "car.yaml"
    path.write_text(text)
    return load(path, Car, overrides)


def said(folder: Path, text: str, *overrides: str) -> list[str]:
    """The mistakes, with the folder cut from their places."""
    return [str(mistake).removeprefix(f"{folder}/") for mistake in read(folder, text, *overrides).mistakes]


GOOD = """\
name: beetle
engine:
  power: 25
"""


def test_nested_values_with_their_types_and_defaults(tmp_path: Path) -> None:
    text = GOOD + "wheels: [{size: 15}, {size: 16}]\ndoors: {left: {size: 1}}\nextra: {a: b, c: {d: 1}}\nfrom: here\n"
    car = read(tmp_path, text).whole()
    assert car == Car(
        name="beetle",
        engine=Engine(power=25.0),
        wheels=(Wheel(15), Wheel(16)),
        doors={"left": Wheel(1)},
        extra={"a": "b", "c": {"d": 1}},
        from_="here",
    )
    assert type(car.engine.power) is float


@pytest.mark.parametrize("number", ["1e-6", "1.0e-6", ".1e-5", "+1E-6"])
def test_numbers_in_exponent_notation(tmp_path: Path, number: str) -> None:
    assert read(tmp_path, GOOD, f"--engine.power={number}").whole().engine.power == pytest.approx(1e-6)


def test_whole_number_written_as_a_float(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD, "--engine.cylinders=1e1").whole().engine.cylinders == 10


MISTAKES = {
    "unknown key": (GOOD + "nmae: x\n", "car.yaml:4: nmae: unknown key; did you mean name?"),
    "unknown nested key": (
        "name: x\nengine:\n  power: 1\n  fule: diesel\n",
        "car.yaml:4: engine.fule: unknown key; did you mean fuel?",
    ),
    "unknown key in a list": (
        GOOD + "wheels:\n  - {size: 1}\n  - {size: 1, sizee: 2}\n",
        "car.yaml:6: wheels.1.sizee: unknown key; did you mean size?",
    ),
    "unknown key in a mapping": (
        GOOD + "doors:\n  left:\n    size: 1\n    sise: 1\n",
        "car.yaml:7: doors.left.sise: unknown key; did you mean size?",
    ),
    "key of another block": (GOOD + "fuel: diesel\n", "car.yaml:4: fuel: unknown key; did you mean engine.fuel?"),
    "key like no other": (
        "name: x\nengine: {power: 1, zzz: 1}\n",
        "car.yaml:2: engine.zzz: unknown key; there is power, fuel, cylinders",
    ),
    "missing key": ("engine: {power: 1}\n", "car.yaml:1: name: is missing: Its name."),
    "missing nested key": ("name: x\nengine: {fuel: diesel}\n", "car.yaml:2: engine.power: is missing: Kilowatts."),
    "text for a number": (
        "name: x\nengine: {power: big}\n",
        "car.yaml:2: engine.power: must be a number, not text 'big'",
    ),
    "true for a number": ("name: x\nengine: {power: true}\n", "car.yaml:2: engine.power: must be a number, not true"),
    "nothing for a number": ("name: x\nengine: {power: }\n", "car.yaml:2: engine.power: must be a number, not nothing"),
    "number for text": (GOOD.replace("beetle", "911"), "car.yaml:1: name: must be text, not 911: quote it"),
    "half for a whole number": (
        "name: x\nengine: {power: 1, cylinders: 1.5}\n",
        "car.yaml:2: engine.cylinders: must be a whole number, not 1.5",
    ),
    "number for true": (GOOD + "electric: 1\n", "car.yaml:4: electric: must be true or false, not 1"),
    "text for a list": (
        GOOD + "tags: red\n",
        "car.yaml:4: tags: must be a list, each text, not text 'red'; write [red]",
    ),
    "nothing for a list": (GOOD + "tags:\n", "car.yaml:4: tags: must be a list, each text, not nothing; write []"),
    "nothing for a mapping": (
        GOOD + "doors:\n",
        "car.yaml:4: doors: must be a mapping, not nothing; write {} for none",
    ),
    "number beyond any float": (
        f"name: x\nengine: {{power: 1{'0' * 400}}}\n",
        "car.yaml:2: engine.power: must be a number, not 1000",
    ),
    "nested too deep": (GOOD + "extra: " + "[" * 5000 + "]" * 5000, "car.yaml:1: broken YAML: nested too deep"),
    "mapping for a list": (GOOD + "wheels: {size: 1}\n", "car.yaml:4: wheels: must be a list, not a mapping"),
    "text for a block": ("name: x\nengine: big\n", "car.yaml:2: engine: must be a mapping, not text 'big'"),
    "list for a mapping": (GOOD + "doors: [1]\n", "car.yaml:4: doors: must be a mapping, not a list"),
    "list for a union": (GOOD + "extra: {a: [1]}\n", "car.yaml:4: extra.a: must be text or a mapping, not a list"),
    "too few items": (
        GOOD + "pair: [1]\n",
        "car.yaml:4: pair: must be a list of a number and a number, not a list of 1",
    ),
    "item out of range": (GOOD + "pair: [1, -1]\n", "car.yaml:4: pair.1: must be above 0, not -1"),
    "empty list": (GOOD + "tags: []\n", "car.yaml:4: tags: is empty: a car has a tag"),
    "out of range": ("name: x\nengine: {power: 501}\n", "car.yaml:2: engine.power: must be at most 500, not 501"),
    "out of range where optional": (
        "name: x\nengine: {power: 1, cylinders: 0}\n",
        "car.yaml:2: engine.cylinders: must be at least 1, not 0",
    ),
    "misspelt choice": (
        "name: x\nengine: {power: 1, fuel: deisel}\n",
        "car.yaml:2: engine.fuel: must be one of petrol, diesel, not text 'deisel'; did you mean diesel?",
    ),
    "choice to come": (
        "name: x\nengine: {power: 1, fuel: hydrogen}\n",
        "car.yaml:2: engine.fuel: hydrogen comes later; must be one of petrol, diesel",
    ),
    "contradiction": (GOOD + "wheels:\n- size: 13\n", "car.yaml:5: wheels.0.size: is unlucky"),
    "duplicate key": (GOOD + "name: y\n", "car.yaml:4: name: is given twice, the first time in line 1"),
    "duplicate nested key": (
        "name: x\nengine:\n  power: 1\n  power: 2\n",
        "car.yaml:4: engine.power: is given twice, the first time in line 3",
    ),
    "key that is no text": (GOOD + "1: x\n", "car.yaml:4: the key '1' is not text: quote it"),
    "broken YAML": (GOOD + "tags: [a\n", "car.yaml:5: broken YAML: while parsing a flow sequence"),
    "tab": (GOOD + "\ttags: a\n", "car.yaml:4: broken YAML: "),
    "two documents": (GOOD + "---\nname: x\n", "car.yaml:4: broken YAML: "),
    "control character": (GOOD + "tags: [\x07]\n", "car.yaml:4: broken YAML: character"),
    "unknown alias": (GOOD + "tags: *x\n", "car.yaml:4: broken YAML: found undefined alias"),
    "alias to itself": (GOOD + "extra: &x {a: *x}\n", "car.yaml:4: extra.a: contains itself"),
    "foreign tag": (
        GOOD + "tags: !!python/tuple [a]\n",
        "car.yaml:4: tags: the YAML tag tag:yaml.org,2002:python/tuple",
    ),
    "foreign scalar tag": (GOOD + "from: !secret x\n", "car.yaml:4: from: 'x' cannot be read as !secret"),
    "date": (GOOD + "from: 2024-01-01\n", "car.yaml:4: from: 2024-01-01 reads as a date: quote it if it is text"),
    "impossible date": (GOOD + "from: 2024-99-99\n", "car.yaml:4: from: '2024-99-99' cannot be read as timestamp"),
    "infinity": ("name: x\nengine: {power: .inf}\n", "car.yaml:2: engine.power: must be a finite number"),
    "merge of a scalar": (GOOD + "extra: {<<: 1}\n", "car.yaml:4: extra: `<<` merges mappings only"),
    "empty": ("", "car.yaml: is empty"),
    "only a comment": ("# nothing\n", "car.yaml: is empty"),
    "a list": ("- name: x\n", "car.yaml:1: a recipe is a mapping of keys to values"),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake(tmp_path: Path, text: str, message: str) -> None:
    (only,) = said(tmp_path, text)
    assert only.startswith(message)


OVERRIDES = {
    "unknown key": ("--engine.fule=diesel", "--engine.fule: unknown key; did you mean fuel?"),
    "wrong type": ("--engine.power=big", "--engine.power: must be a number, not text 'big'"),
    "inside a whole block": ("--engine={power: 1, fule: x}", "--engine: engine.fule: unknown key; did you mean fuel?"),
    "no value": ("--engine.power", "--engine.power: an override is written --key.key=value"),
    "no dashes": ("engine.power=1", "an override is written --key.key=value"),
    "index beyond the list": ("--wheels.1.size=1", "--wheels.1.size: '1' is no index into a list of 1"),
    "name into a list": ("--wheels.size=1", "--wheels.size: 'size' is no index into a list of 1"),
    "into a scalar": ("--name.x=1", "--name.x: there is no 'x' inside the value 'beetle'"),
    "broken value": ("--name=[", "--name: broken YAML: "),
    "emptied": ("--name=", "--name: must be text, not nothing"),
}


@pytest.mark.parametrize(("override", "message"), OVERRIDES.values(), ids=OVERRIDES)
def test_mistake_in_an_override(tmp_path: Path, override: str, message: str) -> None:
    (only,) = said(tmp_path, GOOD + "wheels: [{size: 1}]\n", override)
    assert message in only


def test_overrides_replace_add_and_reach_into_lists(tmp_path: Path) -> None:
    text = GOOD + "wheels: [{size: 1}, {size: 2}]\n"
    overrides = ("--wheels.1.size=9", "--doors.left.size=3", "--engine.power=1", "--engine.power=2", "--tags=[a, b]")
    car = read(tmp_path, text, *overrides).whole()
    assert car.wheels == (Wheel(1), Wheel(9))
    assert car.doors == {"left": Wheel(3)}
    assert car.engine.power == 2
    assert car.tags == ["a", "b"]


def test_contradiction_brought_by_an_override_is_named_by_it(tmp_path: Path) -> None:
    assert said(tmp_path, GOOD + "wheels: [{size: 1}]\n", "--wheels.0.size=13") == ["--wheels.0.size: is unlucky"]


def test_every_mistake_is_reported_in_the_order_of_lines(tmp_path: Path) -> None:
    text = "nmae: x\nengine:\n  power: -1\n  fuel: coal\nwheels: [{size: 13}]\n"
    with pytest.raises(RecipeError) as raised:
        read(tmp_path, text, "--pair=[1]").whole()
    places = [line.removeprefix(f"{tmp_path}/").split(": ")[0] for line in str(raised.value).splitlines()]
    assert places == ["car.yaml:1", "car.yaml:1", "car.yaml:3", "car.yaml:4", "car.yaml:5", "--pair"]


def test_parts_that_are_right_are_there_beside_wrong_ones(tmp_path: Path) -> None:
    loaded = read(tmp_path, "name: x\nengine: {}\nwheels: [{size: 1}, {size: big}]\n")
    assert loaded.value is None
    assert loaded.parts == {"wheels.0": Wheel(1)}


def test_merge_keys_and_aliases(tmp_path: Path) -> None:
    text = "name: x\nengine: &e {power: 1, fuel: diesel}\nextra: {a: {<<: *e, power: 2}}\n"
    assert read(tmp_path, text).whole().extra == {"a": {"power": 2, "fuel": "diesel"}}


def test_missing_file(tmp_path: Path) -> None:
    (mistake,) = load(tmp_path / "none.yaml", Car).mistakes
    assert str(mistake) == f"{tmp_path}/none.yaml: cannot be read: No such file or directory"


def test_folder_for_a_file(tmp_path: Path) -> None:
    (mistake,) = load(tmp_path, Car).mistakes
    assert str(mistake) == f"{tmp_path}: cannot be read: Is a directory"


def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "car.yaml"
    path.write_bytes(b"name: x\ntags: [caf\xe9]\n")
    (mistake,) = load(path, Car).mistakes
    assert str(mistake) == f"{path}:2: not UTF-8 text"


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    [
        "1e-6",
        "yes",
        "null",
        "~",
        "1_000",
        "0x1",
        "1:30",
        "2024-01-01",
        "=",
        "<<",
        "- a",
        "a: b",
        "#",
        "'",
        '"',
        "!x",
        "&a",
        "\x85",
    ]
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(name=WORDS, extra=st.dictionaries(WORDS, WORDS | st.dictionaries(WORDS, PLAIN)), power=st.floats(1e-300, 500))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, name: str, extra: dict[str, Any], power: float
) -> None:
    car = Car(name=name, engine=Engine(power=power), tags=["a"], extra=extra)
    assert read(tmp_path_factory.getbasetemp(), to_yaml(car)).whole() == car
