"""Whether a response stays in one language, by the scripts of its words."""

from __future__ import annotations

from collections import Counter
from typing import Any

from qwq_rl.errors import UserError
from qwq_rl.verifiers.builtin.language import LANGUAGES, words_by_script
from qwq_rl.verifiers.builtin.roles import count, placed, role_of, share
from qwq_rl.verifiers.contract import Problem, Response, Verdict, Verifier, run_as
from qwq_rl.verifiers.verdicts import bad_reference, empty_answer

PROMPT = "prompt"
ACCEPTED = 0.2
"""A script that holds this share of the prompt's words is the prompt's own."""


@run_as("inline")
def language_consistency(
    language: str = PROMPT, threshold: float = 0.8, least_words: int = 10, most: float = 1.0
) -> Verifier:
    """A verifier: the share of words in the expected language, as DeepSeek-R1 rewards it (arXiv 2501.12948).

    The language is the check's reference or else `language`: an ISO 639-1 code, or `prompt` for that of the prompt's
    user messages. Languages are told apart by script, so English and French are not. Reasoning and answer are judged
    each, the lower share counts; one of fewer than `least_words` words is right, as is a prompt without words. What is
    no word is said at `scripts.words_by_script`. Score: the share; gate: 1 from `threshold` on; penalty: `most` times
    the share less one. Raises UserError for an unknown language or a number out of range.
    """
    if language != PROMPT and language not in LANGUAGES:
        raise UserError(_unknown(language))
    share("threshold", threshold), share("most", most), count("least_words", least_words)

    def verify(problem: Problem, response: Response) -> Verdict:
        role = role_of(problem, "score")
        wanted = problem.get("reference") or language
        if wanted != PROMPT and (not isinstance(wanted, str) or wanted not in LANGUAGES):
            return bad_reference(_unknown(wanted))
        if role != "penalty" and not response.answer.strip():
            return empty_answer(response)
        scripts = LANGUAGES[wanted] if wanted != PROMPT else _scripts_of_prompt(problem)
        if not scripts:
            return placed(role, 1.0, passes=True, most=most, reason="the prompt has no words to tell a language by")
        quality, metrics, reason = _judged(response, scripts, least_words)
        return placed(role, quality, passes=quality >= threshold, most=most, reason=reason, metrics=metrics)

    verify.largest_penalty = most  # type: ignore[attr-defined]
    return verify


def _unknown(language: Any) -> str:
    return f"the language must be `{PROMPT}` or one of {', '.join(sorted(LANGUAGES))}, not {language!r}"


def _scripts_of_prompt(problem: Problem) -> tuple[str, ...]:
    prompt = problem.get("prompt") or ""
    texts = [prompt] if isinstance(prompt, str) else [one.get("content") for one in prompt if one.get("role") == "user"]
    found = words_by_script("\n".join(text for text in texts if isinstance(text, str)))
    own = [script for script, number in found.items() if number >= ACCEPTED * found.total()]
    return tuple([*own, "Han"] if "Kana" in own and "Han" not in own else own)  # Japanese is written in both


def _judged(response: Response, scripts: tuple[str, ...], least_words: int) -> tuple[float, dict[str, float], str]:
    """The lower share of the parts that are long enough, the share of each, and the reason."""
    quality, metrics, reason = 1.0, {}, "too few words to tell a language by"
    for part, text in (("reasoning", response.reasoning), ("answer", response.answer)):
        found = words_by_script(text)
        if found.total() < least_words:
            continue
        metrics[part] = sum(found[script] for script in scripts) / found.total()
        if metrics[part] <= quality:
            quality = metrics[part]
            reason = f"{quality:.0%} of the {found.total()} words of the {part} are {' or '.join(scripts)}"
            reason += _strange(found, scripts)
    return quality, metrics, reason


def _strange(found: Counter[str], scripts: tuple[str, ...]) -> str:
    strange = {name: number for name, number in found.items() if name not in scripts}
    return f", {max(strange.values())} are {max(strange, key=strange.__getitem__)}" if strange else ""
