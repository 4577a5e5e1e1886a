"""Other ways to write a gold answer that surely keep its value; each rule yields nothing where it does not apply."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction

INTEGER = re.compile(r"-?\d+")
DECIMAL = re.compile(r"(-?)(\d*)\.(\d+)")
FRACTION = re.compile(r"(-?)\\[dt]?frac(?:\{(\d+)\}|\s*(\d))\s*(?:\{(\d+)\}|(\d))")
ROOT = re.compile(r"(-?)(\d*)\s*\\sqrt\{?(\d+)\}?")
MULTIPLE = re.compile(r"(\d+)\s*\\pi")
POLYNOMIAL = re.compile(r"[-+ 0-9a-zR^]*[a-zR][-+ 0-9a-zR^]*")
SUM = re.compile(r"[-+ 0-9]*(\d+\s*\\(?:pi|sqrt\{\d+\}))[-+ 0-9]*")
BASED = re.compile(r"(\d+)_\{?(\d)\}?")
DEGREES = re.compile(r"(\d+)\^\\circ")
MONEY = re.compile(r"\\\$([\d,\\!.]+)")
NAMED = re.compile(r"([a-z]) ?= ?(.+)")
MATRIX = re.compile(r"\\begin\{pmatrix\}(.+)\\end\{pmatrix\}")
TEXT = re.compile(r"\\text\{([A-Za-z]{2,})\}")
CHOICE = re.compile(r"\\text\{\(([A-E])\)\}")
UNIT = re.compile(r"([\d.]+)\s*\\(?:mbox|text)\{ ?([a-z ]+)\}(\^2)?")
THOUSANDS = re.compile(r"\d{1,3}((,|,\\! ?)\d{3})+")
BRACKETS = re.compile(r"(?:\\left)?([(\[])(.+?)(?:\\right)?([)\]])")


def entries(gold: str) -> tuple[str, list[str], str] | None:
    """Opening bracket, entries and closing bracket of one tuple or interval; None of anything else."""
    found = BRACKETS.fullmatch(gold.strip())
    if found is None or any(char in found[2] for char in "()[]"):
        return None
    parts = [part.strip() for part in found[2].split(",")]
    return (found[1], parts, found[3]) if len(parts) > 1 else None


def is_interval(gold: str) -> bool:
    """Whether it can be nothing but an interval: two entries, and a square bracket or an infinite end."""
    found = entries(gold)
    return found is not None and len(found[1]) == 2 and (found[0] + found[2] != "()" or "infty" in gold)


def listed(gold: str) -> list[str]:
    """The items of a plain list of integers such as `3, 5, 7`; empty of anything else."""
    parts = [part.strip() for part in gold.split(",")]
    plain = all(INTEGER.fullmatch(part) for part in parts)
    return parts if len(parts) > 1 and plain and not THOUSANDS.fullmatch(gold) else []


def fraction_of(gold: str) -> Fraction | None:
    """The value of one plain fraction."""
    found = FRACTION.fullmatch(gold)
    if found is None:
        return None
    return Fraction(int(found[2] or found[3]), int(found[4] or found[5])) * (-1 if found[1] else 1)


def terms(gold: str) -> list[str]:
    """The signed terms of a plain sum such as `x^3+3x-6` or `6 - 5i`; empty of anything else."""
    if not (POLYNOMIAL.fullmatch(gold) or SUM.fullmatch(gold)):
        return []
    found = re.findall(r"[-+]?[^-+]+", gold.replace(" ", ""))
    return found if len(found) > 1 else []


def joined(parts: list[str]) -> str:
    """A sum of signed terms."""
    return "".join(part if part[0] in "+-" else f"+{part}" for part in parts).removeprefix("+")


def decimal_of(value: Fraction) -> str | None:
    """The value as a terminating decimal."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    digits = next((n for n in range(20) if (value * 10**n).denominator == 1), 0)
    return f"{float(value):.{digits}f}" if rest == 1 and 0 < digits < 12 else None


def frames(gold: str) -> Iterator[tuple[str, str]]:
    """Whole completions that say the gold; (class, completion)."""
    yield "as it is", f"\\boxed{{{gold}}}"
    yield "sentence", f"Adding both parts, the answer is $\\boxed{{{gold}}}$."
    yield "display", f"So we get\n\\[\\boxed{{{gold}}}\\]\n"
    yield "bold heading", f"**Final Answer**\n\n\\boxed{{{gold}}}"
    if "$" not in gold:
        yield "dollars inside", f"\\boxed{{${gold}$}}"
    yield "phrase", f"The final answer is ${gold}$."
    yield "chinese heading", f"答案：$\\boxed{{{gold}}}$"
    yield "chinese phrase", f"因此，最终答案是 ${gold}$。"
    yield "repeated box", f"We find \\boxed{{{gold}}}. To sum up, the answer is \\boxed{{{gold}}}."
    if INTEGER.fullmatch(gold):
        yield "hashes", f"That is all.\n#### {gold}"
        yield "answer tags", f"<answer>{gold}</answer>"


