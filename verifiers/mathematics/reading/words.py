"""Answers in words: no solution, all real numbers, yes and no, numbers, and the letters of choices."""

from __future__ import annotations

import re
from fractions import Fraction

NUMBERS = {
    word: value
    for value, word in enumerate(
        (
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
            "seventeen eighteen nineteen twenty"
        ).split()
    )
} | {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}  # fmt: skip
SCALES = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
    "百": 100, "千": 1000, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8,
}  # fmt: skip
DIGITS = {char: value for value, char in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
CHINESE = re.compile("负?[零〇一二两三四五六七八九十百千万亿]+(?:分之[零〇一二两三四五六七八九十百千万亿]+)?")
NOTHING = re.compile(
    r"(?:there (?:is|are) )?(?:no|none|zero|without)(?: such| real| valid| possible| integer| positive)*"
    r"(?: (?:solutions?|roots?|answers?|values?|numbers?|x|integers?))?(?: exists?)?"
    r"|(?:the )?(?:empty|null) set|无解|無解|空集|不存在|没有解|無实数解|无实数解|∅"
)
NOT_THERE = re.compile(
    r"(?:it |the limit |limit )?(?:does not|doesn't|do not|don't) exist|dne|undefined|not defined|diverges|divergent"
)
EVERYTHING = re.compile(
    r"(?:the set of )?all (?:the )?reals?(?: numbers?)?|(?:x is )?any real(?: number)?|every real(?: number)?|"
    r"the real numbers|real numbers|reals"
    r"|全体实数|所有实数|任意实数"
)
WITHOUT_END = re.compile(r"(?:positive )?infinity|infinite|infinitely many(?: solutions?)?|unbounded|无穷(?:大|多)?")
YES = {"yes", "true", "correct", "是", "对", "正确"}
NO = {"no", "false", "incorrect", "否", "不是", "错", "错误", "不正确"}
STATED = re.compile(
    r"\s*(?:the |this )?(?:statement|claim|assertion|proposition|it) is (true|false|correct|incorrect)\W*",
    re.IGNORECASE,
)
CIRCLED = re.compile("[①-⑳](?:[\\s,、和]*[①-⑳])*")
CHOICE = re.compile(
    r"\(\s?([A-Ja-j])\s?\)|\[([A-J])\]|([A-Ja-j])|(?:option|choice|answer|选项|选)\s?\(?([A-Ja-j])\)?", re.IGNORECASE
)
LABELLED = re.compile(
    r"(?:\(([A-J])\)|([A-J])[.):：]|(?:option|choice)\s\(?([A-J])\)?[:.,]?)\s*"
    r"((?![,;/&、和或]|(?:and|or)\b)\S.*)",
    re.DOTALL,
)
TAKEN_BACK = re.compile(
    r"(?:or|maybe|perhaps|possibly|either|is|was)\b.*|.*\([A-J]\).*|(?:.*[\s,;])?[A-J][.):].*|[A-J]",
    re.IGNORECASE | re.DOTALL,
)
"""After the letter of a choice: words that take it back or name another choice, so they are not its text."""
SEVERAL_CHOICES = re.compile(r"\(?[A-J]\)?(?:\s?(?:,|;|and|&|和|、)?\s?\(?[A-J]\)?)+")
ARTICLES = {"a", "an", "the"}


def meaning(text: str) -> str:
    """The words in a normal form: answers that mean the same get the same text. Empty if no word is left."""
    text = STATED.sub(r"\1", text.replace("充要", "充分必要"))
    plain = " ".join(re.sub(r"[.,;:!?\"'()\-]", " ", text.casefold().replace("'", "'")).split())
    folded = text.casefold().strip(" .!")
    if NOTHING.fullmatch(folded) or NOTHING.fullmatch(plain):
        # A bare "no" answers a question; it does not say that there is no solution.
        return "nothing" if folded != "no" else "no"
    for pattern, name in ((NOT_THERE, "undefined"), (EVERYTHING, "everything"), (WITHOUT_END, "infinite")):
        if pattern.fullmatch(folded) or pattern.fullmatch(plain):
            return name
    if plain in YES:
        return "yes"
    if plain in NO:
        return "no"
    return " ".join(word for word in plain.split() if word not in ARTICLES) or plain


def amount(text: str) -> Fraction | None:
    """The whole number that English words spell (`twenty-five`, `two hundred`), or None."""
    words = text.casefold().replace("-", " ").replace(" and ", " ").split()
    if not words or len(words) > 8:
        return None
    total, current = 0, 0
    for word in words:
        if word in NUMBERS:
            current += NUMBERS[word]
        elif word in SCALES and word != "dozen" and (current or word == words[0] == "a"):
            current *= SCALES[word]
            if SCALES[word] >= 1000:  # a hundred stays open: "two hundred thousand"
                total, current = total + current, 0
        else:
            return None
    return Fraction(total + current)


def chinese_amount(text: str) -> Fraction | None:
    """The number that Chinese numerals spell (三分之二, 百分之二十, 一百零五), or None."""
    # Chinese says the denominator first: 三分之二 is 2/3.
    denominator_text, separator, numerator_text = text.partition("分之")
    if separator:
        denominator, numerator = chinese_amount(denominator_text), chinese_amount(numerator_text)
        return numerator / denominator if numerator is not None and denominator else None
    total, section, digit = 0, 0, 0
    for char in text:
        if char in DIGITS:
            digit = DIGITS[char]
        elif char in "十百千":
            section += (digit or 1) * {"十": 10, "百": 100, "千": 1000}[char]
            digit = 0
        elif char in "万亿":
            total = (total + section + digit) * (10**4 if char == "万" else 10**8)
            section = digit = 0
        else:
            return None
    return Fraction(total + section + digit)


def choice(text: str) -> str:
    """The upper-case letter of a choice that is the whole text, as in `B`, `(B)` or `option B`; else an empty text."""
    match = CHOICE.fullmatch(text.strip(" ."))
    return next(group for group in match.groups() if group).upper() if match else ""


def labelled(text: str) -> tuple[str, str] | None:
    """The letter and the text of `(B) 42` or `B. 42`, or None."""
    match = LABELLED.fullmatch(text.strip())
    if match is None or TAKEN_BACK.fullmatch(match.group(4)):
        return None
    return str(match.group(1) or match.group(2) or match.group(3)), match.group(4).strip()


def choices(text: str) -> str:
    """The sorted letters of several choices, as in `A, C` or `AC`; else an empty text."""
    if CIRCLED.fullmatch(text.strip(" .")):
        return "".join(sorted(char for char in text if "①" <= char <= "⑳"))
    if not SEVERAL_CHOICES.fullmatch(text.strip(" .")):
        return ""
    letters = re.sub(r"[^A-J]|and", "", text)
    return "".join(sorted(letters)) if len(set(letters)) == len(letters) else ""
