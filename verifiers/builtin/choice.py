"""Multiple choice: finds the one letter that an answer commits to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

from qwq_rl.verifiers.contract import Problem, Response, Verdict, Verifier, run_as
from qwq_rl.verifiers.verdicts import bad_reference, correct, empty_answer, no_answer, shown, wrong

LETTERS = "ABCDEFGHIJ"
LONGEST, MOST_SLOTS, MOST_LINE, LAST_LINES = 100_000, 50, 2000, 20
"""Limits, so that every answer is judged in little time: characters of an answer; boxes, and announcements, in it;
characters of a line; and how many of the last lines may hold an option's text."""
WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {ord("【"): "[", ord("】"): "]"}
"""Full-width characters and brackets of Chinese and Japanese -> their ASCII forms."""
MARKS = dict.fromkeys(map(ord, "*`$#~"))
"""Marks of Markdown and LaTeX, to be removed."""
WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|bf|rm|left|right)\b[ ]?|\\[()\[\] ,;!]")
TAG = re.compile("</?answer>", re.IGNORECASE)
BOX = re.compile(r"\\f?boxed[ ]{0,4}\{|[{}]")

CUE = re.compile(
    r"(?i:\banswer(?: to (?:this|the) (?:question|problem))?|\b(?:correct|right|best|final) (?:option|choice))[ ]{0,3}"
    r"(?:(?i:is|would be|must be|should be)\b|:|=|\n)?[\s:–—-]{0,4}(?:(?i:either|both|option|choice|letter)\s){0,2}"
    r"|(?:答案|正确选项|正確選項)[ ]?(?:应该是|应为|應為|是|为|為|选)?[\s:]{0,4}(?:选项|選項)?[ ]?"
    r"|(?<!不)(?<!不应)(?:故选|故選|应选|應選|应该选|本题选|因此选|所以选|选择|選擇)[ :]{0,3}"
)
"""What announces an answer. The letters stand right after it."""
JOINT = r"\s{0,2}+(?:[,/&|、;]|或者|或|和|\bor\b|\band\b)\s{0,2}+(?:(?:or|and)\s{1,2}+)?"
"""What joins letters of a list, such as "A or B"."""
ONE = r"(?:[(\[{][ ]?[A-Ja-j][ ]?[)\]}]|[A-J](?![A-Za-z0-9'_]))"
"""One letter, bare or in brackets."""
LIST = re.compile(rf"{ONE}(?:{JOINT}{ONE}){{0,20}}+")
RUN = re.compile(r"[A-J]{2,10}(?![A-Za-z0-9'_])")
"""Several letters without a joint, such as "BD"."""
SMALL = re.compile(r"[a-j][).]?[ ]{0,3}(?:\n|\Z)")
"""A lower-case letter that ends its line."""
PROSE = re.compile(r"[AI] [a-z]")
"""The letters A or I before a lower-case word: probably English prose."""
GOES_ON = re.compile(r"[AI] (?:because|since|as|for|which|or|and|is correct|is right)\b")
"""A or I with a word after it that shows that it is a letter after all."""
LABELLED = re.compile(rf"({ONE})[ ]?(?:[.:)\-][ ]?|(?<=[)\]}}])[ ])(\S[^\n]*)")
"""A letter and the option's text, such as "B. Paris"."""


@run_as("inline")
def choice() -> Verifier:
    """A verifier: the answer commits to the letter of the reference, A to J, and to no other.

    A letter counts in a box, after an announcement ("Answer: B", "the answer is (B)", "答案：B", "故选B"), or alone on
    a line ("B", "(B)", "**B**"), but never within prose. All places where a letter counts must name the same one: "A or
    B" is wrong, and so are two announcements that differ. If the row has a column `choices` (the options' texts, a list
    or a mapping from letters), a box, an announcement or the last line may hold an option's text instead. In "B. text"
    the text must not be that of another option.
    """
    return _verify


def _verify(problem: Problem, response: Response) -> Verdict:
    reference = problem.get("reference")
    gold = str(reference).translate(WIDE).strip(" ().[]*").upper() if isinstance(reference, str) else ""
    if len(gold) != 1 or gold not in LETTERS:
        return bad_reference(f"the reference must be a letter from A to J, not {shown(repr(reference))}")
    options = _options_by_letter(problem.get("choices"))
    if options is None or (options and gold not in options):
        return bad_reference(f"the row's `choices` must be the options' texts, of which {gold} is one")
    if not response.answer.strip():
        return empty_answer(response)
    slots = _find_slots(response.answer, options)
    if isinstance(slots, str):
        return no_answer(slots)
    letters = sorted(set().union(*slots))
    if not letters:
        return no_answer("no letter stands in a box, behind an announced answer or alone on a line")
    answer = " or ".join(letters)
    if all(slot == {gold} or (gold in slot and _same_text(slot, options)) for slot in slots):
        return correct(f"{gold} is the reference", gold)
    if len(letters) > 1:
        return wrong(f"the answer names {' and '.join(letters)}; one letter was asked", answer)
    return wrong(f"{answer} is not the reference {gold}", answer)