def spellings(gold: str) -> Iterator[tuple[str, str]]:
    """Other LaTeX for the same formula, of any kind."""
    if r"\frac" in gold:
        yield "dfrac", gold.replace(r"\frac", r"\dfrac")
        yield "tfrac", gold.replace(r"\frac", r"\tfrac")
    if r"\dfrac" in gold:
        yield "frac", gold.replace(r"\dfrac", r"\frac")
    if r"\left" in gold:
        yield "no left right", gold.replace(r"\left", "").replace(r"\right", "")
    elif entries(gold):
        yield "left right", f"\\left{gold[:-1]}\\right{gold[-1]}"
    if r"\text" not in gold and r"\mbox" not in gold:
        yield "displaystyle", f"\\displaystyle {gold}"
        if not THOUSANDS.fullmatch(gold):
            yield "thin spaces", re.sub(r"(?<=[-+=,])(?![!\\ ])", r"\\,", gold)
    if " " in gold and not re.search(r"\\[a-z]+ [a-zA-Z]|\\(text|mbox)", gold):
        yield "no spaces", gold.replace(" ", "")
    if re.fullmatch(r"[^a-z]*-[^a-z]*", gold):
        yield "unicode minus", gold.replace("-", "−")
    for latex, sign in ((r"\pi", "π"), (r"\infty", "∞"), (r"\cup", "∪"), (r"\pm", "±")):
        if re.search(re.escape(latex) + r"(?![a-z])", gold):
            yield f"unicode {sign}", gold.replace(f"{latex} ", sign).replace(latex, sign)


def integers(gold: str) -> Iterator[tuple[str, str]]:
    """Of integers alone."""
    if not INTEGER.fullmatch(gold):
        return
    yield "trailing zeros", f"{gold}.00"
    yield "full stop", f"{gold}."
    yield "assignment", f"x = {gold}"
    yield "in text", f"\\text{{{gold}}}"
    yield "unreduced fraction", f"\\frac{{{3 * int(gold)}}}{{3}}"
    yield "word dollars", f"{gold} \\text{{ dollars}}"
    if len(gold.lstrip("-")) > 3:
        for name, comma in (("comma", ","), ("braced comma", "{,}"), ("thin space", r"\,"), ("comma bang", r",\!")):
            yield f"thousands by {name}", f"{int(gold):,}".replace(",", comma)
    if gold.endswith("000"):
        digits = gold.rstrip("0")
        yield "scientific", f"{digits} \\times 10^{{{len(gold) - len(digits)}}}"


def numbers(gold: str) -> Iterator[tuple[str, str]]:
    """Of fractions, mixed numbers and decimals."""
    value = fraction_of(gold)
    if value is not None:
        top, bottom = abs(value.numerator), value.denominator
        yield "slash", f"{value.numerator}/{bottom}"
        yield "doubled", f"\\frac{{{2 * value.numerator}}}{{{2 * bottom}}}"
        if value < 0:
            yield "minus above", f"\\frac{{{-top}}}{{{bottom}}}"
        if decimal_of(value):
            yield "fraction to decimal", str(decimal_of(value))
        if top > bottom > 1:
            yield "mixed", f"{'-' if value < 0 else ''}{top // bottom}\\frac{{{top % bottom}}}{{{bottom}}}"
    if (mixed := re.fullmatch(r"(\d+) ?(\\frac.+)", gold)) and (part := fraction_of(mixed[2])) is not None:
        whole = int(mixed[1]) + part
        yield "improper", f"\\frac{{{whole.numerator}}}{{{whole.denominator}}}"
    if DECIMAL.fullmatch(gold):
        exact = Fraction(gold)
        yield "decimal to fraction", f"\\frac{{{exact.numerator}}}{{{exact.denominator}}}"
        yield "decimal with more zeros", f"{gold}0"
        yield "percent", f"{decimal_of(exact * 100) or exact * 100}\\%"
        if gold.startswith("."):
            yield "leading zero", f"0{gold}"
    if THOUSANDS.fullmatch(gold):
        yield "no thousands", re.sub(r"\D", "", gold)


