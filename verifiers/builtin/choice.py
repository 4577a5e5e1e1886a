"""Multiple choice: the one letter that an answer commits to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

from qwq_rl.verifiers.contract import Problem, Response, Verdict, Verifier, run_as
from qwq_rl.verifiers.verdicts import bad_reference, correct, empty_answer, no_answer, shown, wrong

LETTERS = "ABCDEFGHIJ"
LONGEST, MOST_SLOTS, MOST_LINE, LAST_LINES = 100_000, 50, 2000, 20
WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {ord("【"): "[", ord("】"): "]"}
MARKS = dict.fromkeys(map(ord, "*`$#~"))
WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|bf|rm|left|right)\b[ ]?|\\[()\[\] ,;!]")
TAG = re.compile("</?answer>", re.IGNORECASE)
BOX = re.compile(r"\\f?boxed[ ]{0,4}\{|[{}]")

CUE = re.compile(
    r"(?i:\banswer(?: to (?:this|the) (?:question|problem))?|\b(?:correct|right|best|final) (?:option|choice))[ ]{0,3}"
    r"(?:(?i:is|would be|must be|should be)\b|:|=|\n)?[\s:–—-]{0,4}(?:(?i:either|both|option|choice|letter)\s){0,2}"
    r"|(?:答案|正确选项|正確選項)[ ]?(?:应该是|应为|應為|是|为|為|选)?[\s:]{0,4}(?:选项|選項)?[ ]?"
    r"|(?<!不)(?<!不应)(?:故选|故選|应选|應選|应该选|本题选|因此选|所以选|选择|選擇)[ :]{0,3}"
)
"""What announces an answer; the letters stand right behind it."""
JOINT = r"\s{0,2}+(?:[,/&|、;]|或者|或|和|\bor\b|\band\b)\s{0,2}+(?:(?:or|and)\s{1,2}+)?"
ONE = r"(?:[(\[{][ ]?[A-Ja-j][ ]?[)\]}]|[A-J](?![A-Za-z0-9'_]))"
LIST = re.compile(rf"{ONE}(?:{JOINT}{ONE}){{0,20}}+")
RUN = re.compile(r"[A-J]{2,10}(?![A-Za-z0-9'_])")
SMALL = re.compile(r"[a-j][).]?[ ]{0,3}(?:\n|\Z)")
PROSE = re.compile(r"[AI] [a-z]")
GOES_ON = re.compile(r"[AI] (?:because|since|as|for|which|or|and|is correct|is right)\b")
LABELLED = re.compile(rf"({ONE})[ ]?(?:[.:)\-][ ]?|(?<=[)\]}}])[ ])(\S[^\n]*)")


@run_as("inline")
def choice() -> Verifier:
    """A verifier: the answer commits to the letter of the reference, A to J, and to no other.

    A letter counts in a box, behind an announcement ("Answer: B", "the answer is (B)", "答案：B", "故选B"), or alone
    on a line ("B", "(B)", "**B**"), never within prose. Wherever letters count, all must be the same one: "A or B" and
    two announcements that differ are wrong. With a column `choices` (the options' texts, a list or a mapping from
    letters) a box, an announcement or the last line may hold an option's text; "B. text" must not be another's.
    """
    return _verify


def _verify(problem: Problem, response: Response) -> Verdict:
    reference = problem.get("reference")
    wanted = str(reference).translate(WIDE).strip(" ().[]*").upper() if isinstance(reference, str) else ""
    if len(wanted) != 1 or wanted not in LETTERS:
        return bad_reference(f"the reference must be a letter from A to J, not {shown(repr(reference))}")
    options = _options(problem.get("choices"))
    if options is None or (options and wanted not in options):
        return bad_reference(f"the row's `choices` must be the options' texts, of which {wanted} is one")
    if not response.answer.strip():
        return empty_answer(response)
    slots = _slots(response.answer, options)
    if isinstance(slots, str):
        return no_answer(slots)
    named = sorted(set().union(*slots))
    if not named:
        return no_answer("no letter stands in a box, behind an announced answer or alone on a line")
    answer = " or ".join(named)
    if all(slot == {wanted} or (wanted in slot and _alike(slot, options)) for slot in slots):
        return correct(f"{wanted} is the reference", wanted)
    if len(named) > 1:
        return wrong(f"the answer names {' and '.join(named)}; one letter was asked", answer)
    return wrong(f"{answer} is not the reference {wanted}", answer)


def _options(choices: Any) -> dict[str, str] | None:
    """Letter -> text; empty where the row has no choices, None where they cannot be read."""
    if choices is None:
        return {}
    if isinstance(choices, Mapping):
        pairs = [(str(letter).strip().upper(), text) for letter, text in choices.items()]
    elif isinstance(choices, list | tuple) and len(choices) <= len(LETTERS):
        pairs = list(zip(LETTERS, choices, strict=False))
    else:
        return None
    found = {letter: _normal(str(text)) for letter, text in pairs}
    return found if found and set(found) <= set(LETTERS) and all(found.values()) else None


def _alike(slot: set[str], options: Mapping[str, str]) -> bool:
    """Whether the letters of a slot are options of one and the same text."""
    return len({options.get(letter, letter) for letter in slot}) == 1


def _slots(answer: str, options: Mapping[str, str]) -> list[set[str]] | str:
    """The letters of every place that states an answer, or why there is none to trust."""
    if len(answer) > LONGEST:
        return f"the answer has more than {LONGEST} characters"
    plain = answer.translate(WIDE)
    boxes = _boxes(plain)
    if boxes is None:
        return "the last box is not closed"
    if len(boxes) > MOST_SLOTS:
        return f"the answer has more than {MOST_SLOTS} boxes"
    slots = [_stated(content, options) for content in boxes]
    if boxes and not slots[-1]:
        return f"the last box holds no letter: {shown(boxes[-1])!r}"
    text = _unwrapped(plain)
    cues = [cue.end() for cue in islice(CUE.finditer(text), MOST_SLOTS + 1)]
    if len(cues) > MOST_SLOTS:
        return f"an answer is announced more than {MOST_SLOTS} times"
    slots += [_announced(text, at, options) for at in cues]
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    slots += [_alone(line) for line in {line for line in lines if len(line) <= 5}]
    if len(lines) == 1 or (lines and options and not any(slots)):
        stated = [_stated(line, options) for line in lines[-LAST_LINES:]]
        slots += [stated[-1]] if not any(stated[:-1]) else []  # more than one: the options are listed
    return [slot for slot in slots if slot]


def _boxes(text: str) -> list[str] | None:
    """The contents of the outermost boxes, or None where the last one never closes."""
    found: list[str] = []
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
            found.append(text[start : mark.start()])
            start = -1
    return found if start < 0 else None


def _unwrapped(text: str) -> str:
    """Without Markdown's and LaTeX's marks, which may stand around a letter."""
    return WRAPPER.sub("", TAG.sub("\n", text).translate(MARKS))


def _stated(content: str, options: Mapping[str, str]) -> set[str]:
    """The letters of a text that is nothing but an answer: letters, an option's text, or a letter and its text."""
    text = _unwrapped(content[:MOST_LINE]).replace("{", "").replace("}", "").strip()
    letters = _alone(text)
    if letters:
        return letters
    labelled = LABELLED.fullmatch(text)
    if not labelled:
        return _by_text(text, options)
    letter = set(re.findall("[A-J]", labelled[1].upper()))
    rest = _unwrapped(labelled[2]).strip(" ()")
    if LIST.match(rest) and not options:
        return letter | set(re.findall("[A-J]", rest))
    other = _by_text(rest, options)
    return letter if not other or letter & other else letter | other


