"""Texts that repeat themselves, and loops that a response ends in."""

from __future__ import annotations

import re

from qwq_rl.verifiers.builtin.roles import count, placed, role_of, share
from qwq_rl.verifiers.contract import Problem, Response, Verdict, Verifier, run_as
from qwq_rl.verifiers.verdicts import empty_answer, shown

CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
UNIT = re.compile(rf"[{CJK}]|[^\W{CJK}]{{1,20}}|-+|=+|\*+|#+|~+|\.+|[^\w\s]")
"""A word of at most 20 letters, a Chinese or Japanese character, a ruler, or another symbol."""
LONGEST = 400_000
"""Characters of a text that are judged, the last ones: more than 100,000 tokens."""
LOOP_TIMES, LOOP_CHARACTERS, LOOP_SYMBOLS = 5, 200, 1000
SUFFIX, CANDIDATES = 40, 500
"""The last characters, whose earlier places suggest a period, and how many of these are tried."""


@run_as("inline")
def repetition(n: int = 20, allowed: float = 0.3, most: float = 1.0) -> Verifier:
    """A verifier of role penalty: how much of the reasoning or of the answer, whichever is worse, repeats itself.

    A text is cut into units: words, Chinese and Japanese characters, symbols. With g runs of `n` units in a row, of
    which d are distinct, r = 1 - d / g; a text of fewer than 4 n units has r = 0. A text that ends in a loop, 5 times
    or more the same characters and 200 characters in all (see `final_loop`), has r = 1. The excess is
    e = max(0, (r - allowed) / (1 - allowed)), the penalty -`most` * e, the score 1 - e, the gate 1 where e = 0. Raises
    UserError for values out of range. By the defaults 2 of the 500 published solutions of MATH-500 exceed what is
    allowed, by 0.14 and 0.05.
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

    verify.largest_penalty = most  # type: ignore[attr-defined]
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
    """What `text` repeats at its end, and how often, or ("", 0).

    A loop is at least `LOOP_TIMES` times the same characters, at least `LOOP_CHARACTERS` of them in all, or
    `LOOP_SYMBOLS` where it has no letter or digit, as a ruler has none. The last repeat may be cut off anywhere.
    """
    text = text.rstrip()
    if len(text) < LOOP_CHARACTERS:
        return "", 0
    suffix = text[-SUFFIX:]
    at = len(text) - len(suffix)
    for _ in range(CANDIDATES):
        at = text.rfind(suffix, 0, at + len(suffix) - 1)
        period = len(text) - len(suffix) - at
        if at < 0 or period * LOOP_TIMES > len(text):
            break
        loop = text[-period:]
        if text.endswith(loop * LOOP_TIMES):
            length = _looped(text, period)
            least = LOOP_CHARACTERS if any(char.isalnum() for char in loop) else LOOP_SYMBOLS
            return (loop, length // period) if length >= least else ("", 0)
    return "", 0


def _looped(text: str, period: int) -> int:
    """How many characters at the end of `text` repeat with this period."""
    start = len(text) - period
    while start >= period and text[start - period : start] == text[start : start + period]:
        start -= period
    return len(text) - start
