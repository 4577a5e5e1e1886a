"""Constraints on the text of an answer: case, words, what it contains, starts and ends with."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from qwq_rl.errors import did_you_mean
from qwq_rl.verifiers.contract import Problem, Response, Verdict, Verifier
from qwq_rl.verifiers.verdicts import bad_reference, empty_answer, shown

Rule = Mapping[str, Any]


def constraints() -> Verifier:
    """A verifier: the answer holds every constraint of the reference, `{"all": [{"kind": ..., ...}, ...]}`.

    Kinds: `upper`, `lower`, `no_repeat`; `words`, `min_words`, `max_words` with `count`; `contains`, `forbid`,
    `starts_with`, `ends_with` with `text` or `any` (a list of texts); `repeat` with `text` and `count`. A word is what
    stands between white space and has a letter or a digit. Texts match whole words; only `forbid` ignores case.
    The score is 1 where all hold, else 0; the metric `held` is the share that holds.
    """
    return _verify


def words(text: str) -> list[str]:
    """The words of `text`: what stands between white space and has a letter or a digit."""
    return [word for word in text.split() if any(char.isalnum() for char in word)]


def _upper(text: str, rule: Rule) -> str:
    return "" if text.isupper() else _cased(text, str.islower, "upper")


def _lower(text: str, rule: Rule) -> str:
    return "" if text.islower() else _cased(text, str.isupper, "lower")


def _cased(text: str, other: Callable[[str], bool], wanted: str) -> str:
    offender = next((word for word in text.split() if any(map(other, word))), None)
    return f"{shown(offender)!r} is not {wanted} case" if offender else f"has no letter, {wanted} case was asked"


def _words(text: str, rule: Rule) -> str:
    return _counted(text, f"{rule['count']} were asked") if len(words(text)) != rule["count"] else ""


def _min_words(text: str, rule: Rule) -> str:
    return _counted(text, f"at least {rule['count']} were asked") if len(words(text)) < rule["count"] else ""


def _max_words(text: str, rule: Rule) -> str:
    return _counted(text, f"at most {rule['count']} were asked") if len(words(text)) > rule["count"] else ""


def _counted(text: str, asked: str) -> str:
    number = len(words(text))
    return f"has {number} word{'' if number == 1 else 's'}, {asked}"


def _contains(text: str, rule: Rule) -> str:
    return "" if any(_found(one, text) for one in _texts(rule)) else f"does not contain {_asked(rule)}"


def _forbid(text: str, rule: Rule) -> str:
    offender = next((one for one in _texts(rule) if _found(one, text, re.IGNORECASE)), None)
    return f"contains {offender!r}, which is forbidden" if offender else ""


def _starts_with(text: str, rule: Rule) -> str:
    starts = any(re.match(_pattern(one), text) for one in _texts(rule))
    return "" if starts else f"starts with {shown(text, 20)!r}, {_asked(rule)} was asked"


def _ends_with(text: str, rule: Rule) -> str:
    ends = any(re.search(_pattern(one) + r"\Z", text) for one in _texts(rule))
    return "" if ends else f"ends with {shown(text[-20:], 20)!r}, {_asked(rule)} was asked"


def _repeat(text: str, rule: Rule) -> str:
    wanted = " ".join([" ".join(rule["text"].split())] * rule["count"])
    return "" if " ".join(text.split()) == wanted else f"is not {rule['text']!r} written {rule['count']} times"


def _no_repeat(text: str, rule: Rule) -> str:
    """No word directly after itself, and no two words in a row that came before."""
    found = [word.casefold() for word in words(text)]
    pairs = Counter(pairwise(found))
    twice = next((pair for pair, times in pairs.items() if times > 1 or pair[0] == pair[1]), None)
    return f"repeats {' '.join(twice)!r}" if twice else ""


KINDS: Mapping[str, tuple[Callable[[str, Rule], str], tuple[str, ...]]] = {
    "upper": (_upper, ()),
    "lower": (_lower, ()),
    "no_repeat": (_no_repeat, ()),
    "words": (_words, ("count",)),
    "min_words": (_min_words, ("count",)),
    "max_words": (_max_words, ("count",)),
    "contains": (_contains, ("text | any",)),
    "forbid": (_forbid, ("text | any",)),
    "starts_with": (_starts_with, ("text | any",)),
    "ends_with": (_ends_with, ("text | any",)),
    "repeat": (_repeat, ("text", "count")),
}
"""Kind -> what says how a text fails it (empty: it holds), and the parameters it needs."""


def mistake(reference: Any) -> str:
    """What is wrong with a reference of `constraints`, or an empty string."""
    rules = reference.get("all") if isinstance(reference, Mapping) else None
    if not isinstance(rules, list | tuple) or not rules:
        return 'the reference must be {"all": [{"kind": ...}, ...]} with at least one constraint'
    return next((f"constraint {at}: {what}" for at, rule in enumerate(rules, 1) if (what := _rule_mistake(rule))), "")


def _rule_mistake(rule: Any) -> str:
    kind = rule.get("kind") if isinstance(rule, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        hint = did_you_mean(kind, KINDS, quote="'") or f"; known: {', '.join(KINDS)}"
        return f"unknown kind {kind!r}{hint}"
    given = {name for name, value in rule.items() if name != "kind" and value is not None}
    wanted = KINDS[kind][1]
    allowed = [set(name.split(" | ")) for name in wanted]
    if any(len(given & names) != 1 for names in allowed) or given - set().union(*allowed):
        needs = " and ".join(name.replace(" | ", " or ") for name in wanted) or "no parameter"
        return f"{kind} takes {needs}, it has {', '.join(sorted(given)) or 'none'}"
    return _value_mistake(kind, rule)


def _value_mistake(kind: str, rule: Rule) -> str:
    count = rule.get("count")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        return f"the count of {kind} must be a whole number above 0, not {count!r}"
    texts = rule.get("any", []) if rule.get("text") is None else [rule["text"]]
    if "any" in rule and not texts:
        return f"{kind} needs at least one text in `any`"
    if not isinstance(texts, list | tuple) or not all(isinstance(one, str) and one.strip() for one in texts):
        return f"the texts of {kind} must be strings that are not empty"
    return ""


def _texts(rule: Rule) -> list[str]:
    return [rule["text"]] if rule.get("text") is not None else list(rule["any"])


def _asked(rule: Rule) -> str:
    return " or ".join(repr(one) for one in _texts(rule))


def _pattern(text: str) -> str:
    """`text` where no word goes on at either end: `no` is not in `snow`, `!` is in `go!`."""
    start = r"(?<!\w)" if re.match(r"\w", text) else ""
    return start + re.escape(text) + (r"(?!\w)" if re.search(r"\w\Z", text) else "")


def _found(text: str, within: str, flags: re.RegexFlag = re.NOFLAG) -> bool:
    return re.search(_pattern(text), within, flags) is not None


def _verify(problem: Problem, response: Response) -> Verdict:
    reference = problem.get("reference")
    wrong_reference = mistake(reference)
    if wrong_reference:
        return bad_reference(wrong_reference)
    answer = response.answer.strip()
    if not answer:
        return empty_answer(response)
    assert isinstance(reference, Mapping)
    failures = [KINDS[rule["kind"]][0](answer, rule) for rule in reference["all"]]
    failed = [failure for failure in failures if failure]
    held = {"held": 1 - len(failed) / len(failures)}
    if failed:
        return Verdict(0.0, "wrong", f"the answer {'; '.join(failed)}", answer, held)
    return Verdict(1.0, "correct", f"holds all {len(failures)} constraints", answer, held)
