"""Finding the final answer of a math response: the last `\\boxed{}`, a `####` line, or "the final answer is".

Never the last number of the text, which would pay a response that committed to nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

BOX = re.compile(r"\\(?:boxed|fbox)\s*(\{|$)")
PHRASE = re.compile(
    r"(?:final\s+answer|the\s+answer|^\W{0,4}answer)[*_]{0,2}\s{0,4}(?:is|are|:|=|：)[:：]?[*_]{0,2}|####|答案\s?[：:是]",
    re.IGNORECASE | re.MULTILINE,
)
BETWEEN_BOXES = re.compile(
    r"(?:\s|[,;.$&、，或]|\\\\|\\[,;!() \[\]]|\\q?quad\b|and\b|or\b|\\text\{\s?(?:and|or)\s?\})*", re.IGNORECASE
)
LONGEST_GAP = 40
"""Characters between two boxes that still belong to one answer."""


@dataclass(frozen=True)
class Extraction:
    """What was found, or why nothing was."""

    answer: str | None
    reason: str = ""


def extract(text: str) -> Extraction:
    """Return the final answer that `text` commits to; linear in its length.

    The last group of adjacent boxes counts, several different ones as one list answer; an empty or cut-off last box is
    no answer. A phrase such as "the final answer is 5" counts where no box follows it.
    """
    boxes, cut_off = _boxes(text)
    phrase = _phrase(text, after=boxes[-1][1] if boxes else 0)
    if cut_off:
        return Extraction(None, r"the last \boxed{ is cut off")
    if phrase:
        return Extraction(phrase)
    if not boxes:
        return Extraction(None, r"there is no \boxed{}, and no phrase such as: the final answer is")
    answers = _last_group(text, boxes)
    if not answers[-1]:
        return Extraction(None, r"the last \boxed{} is empty")
    return Extraction(", ".join(dict.fromkeys(answer for answer in answers if answer)))


def closing_brace(text: str, start: int) -> int:
    """The index of the brace that closes the one opened before `start`, or -1; escaped braces do not count."""
    depth, at = 1, start
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    return -1


def _boxes(text: str) -> tuple[list[tuple[int, int]], bool]:
    """The outermost boxes as (start of the command, end), and whether the last one never closes."""
    boxes: list[tuple[int, int]] = []
    match = BOX.search(text)
    while match:
        end = closing_brace(text, match.end()) if match.group(1) else -1
        if end < 0:
            return boxes, True
        boxes.append((match.start(), end + 1))
        match = BOX.search(text, end + 1)
    return boxes, False


def _last_group(text: str, boxes: list[tuple[int, int]]) -> list[str]:
    first = len(boxes) - 1
    while first > 0:
        gap = text[boxes[first - 1][1] : boxes[first][0]]
        if len(gap) > LONGEST_GAP or not BETWEEN_BOXES.fullmatch(gap):
            break
        first -= 1
    return [unboxed(text[start:end]) for start, end in boxes[first:]]


def unboxed(text: str) -> str:
    """`text` without boxes around the whole of it."""
    text = text.strip()
    match = BOX.match(text)
    while match and match.group(1) and closing_brace(text, match.end()) == len(text) - 1:
        text = text[match.end() : -1].strip()
        match = BOX.match(text)
    return text


def _phrase(text: str, after: int) -> str:
    """What the last answer phrase from `after` on announces, up to the end of its line or sentence."""
    phrases = list(PHRASE.finditer(text, after))
    if not phrases:
        return ""
    lines = text[phrases[-1].end() :].lstrip(" \t:：*").split("\n", 2)
    line = next((line for line in lines[:2] if line.strip(" *$")), "")
    sentence = re.split(r"\.(?:\s|$)|。", line, maxsplit=1)[0]
    return sentence.strip().strip("*").strip().rstrip(",;")
