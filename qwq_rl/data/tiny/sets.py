"""The named sets of recipes/tiny: training prompts, demonstrations, preferences, and held-out prompts.

Held-out sets do not depend on the seed of a run. Their operands occur in no training prompt, demonstration or
preference of any family (`task.split_of`).
"""

from __future__ import annotations

from random import Random
from typing import Any

from qwq_rl.data.tiny import code_tasks, general_tasks, math_tasks
from qwq_rl.data.tiny.task import Family, Level, Split, Task, Teacher, draw

NAMES = (
    "math", "code", "general",
    "math_demonstrations", "code_demonstrations", "general_demonstrations", "math_worked", "code_worked",
    "preferences", "tuning", "final", "harder",
)  # fmt: skip

DOMAINS: dict[str, tuple[Family, ...]] = {
    "math": math_tasks.FAMILIES,
    "code": code_tasks.FAMILIES,
    "general": general_tasks.FAMILIES,
}
TRAIN_PROMPTS = 1500
FINAL_PROMPTS = 100
TUNING_PROMPTS = 40
HARDER_PROMPTS = 30
DEMONSTRATIONS = {"math": 600, "code": 400, "general": 350}
TERSE_SHARE = 0.35
SLIPS = 0.09
"""Share of wrong steps in the demonstrations: supervised data always has mistakes, and nobody checked it."""
FLAWS = 0.35
"""Share of the demonstrated echoes, lists, records, calls and greetings that are wrong."""
PREFERENCES = 4000


def rows(name: str, seed: int = 0) -> list[dict[str, Any]]:
    """Return the rows of one set. Only the training sets depend on `seed`. Raises KeyError for an unknown name."""
    if name in DOMAINS:
        return _prompts(DOMAINS[name], f"{name}-{seed}", "train", "normal", TRAIN_PROMPTS)
    if name == "tuning":
        return _held_out(name, "tuning", "normal", TUNING_PROMPTS)
    if name == "final":
        return _held_out(name, "final", "normal", FINAL_PROMPTS)
    if name == "harder":
        return _held_out(name, "final", "harder", HARDER_PROMPTS)
    domain, _, kind = name.partition("_")
    if kind in ("demonstrations", "worked"):
        return _demonstrations(domain, seed, worked_only=kind == "worked")
    if name == "preferences":
        return _preferences(seed)
    raise KeyError(name)


def _held_out(name: str, split: Split, level: Level, count: int) -> list[dict[str, Any]]:
    families = tuple(family for group in DOMAINS.values() for family in group)
    return _prompts(families, name, split, level, count)


def _prompts(families: tuple[Family, ...], name: str, split: Split, level: Level, count: int) -> list[dict[str, Any]]:
    prompt_rows = []
    for family in families:
        # A generator for each family: a change in one family leaves the rows of the others as they are.
        tasks = draw(family, Random(f"{name}/{family.__name__}"), split, level, count)
        prompt_rows += [_row(task, f"tiny-{name}-{task.family}-{index:05d}") for index, task in enumerate(tasks)]
    return prompt_rows


def _row(task: Task, row_id: str) -> dict[str, Any]:
    return {
        "id": row_id,
        "domain": task.domain,
        "family": task.family,
        "prompt": [{"role": "user", "content": task.prompt}],
        "tools": list(task.tools) if task.tools else None,
        "environment": None,
        "checks": [dict(task.check, role="score")] if task.check else [],
        "grade": dict(task.grade) if task.grade else None,
        "solution": f"{task.reasoning}\n</think>\n{task.answer}",
    }


def _demonstrations(domain: str, seed: int, worked_only: bool) -> list[dict[str, Any]]:
    demonstration_rows = []
    for family in DOMAINS[domain]:
        rng = Random(f"demonstrations-{seed}/{domain}/{family.__name__}")
        teacher = Teacher(SLIPS, FLAWS, rng)
        for index, task in enumerate(draw(family, rng, "train", "normal", DEMONSTRATIONS[domain], teacher)):
            terse = task.terse and rng.random() < TERSE_SHARE
            # Skipped after the draw: `worked` sets are exactly the rows of `demonstrations` that are not terse.
            if not (terse and worked_only):
                demonstration_rows.append(_demonstration(task, f"demo-{task.family}-{index:05d}", terse))
    return demonstration_rows


def _demonstration(task: Task, row_id: str, terse: bool) -> dict[str, Any]:
    reasoning = "" if terse else f"{task.reasoning}\n"
    answer = {"role": "assistant", "content": f"<think>\n{reasoning}</think>\n{task.answer}"}
    return {
        "id": row_id,
        "domain": task.domain,
        "family": task.family,
        "messages": [{"role": "user", "content": task.prompt}, answer],
        "tools": list(task.tools) if task.tools else None,
    }


def _preferences(seed: int) -> list[dict[str, Any]]:
    rng = Random(f"preferences-{seed}")
    preference_rows = []
    for index, task in enumerate(draw(general_tasks.greet, rng, "train", "normal", PREFERENCES)):
        name, like = task.operands
        chosen, rejected = general_tasks.good_reply(rng, name, like), general_tasks.bad_reply(rng, name, like)
        prompt = [{"role": "user", "content": task.prompt}]
        preference_rows.append({"id": f"pref-{index:05d}", "prompt": prompt, "chosen": chosen, "rejected": rejected})
    return preference_rows


def corpus() -> list[str]:
    """Return the texts on which the tokenizer is trained: prompts, reasoning and answers of every family."""
    lines = []
    for domain, families in DOMAINS.items():
        for family in families:
            for task in draw(family, Random(f"corpus/{domain}/{family.__name__}"), "train", "normal", 300):
                lines += [task.prompt, f"{task.reasoning}\n", f"\n{task.answer}"]
    return lines
