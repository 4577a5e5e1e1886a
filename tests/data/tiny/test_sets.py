"""The generated sets: what is held out stays out of training, and every row can be solved and is judged rightly."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import Any

import pytest

from qwq_rl.audit.audit import audit
from qwq_rl.data.row import Kind, row_mistakes
from qwq_rl.data.sources import load_rows
from qwq_rl.data.tiny import sets
from qwq_rl.data.tiny.general_tasks import LIKES, NAMES, bad_reply, good_reply, open_rule
from qwq_rl.data.tiny.task import Teacher
from qwq_rl.rewards.scorer import grader
from qwq_rl.verifiers import Response, load

HELD_OUT = ("tuning", "final", "harder")
TRAINED = tuple(name for name in sets.NAMES if name not in HELD_OUT)
SEEDS = (0, 1)
FAMILIES = [(domain, family.__name__) for domain, families in sets.DOMAINS.items() for family in families]

Key = tuple[Any, ...]


@cache
def rows(name: str, seed: int = 0) -> list[dict[str, Any]]:
    return sets.rows(name, seed)


def prompt_of(row: dict[str, Any]) -> str:
    return str((row.get("prompt") or row["messages"])[0]["content"])


def operands(family: str, prompt: str) -> Key:
    """What a prompt asks about, read off its text: the numbers in their order, or the words and values given."""
    if family == "echo":
        (said,) = re.findall(r"^say (.*) and end with .$", prompt)
        return tuple(re.findall(r"\d (\w+)", said))
    if family == "count":
        ((count, first, second),) = re.findall(r"^list (\d+) words from (\w+) and (\w+)$", prompt)
        return (int(count), first, second)
    if family == "record":
        pairs = re.findall(r"(\w+)=(\w+)", prompt)
        return tuple((key, int(value) if value.isdigit() else value) for key, value in pairs)
    if family == "call":
        return tuple((name, value, int(n)) for name, value, n in re.findall(r"(\w+): \w+=(\w+), \w+=(\d+)", prompt))
    if family == "greet":
        (name,) = re.findall(r"greet (\w+)", prompt)
        (like,) = re.findall(r"likes (\w+)", prompt)
        return (name, like)
    return tuple(int(digit) for digit in re.findall(r"\d", prompt.replace("mod 5", "")))


def size(family: str, prompt: str) -> int:
    """How much a prompt holds: its numbers, words, fields, calls or likes."""
    if family == "count":
        return int(operands(family, prompt)[0])
    if family == "greet":
        return sum(like in prompt for like in LIKES)
    return len(operands(family, prompt))


def keys(name: str, seed: int = 0) -> Iterator[Key]:
    """The operands of every row of a set; those of math and code share one space."""
    for row in rows(name, seed):
        family = row.get("family", "greet")
        found = operands(family, prompt_of(row))
        yield ("numbers", *found) if row.get("domain") in ("math", "code") else (family, *found)


# --- held out ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("domain", "name"), FAMILIES)
def test_the_operands_that_decide_the_split_are_those_of_the_prompt(domain: str, name: str) -> None:
    (family,) = [one for one in sets.DOMAINS[domain] if one.__name__ == name]
    rng = Random(0)

    tasks = [family(rng, "normal", Teacher()) for _ in range(50)] + [
        family(rng, "harder", Teacher()) for _ in range(50)
    ]

    for task in tasks:
        assert task.operands == operands(name, task.prompt), task.prompt


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(12, marks=pytest.mark.slow)])
def test_no_held_out_operands_occur_in_anything_trained_on(seed: int) -> None:
    held_out = {key for name in HELD_OUT for key in keys(name)}

    for name in TRAINED:
        assert held_out.isdisjoint(keys(name, seed)), name


def test_the_sets_for_tuning_and_for_the_final_figures_share_no_operands() -> None:
    assert set(keys("tuning")).isdisjoint(keys("final"))


def test_the_final_set_has_at_least_100_distinct_prompts_of_every_family() -> None:
    prompts = {(row["domain"], row["family"], prompt_of(row)) for row in rows("final")}
    counts = Counter((domain, family) for domain, family, _ in prompts)

    assert set(counts) == set(FAMILIES)
    assert min(counts.values()) >= 100
    assert len(counts) >= 8
    assert {domain for domain, _ in counts} == {"math", "code", "general"}


@pytest.mark.parametrize("held_out", HELD_OUT)
def test_every_family_has_the_same_share_of_a_held_out_set(held_out: str) -> None:
    counts = Counter((row["domain"], row["family"]) for row in rows(held_out))

    assert set(counts) == set(FAMILIES)
    assert len(set(counts.values())) == 1


@pytest.mark.parametrize(("domain", "family"), FAMILIES)
def test_every_harder_prompt_holds_more_than_any_trained_one(domain: str, family: str) -> None:
    hard = [size(family, prompt_of(row)) for row in rows("harder") if row["family"] == family]
    trained = [size(family, prompt_of(row)) for row in rows(domain) if row["family"] == family]

    assert min(hard) > max(trained)


@pytest.mark.parametrize("held_out", HELD_OUT)
def test_held_out_sets_are_the_same_whatever_the_seed(held_out: str) -> None:
    assert sets.rows(held_out, 1) == rows(held_out)


@pytest.mark.parametrize("name", ["math", *(name for name in TRAINED if name not in sets.DOMAINS)])
def test_training_sets_depend_on_the_seed_and_on_nothing_else(name: str) -> None:
    assert rows(name, 1) != rows(name)
    assert sets.rows(name, 1) == rows(name, 1)


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sets.NAMES)
def test_every_row_is_well_formed(name: str) -> None:
    kind: Kind = "preference" if name == "preferences" else "sft" if "_" in name else "rl"
    found = rows(name)

    assert [mistake for row in found for mistake in row_mistakes(row, kind)] == []
    assert len({row["id"] for row in found}) == len(found)


def test_a_set_is_read_as_any_source_is() -> None:
    assert load_rows("tiny/tuning", kind="rl") == rows("tuning")


def test_an_unknown_set_has_no_rows() -> None:
    with pytest.raises(KeyError):
        sets.rows("physics")


@pytest.mark.parametrize("domain", ["math", "general"])
def test_the_audit_finds_nothing_wrong(domain: str) -> None:
    held_out = [row for name in HELD_OUT for row in rows(name) if row["domain"] == domain]

    report = audit(enumerate([*held_out[::3], *rows(domain)[::20]]), grader(), opened=True)

    assert report.findings == ()
    assert report.proven == report.rows


def test_solutions_in_code_pass_when_they_are_run() -> None:
    held_out = [row for name in ("final", "harder") for row in rows(name) if row["domain"] == "code"]

    report = audit(enumerate([*held_out[::16], *rows("code")[::400]]), grader(), opened=True)

    assert report.findings == ()


@pytest.mark.parametrize(("domain", "family"), FAMILIES)
def test_the_solution_of_another_row_does_not_pass(domain: str, family: str) -> None:
    some = [row for row in rows("final") if row["family"] == family]
    row = some[0]
    other = next(one for one in some if apart(row, one))

    report = audit([(1, {**row, "solution": other["solution"]})], grader(), opened=True)

    assert [finding.kind for finding in report.findings] == ["solution"]


def apart(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether what `other` asks for cannot also be right for `row`."""
    if row["family"] == "greet":
        return operands("greet", prompt_of(row))[0] != operands("greet", prompt_of(other))[0]
    return bool(row["checks"][0]["reference"] != other["checks"][0]["reference"])