def _options_by_letter(choices: Any) -> dict[str, str] | None:
    """Letter -> text of the option; empty if the row has no choices, None if they cannot be read."""
    if choices is None:
        return {}
    if isinstance(choices, Mapping):
        pairs = [(str(letter).strip().upper(), text) for letter, text in choices.items()]
    elif isinstance(choices, list | tuple) and len(choices) <= len(LETTERS):
        pairs = list(zip(LETTERS, choices, strict=False))
    else:
        return None
    options = {letter: _normalize(str(text)) for letter, text in pairs}
    return options if options and set(options) <= set(LETTERS) and all(options.values()) else None


def _same_text(slot: set[str], options: Mapping[str, str]) -> bool:
    """Whether all letters of a slot are options with the same text."""
    return len({options.get(letter, letter) for letter in slot}) == 1


def _find_slots(answer: str, options: Mapping[str, str]) -> list[set[str]] | str:
    """The letters of every place that states an answer (a slot), or the reason why no answer can be trusted."""
    if len(answer) > LONGEST:
        return f"the answer has more than {LONGEST} characters"
    plain = answer.translate(WIDE)
    boxes = _box_contents(plain)
    if boxes is None:
        return "the last box is not closed"
    if len(boxes) > MOST_SLOTS:
        return f"the answer has more than {MOST_SLOTS} boxes"
    slots = [_letters_of_statement(content, options) for content in boxes]
    if boxes and not slots[-1]:
        return f"the last box holds no letter: {shown(boxes[-1])!r}"
    text = _remove_marks(plain)
    cue_ends = [cue.end() for cue in islice(CUE.finditer(text), MOST_SLOTS + 1)]
    if len(cue_ends) > MOST_SLOTS:
        return f"an answer is announced more than {MOST_SLOTS} times"
    slots += [_letters_after_cue(text, end, options) for end in cue_ends]
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    slots += [_letters_only(line) for line in {line for line in lines if len(line) <= 5}]
    if len(lines) == 1 or (lines and options and not any(slots)):
        letters_by_line = [_letters_of_statement(line, options) for line in lines[-LAST_LINES:]]
        # If earlier lines hold options too, the answer only lists the options.
        slots += [letters_by_line[-1]] if not any(letters_by_line[:-1]) else []
    return [letters for letters in slots if letters]


def _box_contents(text: str) -> list[str] | None:
    """The contents of the outermost boxes; None if the last one never closes."""
    contents: list[str] = []
    depth, start = 0, -1
    for mark in BOX.finditer(text):
        if start < 0 and mark[0] in "{}":
            continue
        if start < 0:
            start, depth = mark.end(), 0
        elif mark[0] != "}":
            depth += 1
        elif depth:
            depth -= 1
        else:
            contents.append(text[start : mark.start()])
            start = -1
    return contents if start < 0 else None


def _remove_marks(text: str) -> str:
    """Remove the marks of Markdown and LaTeX that may stand around a letter."""
    return WRAPPER.sub("", TAG.sub("\n", text).translate(MARKS))


def _letters_of_statement(content: str, options: Mapping[str, str]) -> set[str]:
    """The letters of a text that is only an answer: letters, an option's text, or a letter and its text."""
    text = _remove_marks(content[:MOST_LINE]).replace("{", "").replace("}", "").strip()
    letters = _letters_only(text)
    if letters:
        return letters
    labelled = LABELLED.fullmatch(text)
    if not labelled:
        return _letters_by_text(text, options)
    label = set(re.findall("[A-J]", labelled[1].upper()))
    rest = _remove_marks(labelled[2]).strip(" ()")
    if LIST.match(rest) and not options:
        return label | set(re.findall("[A-J]", rest))
    text_letters = _letters_by_text(rest, options)
    # If the text is that of another option, the answer names two options.
    return label if not text_letters or label & text_letters else label | text_letters


def _letters_only(text: str) -> set[str]:
    """The letters of a text that has nothing but letters, such as "B", "(b).", "A or C" or "BD"; else empty."""
    bare = text.strip().rstrip(".:;!,").strip()
    if len(bare) == 2 and bare[1] == ")":
        bare = bare[0]
    if len(bare) == 1:
        bare = bare.upper()
    if LIST.fullmatch(bare) or RUN.fullmatch(bare):
        return {char.upper() for char in re.sub(r"\b(?:or|and)\b", "", bare) if char.upper() in LETTERS}
    return set()


def _letters_after_cue(text: str, start: int, options: Mapping[str, str]) -> set[str]:
    """The letters at `start`, right after an announcement, or the option whose text stands there."""
    match = LIST.match(text, start) or RUN.match(text, start) or SMALL.match(text, start)
    line = text[start : start + MOST_LINE].partition("\n")[0]
    if not match:
        return _letters_by_text(line, options)
    # "The answer is A because ..." names A, "The answer is A number ..." does not.
    if PROSE.match(text, start) and not GOES_ON.match(text, start):
        return set()
    letters = {char for char in re.sub(r"\b(?:or|and)\b", "", match[0]).upper() if char in LETTERS}
    labelled = LABELLED.match(line)
    text_letters = _letters_by_text(labelled[2], options) if labelled else set()
    return letters if not text_letters or letters & text_letters else letters | text_letters


def _letters_by_text(text: str, options: Mapping[str, str]) -> set[str]:
    """The letters of the options that have this text."""
    normal_text = _normalize(_remove_marks(text).replace("{", "").replace("}", ""))
    return {letter for letter, option in options.items() if option == normal_text}


def _normalize(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".。 ")
