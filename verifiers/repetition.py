"""Texts that repeat themselves, and loops that a response ends in."""

from __future__ import annotations

import re

from qwq_rl.verifiers.contract import Problem, Response, Verdict, Verifier
from qwq_rl.verifiers.outcomes import empty_answer, shown
from qwq_rl.verifiers.roles import count, placed, role_of, share

UNIT = re.compile(r"[぀-ヿ㐀-䶿一-鿿豈-﫿]|[^\W぀-ヿ㐀-䶿一-鿿豈-﫿]{1,20}|[^\w\s]")
"""A word of at most 20 letters, a Chinese or Japanese character, or a symbol."""
LONGEST = 400_000
"""Characters of a text that are judged, the last ones: more than 100,000 tokens."""
TAIL = 20_000
LOOP_TIMES, LOOP_CHARACTERS = 5, 200


def repetition(n: int = 12, allowed: float = 0.2, most: float = 1.0) -> Verifier:
    """A verifier of role penalty: how much of the reasoning or of the answer, whichever is worse, repeats itself.

    A text is cut into units: words, Chinese and Japanese characters, symbols. With g runs of `n` units in a row, of
    which d are distinct, r = 1 - d / g; a text of fewer than 4 n units has r = 0. A text that ends in a loop, 5 times
    or more the same characters and 200 characters in all, has r = 1. The excess is e = max(0, (r - allowed) / (1 -
    allowed)), the penalty -`most` * e, the score 1 - e, the gate 1 where e = 0. Raises UserError for values out of
    range.
    """
    count("n", n)
    share("most", most)
    free = min(share("allowed", allowed), 0.999)

    def verify(problem: Problem, response: Response) -> Verdict:
        role = role_of(problem, "penalty")
        if role != "penalty" and not response.answer.strip():
            return empty_answer(response)
        parts = {"reasoning": response.reasoning, "answer": response.answer}
        measured = {name: _repeated(text[-LONGEST:], n) for name, text in parts.items()}
        worst = max(measured, key=lambda name: measured[name][0])
        repeated, reason = measured[worst]
        excess = max(0.0, (repeated - free) / (1 - free))
        metrics = {name: one for name, (one, _) in measured.items()}
        text = f"the {worst} {reason}"
        return placed(role, 1 - excess, passes=not excess, most=most, reason=text, metrics=metrics)

    return verify


def _repeated(text: str, n: int) -> tuple[float, str]:
    """r and the reason."""
    loop, times = final_loop(text)
    if loop:
        return 1.0, f"ends in a loop: {shown(loop)!r} {times} times"
    r = repeated_share(text, n)
    return r, f"has {r:.0%} of its runs of {n} words a second time" if r else "does not repeat itself"


def repeated_share(text: str, n: int) -> float:
    """The share of runs of `n` units that came before in `text`, 0 where it has fewer than 4 n units."""
    numbers: dict[str, int] = {}
    units = "".join(chr(numbers.setdefault(unit, len(numbers))) for unit in UNIT.findall(text))
    if len(units) < 4 * n:
        return 0.0
    runs = len(units) - n + 1
    return 1 - len({units[at : at + n] for at in range(runs)}) / runs


def final_loop(text: str) -> tuple[str, int]:
    """What `text` repeats at its end and how often, or ("", 0); the last `TAIL` characters decide.

    A cut-off repeat counts as a part of the loop; a loop of white space or of one single symbol that no letter or digit
    joins, such as a ruler, is none below 1,000 characters.
    """
    tail = text.rstrip()[-TAIL:]
    period, length = _period(tail[::-1])
    if not period or length < LOOP_CHARACTERS or length < LOOP_TIMES * period:
        return "", 0
    loop = tail[len(tail) - length :][:period]
    if length < 1000 and not any(char.isalnum() for char in loop):
        return "", 0
    return loop, length // period


def _period(text: str) -> tuple[int, int]:
    """The period and the length of the longest prefix of `text` that repeats itself most, by the Z-function."""
    size = len(text)
    z = [0] * size
    left = right = 0
    best, best_length = 0, 0
    for at in range(1, size):
        if at < right:
            z[at] = min(right - at, z[at - left])
        while at + z[at] < size and text[z[at]] == text[at + z[at]]:
            z[at] += 1
        if at + z[at] > right:
            left, right = at, at + z[at]
        if z[at] >= (LOOP_TIMES - 1) * at and at + z[at] > best_length:
            best, best_length = at, at + z[at]
    return best, best_length
