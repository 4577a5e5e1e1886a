"""Removes what only changes the looks of an answer: unicode forms, LaTeX spacing, math delimiters, emphasis."""

from __future__ import annotations

import re
from fractions import Fraction

SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n", strict=True))
SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ", "0123456789+-()n", strict=True))
FRACTIONS = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5),
    "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅐": (1, 7), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8),
    "⅑": (1, 9), "⅒": (1, 10),
}  # fmt: skip
GREEK = dict(
    zip(
        "αβγδεζηθικλμνξρστυφχψωΓΔΘΛΞΣΦΨΩ",
        [
            "alpha",
            "beta",
            "gamma",
            "delta",
            "epsilon",
            "zeta",
            "eta",
            "theta",
            "iota",
            "kappa",
            "lambda",
            "mu",
            "nu",
            "xi",
            "rho",
            "sigma",
            "tau",
            "upsilon",
            "phi",
            "chi",
            "psi",
            "omega",
            "Gamma",
            "Delta",
            "Theta",
            "Lambda",
            "Xi",
            "Sigma",
            "Phi",
            "Psi",
            "Omega",
        ],
        strict=True,
    )
)
SIGNS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "×": r"\times ", "✕": r"\times ", "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∙": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "∓": r"\mp ", "∞": r"\infty ", "π": r"\pi ", "𝜋": r"\pi ",
    "°": r"^\circ ",
    "º": r"^\circ ", "≤": r"\le ", "⩽": r"\le ", "≦": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≧": r"\ge ", "≠": r"\ne ",
    "≈": r"\approx ", "≃": r"\approx ", "≡": r"\equiv ", "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap ", "∖": r"\setminus ",
    "∅": r"\emptyset ", "Ø": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}", "√": r"\sqrt ", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]", "⌊": r"\lfloor ", "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ", "⟨": r"\langle ", "⟩": r"\rangle ", "∠": r"\angle ", "∧": r"\land ", "∨": r"\lor ", "→": r"\to ",
    "⇒": r"\Rightarrow ", "¢": r"\text{ cents}", "℃": r"\text{ degC}", "℉": r"\text{ degF}",
    "⁄": "/", "∕": "/",
    "∣": "|", "｜": "|", "∶": ":", "︰": ":", "˸": ":", "′": "'", "’": "'", "‘": "'", "“": '"', "”": '"',
    "、": ",", "。": ".", "【": "[", "】": "]", "…": r"\ldots ", "⋯": r"\ldots ", "∆": r"\Delta ", "Δ": r"\Delta ",
    "Ω": r"\Omega ", "µ": r"\mu ", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u3000": " ", "\ufe0f": "",
    "\u200b": "", "\u200c": "", "\u200d": "", "\ufeff": "", "\u2061": "", "\u2062": "", "〈": r"\langle ",
    "〉": r"\rangle ",
}  # fmt: skip
TABLE = str.maketrans(
    {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    | {sign: rf"\{name} " for sign, name in GREEK.items()}
    | {sign: rf"\frac{{{over}}}{{{under}}}" for sign, (over, under) in FRACTIONS.items()}
    | SIGNS
)
SCRIPTED = re.compile(f"([{''.join(SUPERSCRIPTS)}]+)|([{''.join(SUBSCRIPTS)}]+)")
INVISIBLE = re.compile(
    r"\\(?:left|right|middle|displaystyle|textstyle|scriptstyle|"
    r"bigl?|bigr?|Bigl?|Bigr?|biggl?|biggr?|Biggl?|Biggr?|limits|"
    r"nolimits|nonumber|hfill|noindent|centering|rm|bf|it|sf)(?![a-zA-Z])\.?"
    r"|(?<!\\)\\(?:[,;:! /]|q?quad(?![a-zA-Z])|thinspace|medspace|thickspace|enspace|\n)"
    r"|(?<!\\)~|\\[hv]space\*?\{[^{}]*\}"
)
THOUSANDS = re.compile(r"(?<=\d)(?:\\[,!:; ]|\{,\}|,\\!\s?|\\,|\{\\,\}|~)(?=\d{3}(?!\d))")
SPACED_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?: \d{3})+(?![\d ])")
REPEATING = re.compile(r"(?<!\d)(\d*)\.(\d*)(?:\\(?:overline|bar)\s?\{(\d{1,40})\}|\((\d{1,40})\)(?!\d))")
DOTTED = re.compile(r"(?<!\d)(\d*)\.(\d*)\\dot\s?\{?(\d)\}?(?:(\d*)\\dot\s?\{?(\d)\}?)?")
ELLIPSIS = re.compile(r"(?<!\d)(\d{0,40})\.(?=\d{3,80}(?:\.|\\))(\d*?)(\d{1,12}?)\3{2,}(?:\.{2,3}|\\(?:ld|cd|d)ots)")
HALVES_OF_DAY = re.compile(r"\b([apAP])\.\s?[mM]\.?(?![a-zA-Z])")
CELSIUS = re.compile(r"\^\s?\{?\s?\\circ\s?\}?\s?(?:\\(?:text|mathrm|textrm)\s?\{\s?)?([CF])(?![a-zA-Z])\s?\}?")
SIGNED = re.compile(r"\{([-+])\}")
FRENCH = re.compile(r"([\[\]])([^\[\]]*?[,;][^\[\]]*?)([\[\]])")
CURRENCY = re.compile(r"(?:\\text\s?\{\s?)?(?<![A-Za-z])(US\\?\$|USD|EUR|GBP|RMB|CNY)\s?\}?\s?(?=\d)")
CURRENCIES = {"USD": r"\$", "EUR": "€", "GBP": "£", "RMB": "¥", "CNY": "¥"}
MINUTES = re.compile(
    r"(\d+)\s?\^\s?\{?\s?\\circ\s?\}?\s?(\d+(?:\.\d+)?)\s?(?:'|\^\s?\{?\\prime\}?)"
    r"(?:\s?(\d+(?:\.\d+)?)\s?(?:''|\"|\^\s?\{?\\prime\\prime\}?))?"
)
RUPEES = re.compile(r"\bRs\.?\s?(?=\d)")
DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]|^\\\\[(\[]|\\\\[)\]]$|(?<!\\)\$\$?")
ROW_SPACING = re.compile(r"\\\\\s?\[\s?-?[\d.]+\s?(?:pt|em|ex|mm|cm|in|\\\w+)\s?\]")
EMPHASIS = re.compile(r"^(\*{1,3}|__)(?=\S)(.*?\S)\1$", re.DOTALL)
CODE = re.compile(r"^`+([^`]*)`+$")