# --- demonstrations ---------------------------------------------------------------------------------------------------

STEP = re.compile(r"^(\d)([-+*])(\d)=(\d)$", re.M)


def thinking(row: dict[str, Any]) -> str:
    (found,) = re.findall(r"^<think>\n(.*?)</think>\n.+$", row["messages"][-1]["content"], re.S)
    return str(found)


def slipped(left: str, operation: str, right: str, result: str) -> bool:
    a, b = int(left), int(right)
    return {"+": a + b, "-": a - b, "*": a * b}[operation] % 5 != int(result)


@pytest.mark.parametrize("domain", ["math", "code"])
def test_demonstrations_get_about_the_stated_share_of_steps_wrong(domain: str) -> None:
    steps = [
        slipped(*step)
        for seed in SEEDS
        for row in rows(f"{domain}_demonstrations", seed)
        for step in STEP.findall(thinking(row))
    ]

    assert len(steps) > 1000
    assert sum(steps) / len(steps) == pytest.approx(sets.SLIPS, abs=4 * (sets.SLIPS / len(steps)) ** 0.5)


@pytest.mark.parametrize("domain", ["math", "code"])
def test_about_the_stated_share_of_demonstrations_is_terse(domain: str) -> None:
    terse = [not thinking(row) for seed in SEEDS for row in rows(f"{domain}_demonstrations", seed)]

    assert sum(terse) / len(terse) == pytest.approx(sets.TERSE_SHARE, abs=4 * (0.25 / len(terse)) ** 0.5)