def _alone(text: str) -> set[str]:
    """The letters of a text that is letters only: "B", "(b).", "A or C", "BD"."""
    bare = text.strip().rstrip(".:;!,").strip()
    if len(bare) == 2 and bare[1] == ")":
        bare = bare[0]
    if len(bare) == 1:
        bare = bare.upper()
    if LIST.fullmatch(bare) or RUN.fullmatch(bare):
        return {char.upper() for char in re.sub(r"\b(?:or|and)\b", "", bare) if char.upper() in LETTERS}
    return set()


def _announced(text: str, at: int, options: Mapping[str, str]) -> set[str]:
    """The letters that stand at `at`, right behind an announcement, or the option whose text does."""
    found = LIST.match(text, at) or RUN.match(text, at) or SMALL.match(text, at)
    line = text[at : at + MOST_LINE].partition("\n")[0]
    if not found:
        return _by_text(line, options)
    if PROSE.match(text, at) and not GOES_ON.match(text, at):
        return set()
    letters = {char for char in re.sub(r"\b(?:or|and)\b", "", found[0]).upper() if char in LETTERS}
    labelled = LABELLED.match(line)
    other = _by_text(labelled[2], options) if labelled else set()
    return letters if not other or letters & other else letters | other


def _by_text(text: str, options: Mapping[str, str]) -> set[str]:
    wanted = _normal(_unwrapped(text).replace("{", "").replace("}", ""))
    return {letter for letter, option in options.items() if option == wanted}


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".。 ")