def clean(text: str) -> str:
    """`text` without formatting; money keeps its sign as `\\$`.

    Takes time linear in the length; `text` should be short.
    """
    # Most answers are a bare number or letter.
    if text.isascii() and text.isalnum():
        return text
    text = text.strip()
    if not text.isascii():
        text = SCRIPTED.sub(_latex_script, text).translate(TABLE)
    # A dollar sign that was escaped twice.
    text = text.replace("\\\\$", "\\$") if "\\\\$" in text else text
    text = ROW_SPACING.sub(r"\\\\", _without_emphasis(text)).replace(r"\colon", ":")
    # THOUSANDS before INVISIBLE, which would make a space of the `\,` in `1\,000`.
    text = _without_delimiters(THOUSANDS.sub("", text))
    text = RUPEES.sub("₹", INVISIBLE.sub(" ", text))
    text = CURRENCY.sub(lambda match: CURRENCIES.get(match[1], r"\$"), text)
    text = MINUTES.sub(lambda match: rf"({match[1]}+{match[2]}/60+{match[3] or 0}/3600)^\circ", text)
    text = SIGNED.sub(r"\1", CELSIUS.sub(r"\\text{ deg\1}", text))
    if "aligned" in text:  # there an ampersand only marks a column
        text = text.replace("&", " ")
    if "." in text:
        text = ELLIPSIS.sub(_repeating_tail, DOTTED.sub(_dotted, REPEATING.sub(_repeating, text)))
    text = " ".join(HALVES_OF_DAY.sub(r"\1m", text).split())
    text = SPACED_THOUSANDS.sub(lambda match: match.group().replace(" ", ""), text)
    # Only where square brackets do not pair up: most intervals are not written in the French way.
    if text.count("[") != text.count("]") or text.startswith("]"):
        text = FRENCH.sub(_standard_interval, text)
    return _without_end(_without_emphasis(text))


def _without_emphasis(text: str) -> str:
    match = EMPHASIS.match(text) or CODE.match(text)
    while match:
        text = match.group(match.lastindex or 1).strip()
        match = EMPHASIS.match(text) or CODE.match(text)
    return text


def _without_end(text: str) -> str:
    """`text` without the punctuation that ends a sentence."""
    previous = None
    while text != previous:  # removing one mark may uncover another
        previous = text
        text = text.rstrip(" ,;:").removesuffix(r"\\").rstrip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1]
    return text.lstrip(" :,;")


def _without_delimiters(text: str) -> str:
    """`text` without the dollar signs that delimit math; a dollar sign before an amount becomes `\\$`."""
    dollar_signs = len(re.findall(r"(?<!\\)\$", text))
    # An odd number of dollar signs: one of them is money, and does not delimit math.
    if dollar_signs % 2 and re.search(r"(?<!\\)\$\s?[\d.]", text):
        text = re.sub(r"(?<!\\)\$(?=\s?[\d.])", r"\\$", text, count=1)
    return DELIMITERS.sub(" ", text)


def _standard_interval(match: re.Match[str]) -> str:
    """`]1,2[` as `(1,2)`: in France an open interval is written with reversed brackets."""
    opening, inside, closing = match.groups()
    return f"{'(' if opening == ']' else '['}{inside}{')' if closing == '[' else ']'}"


def _latex_script(match: re.Match[str]) -> str:
    if match.group(1):
        return "^{" + "".join(SUPERSCRIPTS[char] for char in match.group(1)) + "}"
    return "_{" + "".join(SUBSCRIPTS[char] for char in match.group(2)) + "}"


def _repeating(match: re.Match[str]) -> str:
    whole, start, period = match.group(1), match.group(2), match.group(3) or match.group(4)
    return _fraction(whole, start, period)


def _repeating_tail(match: re.Match[str]) -> str:
    return _fraction(match.group(1), match.group(2), match.group(3))


def _dotted(match: re.Match[str]) -> str:
    whole, start, first, between, last = match.groups()
    return _fraction(whole, start, first + (between or "") + (last or ""))


def _fraction(whole: str, start: str, period: str) -> str:
    """The repeating decimal `whole.start(period)` as a LaTeX fraction."""
    scale = 10 ** len(start)
    # 0.ab(cd) is ab/100 + cd/9900.
    value = Fraction(int((whole + start) or 0), scale) + Fraction(int(period), scale * (10 ** len(period) - 1))
    return rf"(\frac{{{value.numerator}}}{{{value.denominator}}})"
