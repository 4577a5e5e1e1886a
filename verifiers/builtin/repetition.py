"""Finds texts that repeat themselves, and loops in which a response ends."""

from __future__ import annotations

import re

from qwq_rl.verifiers.builtin.roles import count, placed, role_of, share
from qwq_rl.verifiers.contract import Problem, Response, Verdict, Verifier, run_as
from qwq_rl.verifiers.verdicts import empty_answer, shown

CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
UNIT = re.compile(rf"[{CJK}]|[^\W{CJK}]{{1,20}}|-+|=+|\*+|#+|~+|\.+|[^\w\s]")
"""A word of at most 20 letters, a Chinese or Japanese character, a ruler (such as `-----`), or another symbol."""
LONGEST = 400_000
"""Only so many characters at the end of a text are judged: more than 100,000 tokens."""
LOOP_TIMES, LOOP_CHARACTERS, LOOP_SYMBOLS = 5, 200, 1000
"""See `final_loop`."""
SUFFIX, CANDIDATES = 40, 500
"""How many characters at the end are searched for earlier in the text, and how many of these places are tried."""


@run_as("inline")
def repetition(n: int = 20, allowed: float = 0.3, most: float = 1.0) -> Verifier:
    """A verifier of role penalty: how much the reasoning or the answer, whichever is worse, repeats itself.

    A text is cut into units: words, Chinese and Japanese characters, symbols. It has g runs of `n` consecutive units,
    of which d are distinct.

    - Its rate of repetition is r = 1 - d / g.
    - A text of fewer than 4 n units has r = 0.
    - A text that ends in a loop has r = 1: the same characters at least 5 times, 200 characters in all (see
      `final_loop`).

    The excess is e = max(0, (r - allowed) / (1 - allowed)). The penalty is -`most` * e, the score 1 - e, the gate 1 if
    e = 0. Raises UserError for values out of range.

    With the defaults, 2 of the 500 published solutions of MATH-500 exceed what is allowed, by 0.14 and 0.05.
    """
    count("n", n)
    share("most", most)
    allowed_share = min(share("allowed", allowed), 0.999)  # 1 would divide by zero below

    def verify(problem: Problem, response: Response) -> Verdict:
        role = role_of(problem, "penalty")
        if role != "penalty" and not response.answer.strip():
            return empty_answer(response)
        parts = {"reasoning": response.reasoning, "answer": response.answer}
        measured = {name: _measure(text[-LONGEST:], n) for name, text in parts.items()}
        worst = max(measured, key=lambda name: measured[name][0])
        repeated, reason = measured[worst]
        excess = max(0.0, (repeated - allowed_share) / (1 - allowed_share))
        metrics = {name: part_share for name, (part_share, _) in measured.items()}
        text = f"the {worst} {reason}"
        return placed(role, 1 - excess, passes=not excess, most=most, reason=text, metrics=metrics)

    verify.largest_penalty = most  # type: ignore[attr-defined]
    return verify


def _measure(text: str, n: int) -> tuple[float, str]:
    """The rate of repetition of a text, and the reason."""
    loop, times = final_loop(text)
    if loop:
        return 1.0, f"ends in a loop: {shown(loop)!r} {times} times"
    rate = repeated_share(text, n)
    return rate, f"has {rate:.0%} of its runs of {n} words a second time" if rate else "does not repeat itself"


def repeated_share(text: str, n: int) -> float:
    """The share of runs of `n` units that occur earlier in `text`; 0 if it has fewer than 4 n units."""
    numbers: dict[str, int] = {}
    # One character per distinct unit, so that a run of units is a short text, which is quick to slice and hash.
    units = "".join(chr(numbers.setdefault(unit, len(numbers))) for unit in UNIT.findall(text))
    if len(units) < 4 * n:
        return 0.0
    runs = len(units) - n + 1
    return 1 - len({units[start : start + n] for start in range(runs)}) / runs


def final_loop(text: str) -> tuple[str, int]:
    """The characters that `text` repeats at its end and how often, or ("", 0).

    A loop is the same characters at least `LOOP_TIMES` times, and at least `LOOP_CHARACTERS` characters in all, or
    `LOOP_SYMBOLS` if it has no letter or digit, such as a ruler. The last repeat may be cut off anywhere.
    """
    text = text.rstrip()
    if len(text) < LOOP_CHARACTERS:
        return "", 0
    suffix = text[-SUFFIX:]
    position = len(text) - len(suffix)
    for _ in range(CANDIDATES):
        # Each earlier place of the suffix suggests a period: its distance from the end.
        position = text.rfind(suffix, 0, position + len(suffix) - 1)
        period = len(text) - len(suffix) - position
        if position < 0 or period * LOOP_TIMES > len(text):
            break
        loop = text[-period:]
        if text.endswith(loop * LOOP_TIMES):
            length = _loop_length(text, period)
            required = LOOP_CHARACTERS if any(char.isalnum() for char in loop) else LOOP_SYMBOLS
            return (loop, length // period) if length >= required else ("", 0)
    return "", 0


def _loop_length(text: str, period: int) -> int:
    """How many characters at the end of `text` repeat with this period."""
    start = len(text) - period
    while start >= period and text[start - period : start] == text[start : start + period]:
        start -= period
    return len(text) - start
