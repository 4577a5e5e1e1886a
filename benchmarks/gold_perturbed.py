"""Changes of a gold answer that surely change its value; each rule yields nothing where it does not apply."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from gold_restyled import (
    BASED,
    CHOICE,
    DECIMAL,
    DEGREES,
    INTEGER,
    MATRIX,
    MONEY,
    MULTIPLE,
    ROOT,
    TEXT,
    THOUSANDS,
    UNIT,
    entries,
    fraction_of,
    is_interval,
    joined,
    listed,
    terms,
)


def bumped(text: str, place: int = 0) -> str:
    """`text` with its number at this place, counted from the left, one greater; a fraction's part too."""
    found = list(re.finditer(r"\d+", text))
    if not found:
        return text
    one = found[place % len(found)]
    return f"{text[: one.start()]}{int(one[0]) + 1:0{len(one[0])}d}{text[one.end() :]}"


def integers(gold: str) -> Iterator[tuple[str, str]]:
    """Other integers, and what is no integer at all."""
    if not INTEGER.fullmatch(gold):
        return
    value = int(gold)
    yield "off by one", str(value + 1)
    yield "one less", str(value - 1)
    yield "half more", f"{value}.5"
    yield "divided", f"\\frac{{{value}}}{{{abs(value) + 2}}}" if value else r"\frac{1}{2}"
    yield "a power of ten", f"{value}0" if value else "10"
    yield "a letter more", f"{value}x" if value else "x"
    if value:
        yield "sign", str(-value)
    if abs(value) > 1:
        yield "squared", f"{abs(value)}^2"
        yield "root", f"\\sqrt{{{abs(value)}}}"
    digits = gold.lstrip("-")
    if len(digits) > 1 and digits[-1] != digits[-2]:
        yield "digits swapped", f"{gold[:-2]}{gold[-1]}{gold[-2]}"
    if len(digits) > 1:
        yield "a digit dropped", gold[:-1]


def numbers(gold: str) -> Iterator[tuple[str, str]]:
    """Of fractions, decimals and numbers with thousands."""
    value = fraction_of(gold)
    if value is not None:
        top, bottom = value.numerator, value.denominator
        yield "numerator", f"\\frac{{{top + 1}}}{{{bottom}}}"
        yield "denominator", f"\\frac{{{top}}}{{{bottom + 1}}}"
        yield "fraction sign", f"\\frac{{{-top}}}{{{bottom}}}"
        if abs(top) != bottom:
            yield "upside down", f"\\frac{{{bottom}}}{{{top}}}"
        yield "only the numerator", str(top) if bottom > 1 else str(top + 1)
        yield "a little more", f"{float(value) + 0.01:.4f}"
    if DECIMAL.fullmatch(gold):
        yield "last digit", f"{gold[:-1]}{(int(gold[-1]) + 1) % 10}"
        yield "decimal point moved", f"{float(gold) * 10:.7f}"
        yield "decimal sign", f"-{gold}"
    if THOUSANDS.fullmatch(gold):
        yield "a thousands digit", bumped(gold, -1) if not gold.endswith("999") else bumped(gold, 0)


def expressions(gold: str) -> Iterator[tuple[str, str]]:
    """Of sums, roots, multiples of pi and what has a plus-minus sign."""
    if parts := terms(gold):
        last = parts[-1]
        flipped = last[1:] if last[0] == "-" else f"-{last.lstrip('+')}"
        yield "sign of a term", joined([*parts[:-1], flipped])
        yield "a term dropped", joined(parts[:-1])
        yield "a term more", f"{gold} + 1"
        if re.search(r"\d", gold):
            yield "a coefficient or exponent", bumped(gold, -1)
    if found := ROOT.fullmatch(gold):
        sign, factor, under = found[1], found[2], int(found[3])
        yield "radicand", f"{sign}{factor}\\sqrt{{{under + 1}}}"
        yield "no root", f"{sign}{int(factor or 1) * under}"
        yield "factor of a root", f"{sign}{int(factor or 1) + 1}\\sqrt{{{under}}}"
        yield "cube root", f"{sign}{factor}\\sqrt[3]{{{under}}}"
        yield "sign of a root", f"{'' if sign else '-'}{factor}\\sqrt{{{under}}}"
    if found := MULTIPLE.fullmatch(gold):
        yield "no pi", found[1]
        yield "pi squared", f"{found[1]}\\pi^2"
        yield "factor of pi", f"{int(found[1]) + 1}\\pi"
        yield "pi rounded to 22/7", f"{found[1]} \\cdot \\frac{{22}}{{7}}"
    if (found := re.fullmatch(r"(.+)\\pm (.+)", gold)) and "{" not in found[1]:
        yield "only plus", f"{found[1]}+{found[2]}"
        yield "only minus", f"{found[1]}-{found[2]}"
        yield "another root", f"{found[1]}\\pm {bumped(found[2], -1)}"


