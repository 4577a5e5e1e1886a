"""Finds the final answer of a math response: the last group of `\\boxed{}`, or what a later phrase states.

It never takes the last number of the text: that would reward a response that committed to no answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Anchor = Literal["boxed", "boxed_or_phrase"]

BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?:\s*(\{)|\s*$|\s+(?P<bare>[0-9A-Za-z]+(?=[\s$.,]|$)))")
PHRASE = re.compile(
    r"(?:(?:the|my|our)\s+(?:final\s+|correct\s+|right\s+|required\s+|desired\s+)?answer(?:\s+to\s+[^.\n]{1,40}?)?"
    r"|final\s+answer|final\s+result|^\W{0,6}answer)[*_\"']{0,3}\s{0,4}(?:is|are|was|equals|must\s+be|should\s+be|:|=|：)"
    r"(?:\s{0,4}(?:therefore|then|thus|simply|just|indeed))?\s{0,4}[:：]?[*_]{0,3}"
    r"|(?:final\s+answer|^\W{0,6}answer)[*_:\s]{0,6}\n"
    r"|^[ \t>]*####(?=\s{0,3}[-+−\d$\\(.€£¥])"
    r"|(?:最终|最后)?答案\s?(?:应该|应当)?[*_]{0,2}\s?(?:[是为]\s?[：:]?|[：:])[*_]{0,2}"
    r"|【(?:答案|解答)】|故?(?:正确)?(?:选项|答案)?(?:应|为)?选[择]?\s?[：:为]?(?=\s?[（(]?[A-J](?![a-zA-Z]))"
    r"|the\s+(?:correct|right|best)\s+(?:option|choice|answer\s+choice)\s+(?:is|:)"
    r"|<answer>",
    re.IGNORECASE | re.MULTILINE,
)
AFTERTHOUGHT = re.compile(
    r"[,;，]?\s+(?:since|because|as\s+(?:we|required|desired|expected)|which|where\s+we|so\s+(?:that|we)|not\s|rather\s+than|instead\s+of|"
    r"by\s|from\s+(?:the|which)|after\s|but\s)|[，,；;]?(?:因为|由于|而不是)",
    re.IGNORECASE,
)
"""What begins a remark after an answer; the answer ends before it."""
BETWEEN = re.compile(
    r"(?:\s|[,;.$&、，；。或和与及/]|\\\\|\\[,;!() \[\]]|\\q?quad\b|"
    r"(?:and|or|also|either|alternatively|otherwise|maybe|perhaps|possibly|could|be|it|else|otherwise|hence|the|other|answer|is|as|well|might|option|possible|another|also)\b"
    r"|\n\s*(?:[-•–]|\d{1,2}[.)])\s|\\text\{[^{}]{0,20}\}|[A-Za-z](?:_\{?\w\}?)?\s?=|\(\w\)|\d\)|或者|也可能是?|要么|还是|以及|[*_])*",
    re.IGNORECASE,
)
"""What may stand between two boxes of one answer."""
OTHERWISE = re.compile(
    r"[\s$*.,;)\]\\]*(?:(?:but\s+|and\s+)?(?:or|alternatively,?|(?:or\s+)?(?:maybe|perhaps|possibly)|(?:it\s+|else\s+)?"
    r"(?:could|might|may)(?:\s+(?:also|well))*\s+be)(?![a-zA-Z])|/|或者?|也?可能是|还是)[\s$*\\(]*"
    r"(?=[-+−]?[\d.]|[a-z]\s?=|\\[dt]?frac|\\sqrt|(?:\\text\w*\{)?(?-i:\(?[A-J](?![A-Za-z])))([^\n]{1,80})"
    r"|[\s$*.)\]\\]*(?:[,;&、\s]|and\b|和)[\s$*\\(]*((?:\\text\w*\{)?(?-i:\(?[A-J]\)?)\}?)[\s$*.)\\]*(?:\n|$)",
    re.IGNORECASE,
)
"""After an answer: a second answer that takes the first one back, or another choice."""
MINUS = re.compile(r"[=$(\[{&≈]\s?[-−]\s?\Z")
"""A minus sign, after a character that shows that it is no subtraction."""
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
MOST_BOXES = 20
"""How many boxes around one answer are removed, at most."""
LONGEST_GAP = 60
"""How many characters may stand between two boxes of one answer."""


@dataclass(frozen=True)
class Extraction:
    """The answer that was found, or the reason why there is none."""

    answer: str | None
    reason: str = ""


def extract(text: str, anchor: Anchor = "boxed_or_phrase") -> Extraction:
    """The final answer to which `text` commits. Takes time linear in the length of `text`.

    The last group of adjacent boxes counts; several different ones are one list answer. If the last box is empty or cut
    off, there is no answer. With `boxed_or_phrase`, a phrase such as "the final answer is 5" counts after the last box.
    """
    boxes, cut_off = _boxes(text)
    if cut_off:
        return Extraction(None, r"the last \boxed{ is cut off")
    phrase = _phrase(text, boxes[-1][1] if boxes else 0) if anchor == "boxed_or_phrase" else ""
    if phrase:
        return Extraction(phrase)
    if not boxes:
        reason = r"there is no \boxed{}"
        return Extraction(
            None, reason if anchor == "boxed" else reason + ", and no phrase such as: the final answer is"
        )
    answers = _last_group(text, boxes)
    if not answers[-1]:
        return Extraction(None, r"the last \boxed{} is empty")
    # All candidates count as one list, so that naming several of them does not pay.
    answers.append(_second_answer(text, boxes[-1][1], answers[-1]))
    return Extraction(", ".join(dict.fromkeys(answer for answer in answers if answer)))


def _second_answer(text: str, end: int, answer: str) -> str:
    """A second answer that follows the answer that ends at `end`, or an empty text.

    A bare letter counts only after an answer that is the letter of a choice.
    """
    match = OTHERWISE.match(text, end)
    if match is None:
        return ""
    return str(match[1] or (match[2] if len(re.sub(r"\\[a-z]+|\W", "", answer)) == 1 else ""))


def closing_brace(text: str, start: int) -> int:
    """The index of the brace that closes the one opened before `start`, or -1. Escaped braces do not count."""
    depth = 1
    for match in BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return -1


def _boxes(text: str) -> tuple[list[tuple[int, int]], bool]:
    """The outermost boxes as (start of the command, end), and whether the last one is never closed."""
    boxes: list[tuple[int, int]] = []
    match = BOX.search(text)
    while match:
        end = closing_brace(text, match.end()) if match.group(1) else match.end() - 1 if match["bare"] else -1
        if end < 0:
            return boxes, True
        boxes.append((match.start(), end + 1))
        match = BOX.search(text, end + 1)
    return boxes, False


def _last_group(text: str, boxes: list[tuple[int, int]]) -> list[str]:
    """The contents of the last group of adjacent boxes."""
    first = len(boxes) - 1
    while first > 0:
        start, end = boxes[first - 1][1], boxes[first][0]
        if end - start > LONGEST_GAP or not BETWEEN.fullmatch(text, start, end):
            break
        first -= 1
    return [_signed(text, start, unboxed(text[start:end])) for start, end in boxes[first:]]


def _signed(text: str, start: int, answer: str) -> str:
    """The answer in a box, with the minus sign that is before the box, as in `x = -\\boxed{5}`."""
    if not answer or not MINUS.search(text, max(0, start - 6), start):
        return answer
    return f"-{answer}" if answer.isalnum() else f"-({answer})"


def unboxed(text: str) -> str:
    """`text` without the boxes around the whole of it."""
    text = text.strip()
    match = BOX.match(text)
    if match and match["bare"] and match.end() == len(text):
        return match["bare"]
    for _ in range(MOST_BOXES):
        if not match or not match.group(1) or closing_brace(text, match.end()) != len(text) - 1:
            break
        text = text[match.end() : -1].strip()
        match = BOX.match(text)
    return text


def _phrase(text: str, after: int) -> str:
    """What the last answer phrase after index `after` announces, up to the end of its line or sentence."""
    phrases = list(PHRASE.finditer(text, after))
    if not phrases:
        return ""
    last_phrase = phrases[-1]
    if last_phrase.group().lower() == "<answer>":
        return re.split("</answer>", text[last_phrase.end() :], maxsplit=1, flags=re.IGNORECASE)[0].strip()
    lines = text[last_phrase.end() :].lstrip(" \t:：*").split("\n", 8)
    # The answer may begin a few lines below its phrase, after lines that only open math.
    line = next((line for line in lines[:4] if line.strip(" *$\\[]()")), "")
    # A full stop after a lone letter does not end the sentence: `A. 5` is a choice and its text.
    sentence = re.split(r"(?<!\b[A-Ja-j])\.(?:\s|$|\*)|。|\\\]|</", line, maxsplit=1)[0]
    sentence = AFTERTHOUGHT.split(sentence, maxsplit=1)[0]
    second_answer = _second_answer(text, text.index(line, last_phrase.end()) + len(sentence), sentence)
    if second_answer and sentence.strip():
        sentence = f"{sentence}, {second_answer}"
    return sentence.strip().strip("*").strip().rstrip(",;，；")
