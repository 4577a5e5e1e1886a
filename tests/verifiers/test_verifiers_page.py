"""The example of docs/verifiers.md runs as it stands there."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from qwq_rl.config.blocks import DomainCheck
from qwq_rl.rewards.scorer import GATES, Scorer
from qwq_rl.verifiers import BUILT_IN, Response, load
from qwq_rl.verifiers.builtin.constraints import KINDS
from qwq_rl.verifiers.mathematics.verifier import math
from qwq_rl.verifiers.runner.judge import judge


@pytest.fixture
def page(root: Path) -> str:
    return (root / "docs" / "verifiers.md").read_text()


def example(page: str, name: str) -> str:
    found = re.search(rf"<!-- example: {name} -->\n```\w+\n(.*?)```", page, re.DOTALL)
    assert found, f"no example {name} on the page"
    return found.group(1)


def test_the_example_verifier_scores_the_example_row(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "colours.py").write_text(example(page, "verifier"))
    monkeypatch.chdir(tmp_path)
    row = json.loads(example(page, "verifier_row"))
    paint = yaml.safe_load(example(page, "verifier_recipe"))["domains"]["paint"]
    scorer = Scorer({"paint": SimpleNamespace(reward_model=0.0, checks=(), **paint)}, ["answered"])
    answers = ["Red and blue", "red", "none of them"]
    scored = scorer.score([(row, Response(text=text, answer=text)) for text in answers])
    said = [one.verdicts["colours"] for one in scored]
    assert [(one.reward, verdict.status) for one, verdict in zip(scored, said, strict=True)] == [
        (1.0, "correct"),
        (0.0, "wrong"),
        (0.0, "no_answer"),
    ]
    assert said[1].reason == "names ['red'], ['blue', 'red'] were asked"


def test_the_page_names_every_built_in_and_every_constraint(page: str) -> None:
    assert [name for name in (*BUILT_IN, *KINDS) if f"`{name}`" not in page] == []


def test_the_example_of_rules_on_form_makes_one_reward(page: str) -> None:
    row = {**json.loads(example(page, "form_row")), "reference": None}
    math = yaml.safe_load(example(page, "form_recipe"))["domains"]["math"]
    scorer = Scorer({"math": SimpleNamespace(reward_model=0.0, checks=(), **math)}, [])
    loop = "Wait, let me check again. " * 50
    responses = [
        Response("so\n</think>\n\\boxed{7}", r"\boxed{7}", "so", token_ids=range(9)),
        Response(f"{loop}</think>\\boxed{{7}}", r"\boxed{7}", loop, token_ids=range(9)),
        Response("so\n</think>\n\\boxed{7}", r"\boxed{7}", "so", token_ids=range(8192)),
        Response("so\n</think></think>\\boxed{7}", r"\boxed{7}", "so", token_ids=range(9)),
    ]
    rewards = [one.reward for one in scorer.score([(row, response) for response in responses])]
    assert rewards == [1.0, pytest.approx(0.7), pytest.approx(0.7), 0.0]


def test_the_example_of_rules_for_a_domain_holds_for_a_row_that_names_none(page: str) -> None:
    math = yaml.safe_load(example(page, "domain_rules"))["domains"]["math"]
    rules = tuple(DomainCheck(**rule) for rule in math.pop("checks"))
    scorer = Scorer({"math": SimpleNamespace(reward_model=0.0, checks=rules, **math)}, [])
    row = {"id": "1", "domain": "math", "prompt": "3 + 4 = ?", "verifier": "math", "reference": "7"}
    loop = "Wait, let me check again. " * 50
    thoughts = ["so", loop, "三加四等于七" * 5]
    responses = [Response(f"{thought}</think>\\boxed{{7}}", r"\boxed{7}", thought) for thought in thoughts]
    assert [one.reward for one in scorer.score([(row, one) for one in responses])] == [1.0, pytest.approx(0.7), 0.0]


def test_the_page_on_hacking_names_what_there_is(root: Path) -> None:
    text = (root / "docs" / "reward_hacking.md").read_text()
    checks = set(re.findall(r"check `(\w+)`", text))
    gates = set(re.findall(r"gates? `(\w+)`", text)) - {"worked_minus_terse"}
    assert checks == {"think_format", "language_consistency", "repetition", "overlong"} <= set(BUILT_IN)
    assert gates <= set(GATES)


def table(page: str, name: str) -> list[list[str]]:
    """The rows of the table behind `<!-- examples: NAME -->`: what stands in backquotes, cell by cell."""
    found = re.search(rf"<!-- examples: {name} -->\n\|.*\n\|.*\n((?:\|.*\n)+)", page)
    assert found, f"no table {name} on the page"
    return [re.findall(r"`([^`]+)`", line) for line in found[1].splitlines()]


def test_every_example_of_math_is_judged_as_the_page_says(page: str) -> None:
    verifier = load("math", {"symbolic": False})
    examples = table(page, "math")

    assert len(examples) > 30
    for reference, *answers in examples:
        items = [({"reference": reference}, Response("", rf"\boxed{{{answer}}}")) for answer in answers]
        statuses = [verdict.status for verdict in judge(verifier, items)]
        assert statuses == ["correct", "wrong"], (reference, answers)


def test_the_page_names_every_parameter_of_math(page: str) -> None:
    section = page[page.index("### math") : page.index("### Rules on form")]
    names = set(inspect.signature(math).parameters)
    assert {name for name in names if f"`{name}`" not in section} == set()
    assert {
        name for name in ("undecided", "bad_reference", "no_answer", "timeout") if f"`{name}`" not in section
    } == set()
