"""The words of a text by the script they are written in; code, formulas and addresses left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from qwq_rl.errors import UserError
from qwq_rl.verifiers.builtin.roles import count, placed, role_of, share
from qwq_rl.verifiers.contract import Problem, Response, Verdict, Verifier, run_as
from qwq_rl.verifiers.verdicts import bad_reference, empty_answer

PROMPT = "prompt"
ACCEPTED = 0.2
"""A script that holds this share of the prompt's words is the prompt's own."""


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
_OPENERS = re.compile(r"```|~~~|`|\$\$|(?<!\\)\$(?![\s$])|\\\(|\\\[|\\begin\{|<tool_(?:call|response)>")
_FENCES = ("```", "~~~")
LONGEST_INLINE = 1000
"""Characters of inline code or an inline formula; a lone backquote or dollar sign opens nothing."""
_REST = re.compile(
    r"https?://\S+|www\.\S+|(?<!\S)\S{1,64}@\S{1,64}"
    r"|\\(?:boxed|text|textbf|textit|mathrm|mathbf|operatorname)\{[^{}]*\}|\\[A-Za-z]+"
    r"|</?[A-Za-z][^<>\n]{0,200}>|<\|[^<>|\n]{1,40}\|>"
)


@run_as("inline")
def language_consistency(
    language: str = PROMPT, threshold: float = 0.8, least_words: int = 10, most: float = 1.0
) -> Verifier:
    """A verifier: the share of words in the expected language, as DeepSeek-R1 rewards it (arXiv 2501.12948).

    The language is the check's reference or else `language`: an ISO 639-1 code, or `prompt` for that of the prompt's
    user messages. Languages are told apart by script, so English and French are not. Reasoning and answer are judged
    each, the lower share counts; one of fewer than `least_words` words is right, as is a prompt without words. What is
    no word is said at `scripts.words_by_script`. Score: the share; gate: 1 from `threshold` on; penalty: `most` times
    the share less one. Raises UserError for an unknown language or a number out of range.
    """
    if language != PROMPT and language not in LANGUAGES:
        raise UserError(_unknown(language))
    share("threshold", threshold), share("most", most), count("least_words", least_words)

    def verify(problem: Problem, response: Response) -> Verdict:
        role = role_of(problem, "score")
        wanted = problem.get("reference") or language
        if wanted != PROMPT and (not isinstance(wanted, str) or wanted not in LANGUAGES):
            return bad_reference(_unknown(wanted))
        if role != "penalty" and not response.answer.strip():
            return empty_answer(response)
        scripts = LANGUAGES[wanted] if wanted != PROMPT else _scripts_of_prompt(problem)
        if not scripts:
            return placed(role, 1.0, passes=True, most=most, reason="the prompt has no words to tell a language by")
        quality, metrics, reason = _judged(response, scripts, least_words)
        return placed(role, quality, passes=quality >= threshold, most=most, reason=reason, metrics=metrics)

    verify.largest_penalty = most  # type: ignore[attr-defined]
    return verify


def _unknown(language: Any) -> str:
    return f"the language must be `{PROMPT}` or one of {', '.join(sorted(LANGUAGES))}, not {language!r}"


def _scripts_of_prompt(problem: Problem) -> tuple[str, ...]:
    prompt = problem.get("prompt") or ""
    texts = [prompt] if isinstance(prompt, str) else [one.get("content") for one in prompt if one.get("role") == "user"]
    found = words_by_script("\n".join(text for text in texts if isinstance(text, str)))
    own = [script for script, number in found.items() if number >= ACCEPTED * found.total()]
    return tuple([*own, "Han"] if "Kana" in own and "Han" not in own else own)  # Japanese is written in both


def _judged(response: Response, scripts: tuple[str, ...], least_words: int) -> tuple[float, dict[str, float], str]:
    """The lower share of the parts that are long enough, the share of each, and the reason."""
    quality, metrics, reason = 1.0, {}, "too few words to tell a language by"
    for part, text in (("reasoning", response.reasoning), ("answer", response.answer)):
        found = words_by_script(text)
        if found.total() < least_words:
            continue
        metrics[part] = sum(found[script] for script in scripts) / found.total()
        if metrics[part] <= quality:
            quality = metrics[part]
            reason = f"{quality:.0%} of the {found.total()} words of the {part} are {' or '.join(scripts)}"
            reason += _strange(found, scripts)
    return quality, metrics, reason


def _strange(found: Counter[str], scripts: tuple[str, ...]) -> str:
    strange = {name: number for name, number in found.items() if name not in scripts}
    return f", {max(strange.values())} are {max(strange, key=strange.__getitem__)}" if strange else ""


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
