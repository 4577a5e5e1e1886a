"""Compares an answer with a gold answer, both as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from qwq_rl.verifiers.mathematics.comparing.comparison import Rules, same
from qwq_rl.verifiers.mathematics.reading.answer import Reading, read, squeezed
from qwq_rl.verifiers.mathematics.reading.moments import agree, moment
from qwq_rl.verifiers.mathematics.reading.node import EMPTY, INFINITY, REALS, Node, number

MEANINGS: dict[str, tuple[Node, ...]] = {
    "nothing": (EMPTY,),
    "everything": (REALS, Node("sym", (), "ℝ")),
    "infinite": (INFINITY,),
}
PLAIN = re.compile(
    r"(?P<whole>-?\d{1,60})|(?P<sign>-?)(?:\\[dt]?frac\{(?P<over>\d{1,60})\}\{(?P<under>\d{1,60})\}|(?P<above>\d{1,60})/(?P<below>\d{1,60}))",
    re.ASCII,
)
HIDING = re.compile(
    r"\\(?:[hv]?phantom|[bx]?cancel|cancelto|sout|not|label|tag|(?:eq)?ref|cite|(?:text)?color|[hv]space|href|url|"
    r"footnote|def|let|newcommand|if\w*|verb|input|include|iffalse|llap|rlap|smash|overwrite|st)(?![a-z])"
)
"""Commands that hide or strike out their content. Such a text never goes to algebra, which would read the content."""
TAKEN_BACK = re.compile(
    r"\b(?:yes|no|true|false|maybe|perhaps|possibly|actually|or|unless|depend\w*|but)\b|是|否|或", re.IGNORECASE
)
"""Words after a yes or no that leave the answer open."""
EITHER = re.compile(r"\bor\b|或|还是", re.IGNORECASE)
SPLIT = re.compile(r"\s*(?:,|;|\band\b|\bor\b|和|或|、)\s*")


def equal(answer: str, gold: str, rules: Rules) -> bool | None:
    """Whether `answer` is the same answer as `gold`. None if this needs algebra that is not done here.

    A pure function. Its time is bounded by the lengths of both texts, which are read up to a limit.
    """
    answer_value, gold_value = _plain_value(answer), _plain_value(gold)
    if answer_value is not None and gold_value is not None:
        return answer_value == gold_value
    answer_reading, gold_reading = read(answer), read(gold)
    if answer_reading.text == gold_reading.text or squeezed(answer_reading.text) == squeezed(gold_reading.text):
        return True
    try:
        # The narrow meanings first: `B` or `3:30` would also read as a variable or a ratio.
        result = _same_moment(answer_reading.plain, gold_reading.plain)
        result = _same_choice(answer_reading, gold_reading, rules) if result is None else result
        result = _same_words(answer_reading, gold_reading, rules) if result is None else result
        return _same_mathematics(answer_reading, gold_reading, rules) if result is None else result
    except RecursionError:
        return False  # deeper than any answer to a problem


def _plain_value(text: str) -> Fraction | int | None:
    """The value of a whole number or fraction in the plainest notation, as most answers are; None for all else."""
    match = PLAIN.fullmatch(text)
    if match is None:
        return None
    if match["whole"]:
        return int(match["whole"])
    denominator = int(match["under"] or match["below"])
    value = Fraction(int(match["over"] or match["above"]), denominator) if denominator else None
    return -value if value is not None and match["sign"] else value


def _same_moment(answer: str, gold: str) -> bool | None:
    """Compare times of the day and dates.

    A date cannot be a number or a calculation, so a date and any other text differ. A time may be a ratio or an amount.
    """
    answer_moment, gold_moment = moment(answer), moment(gold)
    if answer_moment is None or gold_moment is None:
        return False if "date" in (answer_moment or gold_moment or ()) else None
    return agree(answer_moment, gold_moment)


def _same_choice(answer: Reading, gold: Reading, rules: Rules) -> bool | None:
    """Compare the letters of choices, if the answer or the gold answer has one."""
    if gold.letter:
        if answer.letter:
            return answer.letter == gold.letter if gold.plain.isupper() or not answer.nodes else None
        if answer.label:
            return answer.label[0] == gold.letter
        return False if answer.letters else None
    if gold.label and (answer.letter or answer.label):
        return (
            answer.letter == gold.label[0]
            if answer.letter
            else answer.label is not None and answer.label[0] == gold.label[0]
        )
    if gold.label:
        return equal(answer.text, gold.label[1], rules)
    if answer.label:
        return equal(answer.label[1], gold.text, rules)
    if gold.letters and answer.letters:
        return answer.letters == gold.letters
    return None


def _same_words(answer: Reading, gold: Reading, rules: Rules) -> bool | None:
    """Compare words as words, never as products of letters. None if neither side is words."""
    if answer.words and gold.words:
        if answer.words == gold.words:
            return True
        if gold.words in ("yes", "no") and answer.plain.casefold().startswith(f"{gold.plain.casefold()},"):
            return not TAKEN_BACK.search(answer.plain[len(gold.plain) :])
        if _may_be_product(answer) and _may_be_product(gold):
            return None
        return _same_parts(answer, gold)
    if answer.words and not gold.words:
        return _same_words_and_formula(answer, gold, rules)
    if gold.words and not answer.words:
        return _same_words_and_formula(gold, answer, rules)
    return None


def _same_parts(answer: Reading, gold: Reading) -> bool:
    """Compare lists of words in any order.

    With "or" it stays open which of them is meant, with "and" it does not, so both sides must have the same of the two.
    """
    if bool(EITHER.search(answer.plain)) != bool(EITHER.search(gold.plain)):
        return False
    answer_parts, gold_parts = (
        sorted(read(part).words for part in SPLIT.split(reading.plain.casefold())) for reading in (answer, gold)
    )
    return len(answer_parts) > 1 and answer_parts == gold_parts


def _may_be_product(reading: Reading) -> bool:
    """Whether the letters may be variables: one or two letters, or three of the usual names of variables."""
    compact = reading.text.replace(" ", "")
    return bool(reading.nodes) and (len(compact) <= 2 or (len(compact) == 3 and set(compact) <= set("abcxyz")))


def _same_words_and_formula(words: Reading, formula: Reading, rules: Rules) -> bool | None:
    """Compare words with mathematics: "no solution" with the empty set, "twelve" with 12."""
    meanings = MEANINGS.get(words.words, ())
    if words.words.isascii() and words.words.isdigit():
        meanings = (number(int(words.words)),)
    if meanings and formula.nodes:
        return any(same(meaning, node, rules) is True for meaning in meanings for node in formula.nodes)
    return None if words.nodes else False


def _same_mathematics(answer: Reading, gold: Reading, rules: Rules) -> bool | None:
    if not answer.nodes or not gold.nodes:
        return _same_if_unread(answer, gold)
    verdicts = [same(answer_node, gold_node, rules) for answer_node, gold_node in _pairs(answer.nodes, gold.nodes)]
    return True if True in verdicts else None if None in verdicts else False


def _pairs(answers: Sequence[Node], golds: Sequence[Node]) -> list[tuple[Node, Node]]:
    """The pairs of readings to compare.

    If both texts have a comma that may group digits, it does so in both or in neither.
    """
    if len(answers) < 2 or len(golds) < 2:
        return [(answer, gold) for answer in answers for gold in golds]
    pairs = list(zip(answers, golds, strict=True))
    return pairs if answers[0].kind in ("set", "tuple", "list") else pairs[:1]


def _same_if_unread(answer: Reading, gold: Reading) -> bool | None:
    """Compare two texts of which at least one cannot be read as mathematics.

    None if that one is LaTeX, which math-verify may be able to read. False if it is prose.
    """
    if not answer.nodes and not gold.nodes:
        return squeezed(answer.plain.casefold()) == squeezed(gold.plain.casefold()) or (
            None if _is_latex(answer) and _is_latex(gold) else False
        )
    unread = answer if not answer.nodes else gold
    return None if _is_latex(unread) else False


def _is_latex(reading: Reading) -> bool:
    """Whether the text has LaTeX commands that hide nothing, and no words beside them."""
    rest = re.sub(r"\\[a-zA-Z]+", "", reading.text)
    if HIDING.search(reading.text):
        return False
    return "\\" in reading.text and not re.search(r"[A-Za-z]{4,}", rest) and not re.search(r"[㐀-鿿]", rest)