def collections(gold: str) -> Iterator[tuple[str, str]]:
    """Of lists, tuples, intervals, unions and matrices."""
    if items := listed(gold):
        yield "an item dropped", ", ".join(items[:-1])
        yield "an item more", f"{gold}, {max(map(int, items)) + 1}"
        yield "an item changed", ", ".join([*items[:-1], str(max(map(int, items)) + 1)])
    if found := entries(gold):
        opening, parts, closing = found
        if parts != parts[::-1] and "infty" not in gold:
            yield "entries turned round", f"{opening}{', '.join(parts[::-1])}{closing}"
        if any(re.fullmatch(r"-?\d+", part) for part in parts):
            place = next(n for n, part in enumerate(parts) if re.fullmatch(r"-?\d+", part))
            other = [*parts[:place], str(int(parts[place]) + 1), *parts[place + 1 :]]
            yield "an entry changed", f"{opening}{', '.join(other)}{closing}"
        if len(parts) > 2:
            yield "an entry dropped", f"{opening}{', '.join(parts[:-1])}{closing}"
        if is_interval(gold):
            yield from brackets(parts, opening, closing)
    if found := re.fullmatch(r"(\(.+\)) \\cup (\(.+\))", gold):
        yield "half of a union", found[1]
        yield "intersection", f"{found[1]} \\cap {found[2]}"
    if found := MATRIX.fullmatch(gold):
        yield "a matrix entry", bumped(gold, 0)
        if "-" in gold:
            yield "a matrix sign", gold.replace("-", "", 1)
        rows = [row.strip() for row in found[1].split(r"\\")]
        if rows[0] != rows[-1]:
            swapped = r" \\ ".join([rows[-1], *rows[1:-1], rows[0]])
            yield "matrix rows swapped", f"\\begin{{pmatrix}} {swapped} \\end{{pmatrix}}"


def brackets(parts: list[str], opening: str, closing: str) -> Iterator[tuple[str, str]]:
    """Another bracket at each finite end of an interval."""
    inside = ", ".join(parts)
    if "infty" not in parts[0]:
        yield "opening bracket", f"{'[' if opening == '(' else '('}{inside}{closing}"
    if "infty" not in parts[1]:
        yield "closing bracket", f"{opening}{inside}{']' if closing == ')' else ')'}"


def labels(gold: str) -> Iterator[tuple[str, str]]:
    """Of bases, angles, money, units, lines, words and choices."""
    if found := BASED.fullmatch(gold):
        yield "another base", f"{found[1]}_{{{int(found[2]) + 1}}}"
        yield "a digit of the base", f"{found[1][:-1]}{(int(found[1][-1]) + 1) % int(found[2])}_{{{found[2]}}}"
    if found := DEGREES.fullmatch(gold):
        yield "another angle", f"{int(found[1]) + 1}^\\circ"
        yield "complement", f"{360 - int(found[1])}^\\circ" if found[1] != "180" else r"0^\circ"
    if found := MONEY.fullmatch(gold):
        yield "another amount", f"\\${bumped(re.sub(r'[^0-9.]', '', found[1]))}"
        yield "cents for dollars", f"{re.sub(r'[^0-9.]', '', found[1])}\\text{{ cents}}"
    if found := UNIT.fullmatch(gold):
        yield "another measure", f"{bumped(found[1])}\\text{{ {found[2]}}}{found[3] or ''}"
    if r"\mbox{ cm}" in gold:
        yield "another unit", gold.replace("cm", "m")
    if found := re.fullmatch(r"y = (-?\d*)x(?: \+ (\d+))?", gold):
        yield "slope", f"y = {int(found[1]) + 1}x + {found[2] or 0}"
        yield "intercept", f"y = {found[1]}x + {int(found[2] or 0) + 1}"
        yield "x for y", f"x = {found[1]}y + {found[2] or 0}"
    if TEXT.fullmatch(gold):
        yield "another word", r"\text{neither}"
        yield "letters turned round", f"\\text{{{gold[-2:5:-1]}}}"
    if found := CHOICE.fullmatch(gold):
        other = "ABCDE"[("ABCDE".index(found[1]) + 1) % 5]
        yield "another choice", f"\\text{{({other})}}"
        yield "two choices", f"\\text{{({found[1]}), ({other})}}"


RULES: list[Callable[[str], Iterator[tuple[str, str]]]] = [integers, numbers, expressions, collections, labels]


def perturbed(gold: str) -> list[tuple[str, str]]:
    """All (class, completion) that say another value than this gold's, each completion once."""
    found = dict[str, str]()
    for rule in RULES:
        for name, other in rule(gold):
            assert other.replace(" ", "") != gold.replace(" ", ""), name
            found.setdefault(f"The answer is $\\boxed{{{other}}}$.", name)
    return [(name, completion) for completion, name in found.items()]
