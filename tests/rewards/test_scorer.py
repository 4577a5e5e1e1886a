"""Rows and responses become verdicts and rewards; faults cost what they touch and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qwq_rl.config.blocks import DomainCheck
from qwq_rl.errors import RowError, UserError
from qwq_rl.rewards.reward import Scored
from qwq_rl.rewards.scorer import Scorer, grader
from qwq_rl.verifiers import Response

GATES = ("think_closed", "finished", "answered")


@dataclass(frozen=True)
class Domain:
    verifiers: Mapping[str, Any] = field(default_factory=dict)
    reward_model: float = 0.0
    weight: float = 1.0
    checks: tuple[DomainCheck, ...] = ()


def respond(answer: str, **rest: Any) -> Response:
    return Response(text=f"hm</think>{answer}", answer=answer, reasoning="hm", **rest)


def row(domain: str = "math", **columns: Any) -> dict[str, Any]:
    return {"id": "r1", "domain": domain, "prompt": "?", **columns}


MATH = row(verifier="math", reference="4")
RULE = {"all": [{"kind": "upper"}]}
OPEN = row("chat")
GRADED = row("chat", grade={"verifier": "constraints", "reference": RULE})


def one(item: dict[str, Any], response: Response, q: float | None = None, **domains: Domain) -> Scored:
    return Scorer(domains or {"math": Domain()}, GATES).score([(item, response)], [q])[0]


def test_a_right_answer_gets_the_whole_reward() -> None:
    scored = one(MATH, respond(r"\boxed{4}"))
    assert (scored.score, scored.reward) == (1.0, 1.0)
    assert scored.gates == {"think_closed": True, "finished": True, "answered": True}
    assert scored.verdicts["math"].status == "correct"


@pytest.mark.parametrize(
    ("response", "gate"),
    [
        (Response(text="4 \\boxed{4}", answer=""), "think_closed"),
        (respond(r"\boxed{4}", finish="length"), "finished"),
        (respond(" "), "answered"),
    ],
)
def test_a_gate_that_fails_takes_the_reward(response: Response, gate: str) -> None:
    scored = one(MATH, response)
    assert scored.gates[gate] is False
    assert scored.reward == 0.0


def test_an_answer_without_any_thinking_leaves_none_open() -> None:
    assert one(MATH, Response(text=r"\boxed{4}", answer=r"\boxed{4}")).reward == 1.0


def test_only_the_recipe_s_gates_count() -> None:
    scored = Scorer({"math": Domain()}, []).score([(MATH, respond(r"\boxed{4}", finish="length"))])[0]
    assert (scored.reward, scored.gates) == (1.0, {})


def test_an_unknown_gate_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean `finished`"):
        Scorer({}, ["finish"])


def test_the_preference_is_mixed_in_by_the_domain_s_weight() -> None:
    assert one(MATH, respond(r"\boxed{4}"), q=0.5, math=Domain(reward_model=0.3)).reward == pytest.approx(0.85)


def test_a_missing_preference_that_is_needed_leaves_no_reward() -> None:
    scored = one(MATH, respond(r"\boxed{4}"), q=None, math=Domain(reward_model=0.3))
    assert (scored.score, scored.reward) == (1.0, None)


def test_an_open_row_is_rewarded_by_the_preference_alone() -> None:
    scored = one(OPEN, respond("hello"), q=0.7, chat=Domain(reward_model=1.0))
    assert (scored.score, scored.reward, scored.preference) == (None, 0.7, 0.7)


def test_an_open_row_without_preference_could_not_be_judged() -> None:
    assert one(OPEN, respond("hello"), q=None, chat=Domain(reward_model=1.0)).reward is None


def test_a_penalty_lowers_and_a_gate_check_takes_the_reward(tmp_path: Path) -> None:
    rules = tmp_path / "rules.py"
    rules.write_text(
        "def long(problem, response): return -0.25 if len(response.answer) > 9 else 0.0\n"
        "def polite(problem, response): return 'fool' not in response.answer\n"
    )
    checks = [
        {"verifier": "math", "reference": "4"},
        {"verifier": f"{rules}:long", "role": "penalty"},
        {"verifier": f"{rules}:polite", "role": "gate"},
    ]
    item = row(checks=checks)
    assert one(item, respond(r"\boxed{4}")).reward == 1.0
    assert one(item, respond(r"so it is \boxed{4}")).reward == 0.75
    refused = one(item, respond(r"fool: \boxed{4}"))
    assert (refused.reward, refused.gates[f"{rules}:polite"]) == (0.0, False)


def test_every_score_check_has_to_hold() -> None:
    checks = [{"verifier": "constraints", "reference": RULE}, {"verifier": "exact", "reference": "RED"}]
    item = row("general", checks=checks)
    assert one(item, respond("RED"), general=Domain()).score == 1.0
    assert one(item, respond("BLUE"), general=Domain()).score == 0.0


def test_a_verifier_named_twice_keeps_both_verdicts() -> None:
    checks = [{"verifier": "exact", "reference": "RED"}, {"verifier": "exact", "reference": "BLUE"}]
    assert set(one(row("general", checks=checks), respond("RED"), general=Domain()).verdicts) == {"exact", "exact#2"}


@pytest.fixture
def flaky(tmp_path: Path) -> str:
    path = tmp_path / "flaky.py"
    path.write_text(
        "def verify(problem, response):\n"
        "    if response.answer == 'boom': raise OSError('the server is gone')\n"
        "    return 2.0 if response.answer == 'two' else 1.0\n"
        "class Batched:\n"
        "    def __call__(self, problem, response): return True\n"
        "    def batch(self, items):\n"
        "        return [len(items) / 3] * len(items)\n"
        "def near(tolerance):\n"
        "    return lambda problem, response: abs(float(response.answer) - problem['reference']) <= tolerance\n"
    )
    return str(path)


def test_a_fault_costs_its_own_verdict_only(flaky: str) -> None:
    scorer = Scorer({"math": Domain({"math": f"{flaky}:verify"})}, GATES)
    boom, good, two = scorer.score([(MATH, respond(text)) for text in ("boom", "fine", "two")])
    assert (boom.reward, boom.verdicts["math"].status) == (None, "fault")
    assert "the server is gone" in boom.verdicts["math"].reason
    assert good.reward == 1.0
    assert two.reward is None
    assert "returned the score 2.0" in two.verdicts["math"].reason


def test_a_failed_gate_needs_no_verdict(flaky: str) -> None:
    assert one(MATH, respond("boom", finish="length"), math=Domain({"math": f"{flaky}:verify"})).reward == 0.0


def test_a_batch_verifier_gets_one_call_for_all_rows(flaky: str) -> None:
    scorer = Scorer({"a": Domain({"x": f"{flaky}:Batched"}), "b": Domain({"x": {"use": f"{flaky}:Batched"}})}, GATES)
    items = [(row(name, verifier="x", reference=at), respond("yes")) for at, name in enumerate("aba")]
    assert [scored.reward for scored in scorer.score(items)] == [1.0, 1.0, 1.0]
    assert scorer.counts == {"x": {"judged": 3}}


def test_a_swapped_verifier_gets_its_parameters(flaky: str) -> None:
    domain = Domain({"math": {"use": f"{flaky}:near", "tolerance": 0.5}})
    item = row(verifier="math", reference=4.0)
    assert one(item, respond("4.4"), math=domain).score == 1.0
    assert one(item, respond("4.6"), math=domain).score == 0.0


def test_a_reference_without_verifier_is_for_the_domain_s_single_one() -> None:
    item = row(reference="4")
    assert one(item, respond(r"\boxed{4}"), math=Domain({"math": {}})).reward == 1.0
    with pytest.raises(RowError, match=r"row r1 .* has 2 \(math, exact\)"):
        one(item, respond("4"), math=Domain({"math": None, "exact": None}))


def test_a_row_of_an_unknown_domain_is_told() -> None:
    with pytest.raises(RowError, match="row r1: its domain `poetry` is not among the recipe's \\(math\\)"):
        one(row("poetry"), respond("x"))


def test_a_recipe_s_unknown_verifier_is_told_before_any_row() -> None:
    with pytest.raises(UserError, match="did you mean `math`"):
        Scorer({"math": Domain({"maths": {}})}, GATES)


def test_a_bad_reference_leaves_no_reward() -> None:
    scored = one(row(verifier="math", reference=None), respond(r"\boxed{4}"))
    assert (scored.reward, scored.verdicts["math"].status) == (None, "bad_reference")


def test_grading_uses_the_grade_and_gives_one_or_zero() -> None:
    good, bad, cut = grader().score(
        [(GRADED, respond("RED")), (GRADED, respond("red")), (GRADED, respond("RED", finish="length"))]
    )
    assert [(scored.score, scored.reward) for scored in (good, bad, cut)] == [(1.0, 1.0), (0.0, 0.0), (0.0, 0.0)]


def test_grading_counts_partial_credit_as_a_failure(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text("def verify(problem, response): return 0.5\n")
    item = row(verifier=f"{tmp_path}/half.py:verify")
    assert grader().score([(item, respond("x"))])[0].score == 0.0


def test_grading_finds_a_verifier_by_the_name_that_a_recipe_gave_it(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def verify(problem, response): return response.answer == 'x'\n")
    named = {"own": f"{tmp_path}/own.py:verify", "math": f"{tmp_path}/own.py:verify"}
    assert grader(named).score([(row(verifier="own"), respond("x"))])[0].score == 1.0
    assert grader(named).score([(MATH, respond(r"\boxed{4}"))])[0].score == 1.0  # what has a meaning keeps it


def test_grading_leaves_a_fault_out(flaky: str) -> None:
    assert grader().score([(row(verifier=f"{flaky}:verify"), respond("boom"))])[0].score is None


def test_an_open_row_without_grade_cannot_be_evaluated() -> None:
    with pytest.raises(RowError, match="row r1 has no check of role `score` and no `grade`"):
        grader().score([(OPEN, respond("hello"))])


LOOP = "Wait, let me check again. " * 50
LOOPS = DomainCheck("repetition", "penalty")
RULED = Domain({"math": {}, "repetition": {"most": 0.25}}, checks=(LOOPS,))


def looping(answer: str) -> Response:
    return Response(f"{LOOP}</think>{answer}", answer, LOOP)


def test_a_rule_of_the_domain_holds_for_every_row_and_has_its_parameters() -> None:
    scored = one(MATH, looping(r"\boxed{4}"), math=RULED)
    assert (scored.score, scored.reward, list(scored.verdicts)) == (1.0, 0.75, ["math", "repetition"])
    assert one(MATH, respond(r"\boxed{4}"), math=RULED).reward == 1.0


def test_a_rule_of_the_domain_holds_for_open_rows() -> None:
    open_row = one(row(), looping("hello"), q=0.5, math=RULED)
    assert (open_row.score, open_row.reward) == (None, 0.25)
    gate = Domain(checks=(DomainCheck("language_consistency", "gate", "en"),))
    foreign = one(row(), respond("你好世界你好世界你好世界"), q=0.5, math=gate)
    assert (foreign.reward, foreign.gates["language_consistency"]) == (0.0, False)


def test_a_row_that_asks_for_the_rule_itself_is_asked_its_own() -> None:
    rule = Domain({"exact": {}}, checks=(DomainCheck("language_consistency", "gate", "en"),))
    own = [
        {"verifier": "exact", "reference": "x"},
        {"verifier": "language_consistency", "role": "gate", "reference": "zh"},
    ]
    scored = one(row(checks=own), respond("你好世界你好世界你好世界"), math=rule)
    assert list(scored.verdicts) == ["exact", "language_consistency"]
    assert scored.gates["language_consistency"] is True


def test_the_same_verifier_in_another_role_keeps_both_verdicts() -> None:
    checks = [{"verifier": "think_format"}, {"verifier": "repetition", "role": "gate"}]
    scored = one(row(checks=checks), looping("hello"), math=RULED)
    assert {name: verdict.score for name, verdict in scored.verdicts.items()} == {
        "think_format": 1.0,
        "repetition": 0.0,
        "repetition#2": -0.25,
    }


def test_a_reference_alone_is_not_for_a_rule() -> None:
    assert one(row(reference="4"), looping(r"\boxed{4}"), math=RULED).score == 1.0


def test_a_rule_that_does_not_exist_is_told_before_any_row() -> None:
    with pytest.raises(UserError, match="did you mean `repetition`"):
        Scorer({"math": Domain(checks=(DomainCheck("repetitoin", "penalty"),))}, GATES)