def test_general_demonstrations_are_all_worked() -> None:
    assert all(thinking(row) for row in rows("general_demonstrations"))


@pytest.mark.parametrize("domain", ["math", "code"])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_worked_set_is_the_demonstrations_without_the_terse_ones(domain: str, seed: int) -> None:
    worked = rows(f"{domain}_worked", seed)

    assert worked == [row for row in rows(f"{domain}_demonstrations", seed) if thinking(row)]
    assert 0 < len(worked) < len(rows(f"{domain}_demonstrations", seed))


def test_a_demonstration_without_a_slip_passes_the_check_of_its_task() -> None:
    (family,) = [one for one in sets.DOMAINS["math"] if one.__name__ == "chain"]
    tasks = [family(Random(seed), "normal", Teacher()) for seed in range(20)]

    verdicts = [load("math", {})({"reference": t.check["reference"]}, Response("", t.answer)) for t in tasks if t.check]

    assert [verdict.score for verdict in verdicts] == [1.0] * 20  # type: ignore[union-attr]


# --- open replies -----------------------------------------------------------------------------------------------------


def test_every_good_reply_passes_the_open_rule_and_every_bad_one_fails() -> None:
    rng, verify = Random(0), load("constraints", {})
    for name in NAMES:
        for like in LIKES:
            problem = {"reference": open_rule(name, like)["reference"]}
            good = [good_reply(rng, name, like) for _ in range(12)]
            bad = [bad_reply(rng, name, like) for _ in range(24)]

            assert {verify(problem, Response(reply, reply)).score for reply in good} == {1.0}, good  # type: ignore[union-attr]
            assert 1.0 not in {verify(problem, Response(reply, reply)).score for reply in bad}, bad  # type: ignore[union-attr]


def test_training_rows_of_the_open_family_have_no_check_that_a_verifier_could_reward() -> None:
    greetings = [row for row in rows("general") if row["family"] == "greet"]

    assert greetings
    assert all(row["checks"] == [] for row in greetings)
    assert [row["family"] for row in rows("general") if not row["checks"]] == ["greet"] * len(greetings)


def test_preferences_set_a_reply_that_passes_above_one_that_fails() -> None:
    verify = load("constraints", {})
    for row in rows("preferences")[:200]:
        problem = {"reference": open_rule(*operands("greet", prompt_of(row)))["reference"]}

        assert verify(problem, Response("", row["chosen"])).score == 1.0  # type: ignore[union-attr]
        assert verify(problem, Response("", row["rejected"])).score != 1.0  # type: ignore[union-attr]