def expressions(gold: str) -> Iterator[tuple[str, str]]:
    """Of sums, roots, multiples of pi and what has a plus-minus sign."""
    if parts := terms(gold):
        yield "terms turned round", joined(parts[::-1])
        yield "terms rotated", joined(parts[1:] + parts[:1])
        yield (
            "term in brackets",
            f"({joined(parts[:1])}){joined([*parts[1:]]) if parts[1][0] == '-' else '+' + joined(parts[1:])}",
        )
    if found := ROOT.fullmatch(gold):
        sign, factor, under = found[1], int(found[2] or 1), int(found[3])
        yield "factor under the root", f"{sign}\\sqrt{{{factor**2 * under}}}"
        yield "power one half", f"{sign}{factor} \\cdot {under}^{{1/2}}"
        if factor > 1:
            yield "root first", f"{sign}\\sqrt{{{under}}} \\cdot {factor}"
    if found := MULTIPLE.fullmatch(gold):
        yield "pi first", f"\\pi \\cdot {found[1]}"
        yield "star", f"{found[1]}*\\pi"
    if (found := re.fullmatch(r"(.+)\\pm (.+)", gold)) and "{" not in found[1]:
        yield "plus minus as a list", f"{found[1]}+{found[2]}, {found[1]}-{found[2]}"


def collections(gold: str) -> Iterator[tuple[str, str]]:
    """Of lists, tuples, intervals and matrices."""
    if items := listed(gold):
        yield "list turned round", ", ".join(items[::-1])
        yield "list with and", r" \text{ and } ".join([", ".join(items[:-1]), items[-1]])
        yield "list as a set", f"\\{{{', '.join(items)}\\}}"
    if found := entries(gold):
        opening, parts, closing = found
        yield "other spacing", f"{opening} {' ,  '.join(parts)} {closing}"
        if is_interval(gold):
            low, high = parts
            below, above = ("<", r"\le")[opening == "["], ("<", r"\le")[closing == "]"]
            ends = [f"{low} {below} " if "infty" not in low else "", f" {above} {high}" if "infty" not in high else ""]
            yield "interval as inequality", f"{ends[0]}x{ends[1]}"
            yield "membership", f"x \\in {gold}"
        elif r"\pi" not in gold:
            yield "fullwidth brackets", f"（{'，'.join(parts)}）"
    if found := re.fullmatch(r"(\(.+\)) \\cup (\(.+\))", gold):
        yield "union turned round", f"{found[2]} \\cup {found[1]}"
    if found := MATRIX.fullmatch(gold):
        yield "square brackets", gold.replace("pmatrix", "bmatrix")
        yield "matrix slash to frac", re.sub(r"(\d+)/(\d+)", r"\\frac{\1}{\2}", gold)


def labels(gold: str) -> Iterator[tuple[str, str]]:
    """Of bases, angles, money, units, names and texts."""
    if found := BASED.fullmatch(gold):
        yield "braced base", f"{found[1]}_{{{found[2]}}}"
        yield "base after brackets", f"({found[1]})_{{{found[2]}}}"
        yield "base in text", f"{found[1]}_{{\\text{{{found[2]}}}}}"
    if found := DEGREES.fullmatch(gold):
        yield "degree sign", f"{found[1]}°"
        yield "degrees in text", f"{found[1]}\\text{{ degrees}}"
        yield "degree command", f"{found[1]}\\degree"
        yield "braced degrees", f"{found[1]}^{{\\circ}}"
    if found := MONEY.fullmatch(gold):
        plain = re.sub(r"[^\d.]", "", found[1])
        yield "no dollar sign", plain
        yield "dollars in words", f"{plain}\\text{{ dollars}}"
        yield "no thousands in money", f"\\${plain}"
    if found := UNIT.fullmatch(gold):
        yield "unit in text", f"{found[1]}\\text{{ {found[2]}}}{found[3] or ''}"
        yield "unit in mathrm", f"{found[1]}\\ \\mathrm{{{found[2]}}}{found[3] or ''}"
    if (found := NAMED.fullmatch(gold)) and len(found[2]) < 3:
        yield "no name", found[2]
    if found := re.fullmatch(r"y = (-?\d*)x(?: \+ (\d+))?", gold):
        yield "line turned round", f"y = {found[2]}+{found[1]}x" if found[2] else f"y={found[1]} x"
        yield "line as an equation", f"y - ({found[1]}x) = {found[2] or 0}"
    if found := TEXT.fullmatch(gold):
        yield "bare word", found[1]
        yield "mathrm word", f"\\mathrm{{{found[1]}}}"
        yield "textbf word", f"\\textbf{{{found[1]}}}"
    if found := CHOICE.fullmatch(gold):
        yield "bare letter", found[1]
        yield "bold letter", f"\\textbf{{({found[1]})}}"
        yield "letter in brackets", f"({found[1]})"


RULES: list[Callable[[str], Iterator[tuple[str, str]]]] = [
    spellings,
    integers,
    numbers,
    expressions,
    collections,
    labels,
]


def restyled(gold: str) -> list[tuple[str, str]]:
    """All (class, completion) that say the value of this gold, each completion once."""
    found = dict[str, str]()
    for name, completion in frames(gold):
        found.setdefault(completion, name)
    for rule in RULES:
        for name, other in rule(gold):
            found.setdefault(f"The answer is $\\boxed{{{other}}}$.", name)
    return [(name, completion) for completion, name in found.items()]
