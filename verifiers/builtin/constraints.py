"""Constraints on the text of an answer: case, number of words, what it contains, and how it starts and ends."""

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
"""One constraint of a reference: its `kind` and its parameters."""


def constraints() -> Verifier:
    """A verifier: the answer meets every constraint of the reference, `{"all": [{"kind": ..., ...}, ...]}`.

    Kinds: `upper`, `lower`, `no_repeat`; `words`, `min_words`, `max_words` with `count`; `contains`, `forbid`,
    `starts_with`, `ends_with` with `text` or `any` (a list of texts); `repeat` with `text` and `count`. A word stands
    between white space and has a letter or a digit. Texts match whole words; only `forbid` ignores case. The score is 1
    if all constraints hold, else 0. The metric `held` is the share of constraints that hold.
    """
    return _verify


def words(text: str) -> list[str]:
    """The words of `text`. A word stands between white space and has a letter or a digit."""
    return [word for word in text.split() if any(char.isalnum() for char in word)]


def _upper(text: str, rule: Rule) -> str:
    return "" if text.isupper() else _case_failure(text, str.islower, "upper")


def _lower(text: str, rule: Rule) -> str:
    return "" if text.islower() else _case_failure(text, str.isupper, "lower")


def _case_failure(text: str, is_other_case: Callable[[str], bool], case: str) -> str:
    offender = next((word for word in text.split() if any(map(is_other_case, word))), None)
    return f"{shown(offender)!r} is not {case} case" if offender else f"has no letter, {case} case was asked"


def _words(text: str, rule: Rule) -> str:
    return _count_failure(text, f"{rule['count']} were asked") if len(words(text)) != rule["count"] else ""


def _min_words(text: str, rule: Rule) -> str:
    return _count_failure(text, f"at least {rule['count']} were asked") if len(words(text)) < rule["count"] else ""


def _max_words(text: str, rule: Rule) -> str:
    return _count_failure(text, f"at most {rule['count']} were asked") if len(words(text)) > rule["count"] else ""


def _count_failure(text: str, requirement: str) -> str:
    word_count = len(words(text))
    return f"has {word_count} word{'' if word_count == 1 else 's'}, {requirement}"


def _contains(text: str, rule: Rule) -> str:
    return "" if any(_occurs(phrase, text) for phrase in _texts(rule)) else f"does not contain {_quoted_texts(rule)}"


def _forbid(text: str, rule: Rule) -> str:
    offender = next((phrase for phrase in _texts(rule) if _occurs(phrase, text, re.IGNORECASE)), None)
    return f"contains {offender!r}, which is forbidden" if offender else ""


def _starts_with(text: str, rule: Rule) -> str:
    starts = any(re.match(_pattern(phrase), text) for phrase in _texts(rule))
    return "" if starts else f"starts with {shown(text, 20)!r}, {_quoted_texts(rule)} was asked"


def _ends_with(text: str, rule: Rule) -> str:
    ends = any(re.search(_pattern(phrase) + r"\Z", text) for phrase in _texts(rule))
    return "" if ends else f"ends with {shown(text[-20:], 20)!r}, {_quoted_texts(rule)} was asked"


def _repeat(text: str, rule: Rule) -> str:
    expected = " ".join([" ".join(rule["text"].split())] * rule["count"])
    return "" if " ".join(text.split()) == expected else f"is not {rule['text']!r} written {rule['count']} times"


def _no_repeat(text: str, rule: Rule) -> str:
    """No word may follow itself, and no two words in a row may occur again."""
    folded_words = [word.casefold() for word in words(text)]
    pairs = Counter(pairwise(folded_words))
    repeated = next((pair for pair, number in pairs.items() if number > 1 or pair[0] == pair[1]), None)
    return f"repeats {' '.join(repeated)!r}" if repeated else ""


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
"""Kind -> a function that says how a text breaks the constraint (empty if it does not), and the parameters it needs."""


def mistake(reference: Any) -> str:
    """What is wrong with a reference of `constraints`; empty if nothing is."""
    rules = reference.get("all") if isinstance(reference, Mapping) else None
    if not isinstance(rules, list | tuple) or not rules:
        return 'the reference must be {"all": [{"kind": ...}, ...]} with at least one constraint'
    return next(
        (f"constraint {number}: {problem}" for number, rule in enumerate(rules, 1) if (problem := _rule_mistake(rule))),
        "",
    )


def _rule_mistake(rule: Any) -> str:
    kind = rule.get("kind") if isinstance(rule, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        hint = did_you_mean(kind, KINDS, quote="'") or f"; known: {', '.join(KINDS)}"
        return f"unknown kind {kind!r}{hint}"
    given_names = {name for name, value in rule.items() if name != "kind" and value is not None}
    parameters = KINDS[kind][1]
    alternatives = [set(name.split(" | ")) for name in parameters]
    # Exactly one of `text` and `any`, and nothing that the kind does not take.
    if any(len(given_names & names) != 1 for names in alternatives) or given_names - set().union(*alternatives):
        needed = " and ".join(name.replace(" | ", " or ") for name in parameters) or "no parameter"
        return f"{kind} takes {needed}, it has {', '.join(sorted(given_names)) or 'none'}"
    return _value_mistake(kind, rule)


def _value_mistake(kind: str, rule: Rule) -> str:
    count = rule.get("count")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        return f"the count of {kind} must be a whole number above 0, not {count!r}"
    texts = rule.get("any", []) if rule.get("text") is None else [rule["text"]]
    if "any" in rule and not texts:
        return f"{kind} needs at least one text in `any`"
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text.strip() for text in texts):
        return f"the texts of {kind} must be strings that are not empty"
    return ""


def _texts(rule: Rule) -> list[str]:
    return [rule["text"]] if rule.get("text") is not None else list(rule["any"])


def _quoted_texts(rule: Rule) -> str:
    return " or ".join(repr(text) for text in _texts(rule))


def _pattern(text: str) -> str:
    """A regular expression for `text` as whole words: `no` is not found in `snow`, but `!` is found in `go!`."""
    start = r"(?<!\w)" if re.match(r"\w", text) else ""
    return start + re.escape(text) + (r"(?!\w)" if re.search(r"\w\Z", text) else "")


def _occurs(text: str, whole_text: str, flags: re.RegexFlag = re.NOFLAG) -> bool:
    return re.search(_pattern(text), whole_text, flags) is not None


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
    messages = [failure for failure in failures if failure]
    metrics = {"held": 1 - len(messages) / len(failures)}
    if messages:
        return Verdict(0.0, "wrong", f"the answer {'; '.join(messages)}", answer, metrics)
    return Verdict(1.0, "correct", f"holds all {len(failures)} constraints", answer, metrics)
