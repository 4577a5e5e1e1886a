"""Counts the words of a text by the script they are written in, without code, formulas and addresses."""

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
"""The value of `language` that stands for the language of the prompt."""
ACCEPTED = 0.2
"""If a script has at least this share of the prompt's words, the prompt counts as written in it."""


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
"""Script -> its letters, as the inside of a character class of a regular expression."""

UNSPACED = ("Han", "Kana", "Thai", "Lao", "Myanmar", "Khmer")
"""Scripts that are written without spaces. Each of their characters counts as a word."""

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
"""ISO 639-1 code -> the scripts in which the language is written."""

# A single letter is a variable, and a word with digits or an underscore is an identifier: neither is a word.
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
"""The most characters of inline code or of an inline formula: a lone backquote or dollar sign must open nothing."""
_REST = re.compile(
    r"https?://\S+|www\.\S+|(?<!\S)\S{1,64}@\S{1,64}"
    r"|\\(?:boxed|text|textbf|textit|mathrm|mathbf|operatorname)\{[^{}]*\}|\\[A-Za-z]+"
    r"|</?[A-Za-z][^<>\n]{0,200}>|<\|[^<>|\n]{1,40}\|>"
)
"""URLs, mail addresses, LaTeX commands, tags and special tokens."""


@run_as("inline")
def language_consistency(
    language: str = PROMPT, threshold: float = 0.8, least_words: int = 10, most: float = 1.0
) -> Verifier:
    """A verifier: the share of words in the expected language, as DeepSeek-R1 rewards it (arXiv 2501.12948).

    The language is the check's reference, or else `language`: an ISO 639-1 code, or `prompt` for the language of the
    prompt's user messages. Languages are told apart by script, so English and French count as the same. Reasoning and
    answer are measured separately, and the lower share counts. A part of fewer than `least_words` words is right, and
    so is any response to a prompt without words. `words_by_script` says what counts as a word. The score is the share;
    as a gate it is 1 from `threshold` on; as a penalty it is `most` times (share - 1). Raises UserError for an unknown
    language or a number out of range.
    """
    if language != PROMPT and language not in LANGUAGES:
        raise UserError(_unknown(language))
    share("threshold", threshold), share("most", most), count("least_words", least_words)

    def verify(problem: Problem, response: Response) -> Verdict:
        role = role_of(problem, "score")
        expected = problem.get("reference") or language
        if expected != PROMPT and (not isinstance(expected, str) or expected not in LANGUAGES):
            return bad_reference(_unknown(expected))
        if role != "penalty" and not response.answer.strip():
            return empty_answer(response)
        scripts = LANGUAGES[expected] if expected != PROMPT else _prompt_scripts(problem)
        if not scripts:
            return placed(role, 1.0, passes=True, most=most, reason="the prompt has no words to tell a language by")
        quality, metrics, reason = _quality(response, scripts, least_words)
        return placed(role, quality, passes=quality >= threshold, most=most, reason=reason, metrics=metrics)

    verify.largest_penalty = most  # type: ignore[attr-defined]
    return verify


def _unknown(language: Any) -> str:
    return f"the language must be `{PROMPT}` or one of {', '.join(sorted(LANGUAGES))}, not {language!r}"


def _prompt_scripts(problem: Problem) -> tuple[str, ...]:
    """The scripts of the prompt's user messages; empty if they have no words."""
    prompt = problem.get("prompt") or ""
    texts = (
        [prompt]
        if isinstance(prompt, str)
        else [message.get("content") for message in prompt if message.get("role") == "user"]
    )
    counts = words_by_script("\n".join(text for text in texts if isinstance(text, str)))
    scripts = [script for script, word_count in counts.items() if word_count >= ACCEPTED * counts.total()]
    return tuple([*scripts, "Han"] if "Kana" in scripts and "Han" not in scripts else scripts)  # Japanese uses both


def _quality(response: Response, scripts: tuple[str, ...], least_words: int) -> tuple[float, dict[str, float], str]:
    """The lower share of the parts that are long enough, the share of each part, and the reason."""
    quality, metrics, reason = 1.0, {}, "too few words to tell a language by"
    for part, text in (("reasoning", response.reasoning), ("answer", response.answer)):
        counts = words_by_script(text)
        if counts.total() < least_words:
            continue
        metrics[part] = sum(counts[script] for script in scripts) / counts.total()
        if metrics[part] <= quality:
            quality = metrics[part]
            reason = f"{quality:.0%} of the {counts.total()} words of the {part} are {' or '.join(scripts)}"
            reason += _describe_other_script(counts, scripts)
    return quality, metrics, reason


def _describe_other_script(counts: Counter[str], scripts: tuple[str, ...]) -> str:
    """The most frequent script that was not expected, as the end of a reason; empty if there is none."""
    others = {name: word_count for name, word_count in counts.items() if name not in scripts}
    return f", {max(others.values())} are {max(others, key=others.__getitem__)}" if others else ""


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
"""What opens a span of code or mathematics -> a regular expression for what closes it."""


def words_by_script(text: str) -> Counter[str]:
    """How many words of `text` each script has. The time is linear in the length of the text.

    A word is a run of at least two letters of one script; in scripts without spaces every character is a word. No
    words: code (fenced or in backquotes), LaTeX, tool calls, URLs, addresses, tags, single letters and identifiers.
    """
    prose = without_code(text)
    # Most texts use one or two of the scripts. The search in the distinct characters skips the others quickly.
    characters = "".join(set(prose))
    counts: Counter[str] = Counter()
    for name, letters in _LETTERS.items():
        runs = _WORDS[name].findall(prose) if letters.search(characters) else []
        counts[name] = sum(map(len, runs)) if name in UNSPACED else len(runs)
    return +counts


def without_code(text: str) -> str:
    """`text` with a blank in place of code, LaTeX, tool calls, URLs, addresses and tags."""
    kept: list[str] = []
    position = 0
    next_closers: dict[str, int] = {}
    for opener in _OPENERS.finditer(text):
        end = _end_of_span(text, opener.start(), opener[0], next_closers) if opener.start() >= position else -1
        if end >= 0:
            kept += [text[position : opener.start()], " "]
            position = end
    return _REST.sub(" ", "".join([*kept, text[position:]]))


def _end_of_span(text: str, start: int, opener: str, next_closers: dict[str, int]) -> int:
    """Where the span that opens at `start` ends; -1 if it never closes.

    `next_closers` holds the place of the next closer for each opener, so that no part of the text is searched twice.
    """
    position = start + len(opener)
    if next_closers.get(opener, -1) < position:
        match = _SPANS[opener].search(text, position)
        next_closers[opener] = match.start() if match else len(text)
    close = next_closers[opener]
    if close == len(text):
        # As in Markdown, a fence that never closes encloses the rest. Other openers are plain characters then.
        return close if opener in _FENCES else -1
    if opener in ("`", "$") and (close - position > LONGEST_INLINE or "\n\n" in text[position:close]):
        return -1
    match = _SPANS[opener].match(text, close)
    assert match is not None
    return match.end()
