"""Units of measure: whether words after a number are a unit, and whether two units can mean the same amount."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

Unit = tuple[str, Fraction]
"""The dimension, and the factor: how many base units of the dimension are one of this unit."""

_LENGTH = {"m": 1, "meter": 1, "metre": 1, "cm": "0.01", "centimeter": "0.01", "centimetre": "0.01", "mm": "0.001",
           "millimeter": "0.001", "millimetre": "0.001", "km": 1000, "kilometer": 1000, "kilometre": 1000,
           "dm": "0.1", "in": "0.0254",
           "inch": "0.0254", "inches": "0.0254", "ft": "0.3048", "foot": "0.3048", "feet": "0.3048", "yd": "0.9144",
           "yard": "0.9144", "mi": "1609.344", "mile": "1609.344", "nm": "1e-9", "米": 1, "厘米": "0.01",
           "千米": 1000, "公里": 1000,
           "毫米": "0.001", "分米": "0.1"}  # fmt: skip
_TIME = {"s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hr": 3600, "hour": 3600, "day": 86400,
         "week": 604800, "ms": "0.001", "秒": 1, "分钟": 60, "小时": 3600, "天": 86400}  # fmt: skip
_MASS = {"g": 1, "gram": 1, "kg": 1000, "kilogram": 1000, "mg": "0.001", "milligram": "0.001", "lb": "453.59237",
         "pound": "453.59237", "oz": "28.349523125", "ounce": "28.349523125", "ton": 1000000, "tonne": 1000000, "克": 1,
         "千克": 1000, "公斤": 1000, "吨": 1000000}  # fmt: skip
_VOLUME = {
    "l": 1,
    "liter": 1,
    "litre": 1,
    "ml": "0.001",
    "milliliter": "0.001",
    "millilitre": "0.001",
    "升": 1,
    "毫升": "0.001",
}
_MONEY = {"dollar": 1, "usd": 1, "cent": "0.01", "$": 1, "us dollar": 1}
_ANGLE = {"degree": 1, "deg": 1, "度": 1}
_FREE = {
    "€": "euro", "euro": "euro", "eur": "euro", "£": "gbp", "gbp": "gbp", "¥": "yuan", "yuan": "yuan",
    "rmb": "yuan", "元": "yuan",
    "rupee": "rupee", "rs": "rupee", "₹": "rupee", "inr": "rupee", "n": "newton", "newton": "newton", "j": "joule",
    "joule": "joule", "w": "watt", "watt": "watt",
    "v": "volt", "volt": "volt", "a": "ampere", "amp": "ampere", "ampere": "ampere", "k": "kelvin",
    "kelvin": "kelvin", "hz": "hertz",
    "hertz": "hertz", "pa": "pascal", "pascal": "pascal", "mol": "mole", "mole": "mole", "rad": "radian",
    "radian": "radian",
    "unit": "unit", "month": "month", "year": "year", "am": "am", "pm": "pm", "mph": "mile/hour",
}  # fmt: skip
"""Units that are never converted: each is a dimension of its own."""
TABLE: dict[str, Unit] = {
    word: (dimension, Fraction(str(factor)))
    for dimension, words in (
        ("length", _LENGTH), ("time", _TIME), ("mass", _MASS), ("volume", _VOLUME), ("money", _MONEY), ("angle", _ANGLE)
    )
    for word, factor in words.items()
} | {word: (name, Fraction(1)) for word, name in _FREE.items()}  # fmt: skip
TABLE["mph"] = ("length/time", Fraction("1609.344") / 3600)
TABLE["kph"] = TABLE["kmh"] = ("length/time", Fraction(1000, 3600))
_PREFIXES: dict[str, int | Fraction] = {
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "m": Fraction(1, 10**3),
    "c": Fraction(1, 100),
    "n": Fraction(1, 10**9),
}
_PREFIXED = {
    "W": "watt",
    "J": "joule",
    "N": "newton",
    "V": "volt",
    "A": "ampere",
    "Pa": "pascal",
    "Hz": "hertz",
    "mol": "mole",
}
SYMBOLS: dict[str, Unit] = {
    prefix + symbol: (name, Fraction(factor))
    for symbol, name in _PREFIXED.items()
    for prefix, factor in _PREFIXES.items()
} | {"degC": ("celsius", Fraction(1)), "degF": ("fahrenheit", Fraction(1)), "celsius": ("celsius", Fraction(1))}
LETTERS = frozenset({"m", "s", "g", "h", "L", "N", "J", "W", "V", "A", "K"})
"""Units of one letter; the same letter may be a variable."""


@lru_cache(maxsize=4096)
def unit_of(text: str) -> Unit | None:
    """The unit that `text` names (`km/h`, `square feet`, `m s^-2`), or None for a thing that is counted."""
    for written, symbol in (("celsius", "degC"), ("fahrenheit", "degF")):
        text = text.replace(f"degrees {written.title()}", symbol).replace(f"degree {written.title()}", symbol)
    powers: dict[str, int] = {}
    factor = Fraction(1)
    sides = text.replace(" per ", "/").replace("^", " ^").split("/")
    for index, words in enumerate(sides):
        units = _units(words)
        if units is None:
            return None
        for name, scale, power in units:
            # What follows a slash is divided by.
            signed_power = -power if index else power
            powers[name] = powers.get(name, 0) + signed_power
            factor *= scale**signed_power
    return _canonical(powers, factor)


def _units(text: str) -> list[tuple[str, Fraction, int]] | None:
    """The dimension, factor and power of every unit in a product. None if one of them is unknown."""
    units: list[tuple[str, Fraction, int]] = []
    power = 1
    for word in text.split():
        if word.startswith("^"):
            if not units:
                return None
            name, factor, old_power = units.pop()
            units.append((name, factor, old_power * int(word[1:])))
        elif word in ("squared", "cubed") and units:
            name, factor, _ = units.pop()
            units.append((name, factor, 2 if word == "squared" else 3))
        elif word in ("square", "sq", "cubic"):
            power = 3 if word == "cubic" else 2
        else:
            unit = single(word)
            if unit is None:
                return None
            units.append((*unit, power))
            power = 1
    return units or None


def _canonical(powers: dict[str, int], factor: Fraction) -> Unit:
    """The unit with compound names split into their parts, and volumes written as cubed lengths."""
    flat: dict[str, int] = {}
    for name, power in powers.items():
        for index, part in enumerate(name.split("/")):
            base, base_power = (part[:-1], int(part[-1])) if part[-1].isdigit() else (part, 1)
            flat[base] = flat.get(base, 0) + base_power * (power if index == 0 else -power)
    if "volume" in flat:
        power = flat.pop("volume")
        flat["length"] = flat.get("length", 0) + 3 * power
        factor *= Fraction(1, 1000) ** power  # a litre in cubic metres
    return " ".join(f"{name}^{power}" for name, power in sorted(flat.items()) if power), factor


def single(word: str) -> Unit | None:
    """The unit that one word names, in the singular or plural.

    Upper and lower case of SI symbols differ: mW and MW, K and k.
    """
    if word in SYMBOLS:
        return SYMBOLS[word]
    for prefix, power in (("平方", 2), ("立方", 3)):
        inner = single(word.removeprefix(prefix)) if word.startswith(prefix) else None
        if inner:
            return f"{inner[0]}{power}", inner[1] ** power
    lower = word.lower().rstrip(".")
    # The wrong case of a symbol: 5 M is not five metres.
    if word in ("M", "S", "G", "H", "n", "j", "w", "v", "a", "k"):
        return None
    return TABLE.get(lower) or (TABLE.get(lower[:-1]) if lower.endswith("s") and len(lower) > 2 else None)


def same_thing(one: str, other: str) -> bool:
    """Whether two names of what is counted are the same, apart from singular or plural and articles."""
    return _stem(one) == _stem(other)


def _stem(text: str) -> str:
    words = [
        word for word in text.lower().replace(".", " ").split() if word not in ("the", "a", "an", "of", "total", "in")
    ]
    return " ".join(_singular(word) for word in words)


def _singular(word: str) -> str:
    if word in ("people", "persons"):
        return "person"
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ses", "xes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word
