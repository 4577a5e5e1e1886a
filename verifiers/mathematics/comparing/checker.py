"""Comparing an answer with a gold answer, both as text."""

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
"""Commands that hide or strike out what they hold, which algebra would read."""
TAKEN_BACK = re.compile(
    r"\b(?:yes|no|true|false|maybe|perhaps|possibly|actually|or|unless|depend\w*|but)\b|是|否|或", re.IGNORECASE
)
"""After a yes or no, words that leave it open."""
EITHER = re.compile(r"\bor\b|或|还是", re.IGNORECASE)
SPLIT = re.compile(r"\s*(?:,|;|\band\b|\bor\b|和|或|、)\s*")


def equal(answer: str, gold: str, rules: Rules) -> bool | None:
    """Whether `answer` is the answer that `gold` is; None where algebra is needed that is not done here.

    Pure, and bounded in time by the lengths of both, which are read up to a limit.
    """
    left, right = _plain(answer), _plain(gold)
    if left is not None and right is not None:
        return left == right
    one, other = read(answer), read(gold)
    if one.text == other.text or squeezed(one.text) == squeezed(other.text):
        return True
    try:
        found = _same_moment(one.plain, other.plain)
        found = _same_choice(one, other, rules) if found is None else found
        found = _same_words(one, other, rules) if found is None else found
        return _same_mathematics(one, other, rules) if found is None else found
    except RecursionError:
        return False  # deeper than any answer to a problem


def _plain(text: str) -> Fraction | int | None:
    """The value of a whole number or fraction written in the plainest way, as most answers are; None for all else."""
    found = PLAIN.fullmatch(text)
    if found is None:
        return None
    if found["whole"]:
        return int(found["whole"])
    under = int(found["under"] or found["below"])
    value = Fraction(int(found["over"] or found["above"]), under) if under else None
    return -value if value is not None and found["sign"] else value


def _same_moment(one: str, other: str) -> bool | None:
    """Times of the day and dates; a date is no sum, but a time may be a ratio or an amount."""
    left, right = moment(one), moment(other)
    if left is None or right is None:
        return False if "date" in (left or right or ()) else None
    return agree(left, right)


def _same_choice(one: Reading, other: Reading, rules: Rules) -> bool | None:
    """Where the gold answer, or the answer, names a choice."""
    if other.letter:
        if one.letter:
            return one.letter == other.letter if other.plain.isupper() or not one.nodes else None
        if one.label:
            return one.label[0] == other.letter
        return False if one.letters else None
    if other.label and (one.letter or one.label):
        return one.letter == other.label[0] if one.letter else one.label is not None and one.label[0] == other.label[0]
    if other.label:
        return equal(one.text, other.label[1], rules)
    if one.label:
        return equal(one.label[1], other.text, rules)
    if other.letters and one.letters:
        return one.letters == other.letters
    return None


def _same_words(one: Reading, other: Reading, rules: Rules) -> bool | None:
    """Where one of them is words, which are compared as words and never as products of letters."""
    if one.words and other.words:
        if one.words == other.words:
            return True
        if other.words in ("yes", "no") and one.plain.casefold().startswith(f"{other.plain.casefold()},"):
            return not TAKEN_BACK.search(one.plain[len(other.plain) :])
        if _may_be_product(one) and _may_be_product(other):
            return None
        return _same_parts(one, other)
    if one.words and not other.words:
        return _words_for(one, other, rules)
    if other.words and not one.words:
        return _words_for(other, one, rules)
    return None


def _same_parts(one: Reading, other: Reading) -> bool:
    """Lists of words in any order; "or" leaves open which of them, and "and" does not."""
    if bool(EITHER.search(one.plain)) != bool(EITHER.search(other.plain)):
        return False
    left, right = (sorted(read(part).words for part in SPLIT.split(side.plain.casefold())) for side in (one, other))
    return len(left) > 1 and left == right


def _may_be_product(side: Reading) -> bool:
    """Whether letters may be variables: one or two, or three of those that variables are called by."""
    compact = side.text.replace(" ", "")
    return bool(side.nodes) and (len(compact) <= 2 or (len(compact) == 3 and set(compact) <= set("abcxyz")))


def _words_for(words: Reading, rest: Reading, rules: Rules) -> bool | None:
    """Words against mathematics: "no solution" for the empty set, "twelve" for 12."""
    meant = MEANINGS.get(words.words, ())
    if words.words.isascii() and words.words.isdigit():
        meant = (number(int(words.words)),)
    if meant and rest.nodes:
        return any(same(node, other, rules) is True for node in meant for other in rest.nodes)
    return None if words.nodes else False


def _same_mathematics(one: Reading, other: Reading, rules: Rules) -> bool | None:
    if not one.nodes or not other.nodes:
        return _unread(one, other)
    verdicts = [same(node, gold, rules) for node, gold in _pairs(one.nodes, other.nodes)]
    return True if True in verdicts else None if None in verdicts else False


def _pairs(answers: Sequence[Node], golds: Sequence[Node]) -> list[tuple[Node, Node]]:
    """Readings to compare; where both texts have a comma that may group digits, it does so in both or in neither."""
    if len(answers) < 2 or len(golds) < 2:
        return [(answer, gold) for answer in answers for gold in golds]
    pairs = list(zip(answers, golds, strict=True))
    return pairs if answers[0].kind in ("set", "tuple", "list") else pairs[:1]


def _unread(one: Reading, other: Reading) -> bool | None:
    """Where one of them is no mathematics that is read here: algebra may read it, unless it is prose."""
    if not one.nodes and not other.nodes:
        return squeezed(one.plain.casefold()) == squeezed(other.plain.casefold()) or (
            None if _is_latex(one) and _is_latex(other) else False
        )
    unread = one if not one.nodes else other
    return None if _is_latex(unread) else False


def _is_latex(side: Reading) -> bool:
    """Whether the text has commands of LaTeX, and no words beside them."""
    commands = re.sub(r"\\[a-zA-Z]+", "", side.text)
    if HIDING.search(side.text):
        return False
    return "\\" in side.text and not re.search(r"[A-Za-z]{4,}", commands) and not re.search(r"[㐀-鿿]", commands)
