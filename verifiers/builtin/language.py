"""The words of a text by the script they are written in; code, formulas and addresses left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

RANGES: Mapping[str, str] = {
    "Latin": "A-Za-zªºÀ-ÖØ-öø-ʯḀ-ỿﬀ-ﬆＡ-Ｚａ-ｚ",
    "Han": "々〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af",
    "Kana": "ぁ-ゖゝ-ゟァ-ヺー-ヿㇰ-ㇿｦ-ﾟ",
    "Hangul": "ᄀ-ᇿㄱ-ㆎ가-힣",
    "Cyrillic": "Ѐ-ԯ",
    "Greek": "Ͱ-Ͽἀ-῿",
    "Arabic": "ؠ-يٮ-ۓۺ-ۿݐ-ݿﭐ-﷿ﹰ-ﻼ",
    "Hebrew": "א-ת",
    "Devanagari": "ऀ-ॿ",
    "Bengali": "ঀ-৿",
    "Gurmukhi": "਀-੿",
    "Gujarati": "઀-૿",
    "Tamil": "஀-௿",
    "Telugu": "ఀ-౿",
    "Kannada": "ಀ-೿",
    "Malayalam": "ഀ-ൿ",
    "Thai": "ก-ฺเ-๎",
    "Lao": "ກ-ຽເ-ໝ",
    "Myanmar": "က-႟",
    "Khmer": "ក-៓",
    "Ethiopic": "ሀ-፿",
    "Georgian": "Ⴀ-ჿ",
    "Armenian": "Ա-֏",
}
"""Script -> its letters, as the inside of a character class."""

UNSPACED = ("Han", "Kana", "Thai", "Lao", "Myanmar", "Khmer")
"""Scripts written without spaces: each character counts as a word."""

_WRITTEN_IN: Mapping[str, str] = {
    "Latin": "af ca cs cy da de en es et eu fi fr ga gl hr hu id is it lt lv ms nl no pl pt ro sk sl sq sv sw tl tr vi",
    "Cyrillic": "be bg kk ky mk mn ru sr uk",
    "Arabic": "ar fa ps ur",
    "Devanagari": "hi mr ne sa",
    "Han": "ja zh",
    "Kana": "ja",
    "Hangul": "ko",
    "Greek": "el",
    "Hebrew": "he",
    "Bengali": "as bn",
    "Gurmukhi": "pa",
    "Gujarati": "gu",
    "Tamil": "ta",
    "Telugu": "te",
    "Kannada": "kn",
    "Malayalam": "ml",
    "Thai": "th",
    "Lao": "lo",
    "Myanmar": "my",
    "Khmer": "km",
    "Ethiopic": "am ti",
    "Georgian": "ka",
    "Armenian": "hy",
}
_CODES = sorted({code for codes in _WRITTEN_IN.values() for code in codes.split()})
LANGUAGES: Mapping[str, tuple[str, ...]] = {
    code: tuple(script for script, codes in _WRITTEN_IN.items() if code in codes.split()) for code in _CODES
}
"""ISO 639-1 code -> the scripts it is written in."""

# One letter is a variable; a word with digits or an underscore is an identifier.
_WORDS = {
    name: re.compile(
        f"[{inside}]+" if name in UNSPACED else rf"(?<![0-9_\\{inside}])[{inside}][{inside}'’]++(?![0-9_])"
    )
    for name, inside in RANGES.items()
}
_LETTERS = {name: re.compile(f"[{inside}]") for name, inside in RANGES.items()}

_SPANS = {
    "```": re.compile("```"),
    "~~~": re.compile("~~~"),
    "`": re.compile("`"),
    "$$": re.compile(r"\$\$"),
    "$": re.compile(r"(?<![\s\\$])\$(?![0-9$])"),
    "\\(": re.compile(r"\\\)"),
    "\\[": re.compile(r"\\\]"),
    "\\begin{": re.compile(r"\\end\{[^{}]{0,40}\}"),
    "<tool_call>": re.compile("</tool_call>"),
    "<tool_response>": re.compile("</tool_response>"),
}
"""What opens a span of code or mathematics -> what closes it."""
_OPENERS = re.compile(r"```|~~~|`|\$\$|(?<!\\)\$(?![\s$])|\\\(|\\\[|\\begin\{|<tool_(?:call|response)>")
_FENCES = ("```", "~~~")
LONGEST_INLINE = 1000
"""Characters of inline code or an inline formula; a lone backquote or dollar sign opens nothing."""
_REST = re.compile(
    r"https?://\S+|www\.\S+|(?<!\S)\S{1,64}@\S{1,64}"
    r"|\\(?:boxed|text|textbf|textit|mathrm|mathbf|operatorname)\{[^{}]*\}|\\[A-Za-z]+"
    r"|</?[A-Za-z][^<>\n]{0,200}>|<\|[^<>|\n]{1,40}\|>"
)


def words_by_script(text: str) -> Counter[str]:
    """How many words of `text` each script has; time is linear in the text.

    A word is a run of at least two letters of one script, in scripts without spaces every character. Code (fenced and
    in backquotes), LaTeX, tool calls, URLs, addresses, tags, single letters and identifiers are no words.
    """
    prose = without_code(text)
    there = "".join(set(prose))
    found: Counter[str] = Counter()
    for name, letters in _LETTERS.items():
        runs = _WORDS[name].findall(prose) if letters.search(there) else []
        found[name] = sum(map(len, runs)) if name in UNSPACED else len(runs)
    return +found


def without_code(text: str) -> str:
    """`text` with a blank in the place of code, LaTeX, tool calls, URLs, addresses and tags."""
    kept: list[str] = []
    at = 0
    closes: dict[str, int] = {}
    for opener in _OPENERS.finditer(text):
        end = _end(text, opener.start(), opener[0], closes) if opener.start() >= at else -1
        if end >= 0:
            kept += [text[at : opener.start()], " "]
            at = end
    return _REST.sub(" ", "".join([*kept, text[at:]]))


def _end(text: str, start: int, opener: str, closes: dict[str, int]) -> int:
    """Where the span that opens at `start` ends, or -1; `closes` holds each next closer: no text is searched twice."""
    at = start + len(opener)
    if closes.get(opener, -1) < at:
        found = _SPANS[opener].search(text, at)
        closes[opener] = found.start() if found else len(text)
    close = closes[opener]
    if close == len(text):
        return close if opener in _FENCES else -1
    if opener in ("`", "$") and (close - at > LONGEST_INLINE or "\n\n" in text[at:close]):
        return -1
    found = _SPANS[opener].match(text, close)
    assert found is not None
    return found.end()
