"""The audit: what is right must pass, nothing else may, always; each defect of a verifier or a row has a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from qwq_rl.audit.audit import Alone, audit
from qwq_rl.audit.findings import Report, told
from qwq_rl.audit.probes import decoy
from qwq_rl.config.blocks import DomainCheck
from qwq_rl.data.row import Check
from qwq_rl.rewards.scorer import Grader, Scorer, grader
from qwq_rl.verifiers import load

VERIFIERS = """\
import random

def right(problem, response):
    return response.answer == problem["reference"]

def everything(problem, response):
    return True

def anywhere(problem, response):
    return problem["reference"] in response.text

def substring(problem, response):
    return problem["reference"] in response.answer

def first_word(problem, response):
    return response.answer.split()[:1] == [problem["reference"]]

def moody(problem, response, seen=[]):
    seen.append(1)
    return response.answer == problem["reference"] and len(seen) < 2

def breaks(problem, response):
    if response.answer != problem["reference"]:
        raise ValueError("not what I know")
    return True

def slow(problem, response):
    import time
    time.sleep(0.2 if len(response.answer) > 100000 else 0)
    return response.answer == problem["reference"]

def length(problem, response):
    return len(response.answer) == problem["reference"]

def never(problem, response):
    return False

def broken(problem, response):
    raise OSError("not today")

length.self_answer = lambda problem: "x" * problem["reference"]

def rubric(problem, response):
    return response.answer == "good"

rubric.self_answer = lambda problem: None
"""


def row(**columns: Any) -> dict[str, Any]:
    return {"id": "r1", "domain": "d", "prompt": "?", **columns}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(VERIFIERS)
    return str(path)


def found(verifier: str, opened: bool = False, **columns: Any) -> dict[str, str]:
    """Kind -> reason of what the audit of one row finds."""
    return {f.kind: f.reason for f in audit([(7, row(verifier=verifier, **columns))], grader(), opened=opened).findings}


def test_a_sound_verifier_and_row_pass(own: str) -> None:
    report = audit([(1, row(verifier=f"{own}:right", reference="Paris"))], grader())

    assert (report.passed, report.rows, report.proven, report.findings) == (True, 1, 1, ())


@pytest.mark.parametrize("reference", ["42", 42, r"\frac{1}{2}", r"\boxed{7}", "3.5", "(1, 2)", "B"])
def test_a_math_reference_accepts_itself_and_no_hedge(reference: Any) -> None:
    assert found("math", reference=reference) == {}


def test_a_reference_that_does_not_accept_itself_is_broken() -> None:
    assert "is no math answer" in found("math", reference="")["reference"]
    assert "does not pass" in found("json_schema", reference="not a schema")["reference"]


def test_a_solution_that_does_not_pass_is_broken() -> None:
    assert "5 is not the reference 4" in found("math", reference="4", solution=r"2 + 2 </think> \boxed{5}")["solution"]


def test_a_right_answer_without_a_verdict_is_a_fault_of_the_verifier(own: str) -> None:
    assert "not what I know" in found(f"{own}:breaks", reference="Paris", solution="Rome")["fault"]


def test_a_solution_proves_a_reference_that_is_no_answer() -> None:
    schema = {"type": "object", "required": ["a"]}
    assert found("json_schema", reference=schema, solution='{"a": 1}') == {}
    assert list(found("json_schema", reference=schema)) == ["unproven"]


def test_a_solution_after_an_opened_prompt_must_close_its_thinking() -> None:
    columns: dict[str, Any] = {"reference": "4", "solution": r"\boxed{4}"}
    assert found("math", **columns) == {}
    assert "think_closed" in found("math", opened=True, **columns)["solution"]


@pytest.mark.parametrize(
    ("verifier", "kinds"),
    [
        ("everything", {"empty", "garbage"}),
        ("anywhere", {"empty"}),
        ("substring", {"hedge"}),
        ("first_word", {"hedge"}),
        ("moody", {"unstable"}),
        ("breaks", {"fault"}),
    ],
)
def test_each_defect_of_a_verifier_has_a_name(own: str, verifier: str, kinds: set[str]) -> None:
    alone = Alone(load(f"{own}:{verifier}"), lambda row: Check(verifier, row["reference"]))

    assert {finding.kind for finding in audit([(1, row(reference="Paris"))], alone).findings} == kinds


def test_a_verdict_that_takes_too_long_over_a_hostile_text_is_told(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwq_rl.audit.audit.HOSTILE_SECONDS", 0.1)
    assert "a very long word took 0.2 s" in found(f"{own}:slow", reference="Paris")["slow"]


def test_a_verifier_says_what_its_references_stand_for(own: str) -> None:
    assert found(f"{own}:length", reference=5) == {}
    assert list(found(f"{own}:rubric", reference="be kind")) == ["unproven"]
    assert found(f"{own}:rubric", reference="be kind", solution="good") == {}


def test_a_declared_answer_must_pass_beside_a_solution(own: str) -> None:
    assert set(found(f"{own}:length", reference=-1, solution="")) == {"solution", "reference"}


def test_a_row_without_a_score_is_open() -> None:
    class Nothing:
        def checks(self, row: Mapping[str, Any]) -> list[Any]:
            return []

        def score(self, items: Any) -> list[Any]:
            return []

    report = audit([(1, row())], Nothing())
    assert (report.open, report.proven, report.passed) == (1, 0, True)


def test_the_time_ends_an_audit_which_says_so() -> None:
    rows = [(at, row(id=f"r{at}", verifier="math", reference="4")) for at in range(100)]

    report = audit(rows, grader(), seconds=0.0)

    assert (report.complete, report.rows) == (False, 32)
    assert "the time ran out" in told(report, "rows")


def test_unproven_rows_are_told_and_no_failure() -> None:
    report = audit([(3, row(verifier="constraints", reference={"all": [{"kind": "words", "count": 5}]}))], grader())

    assert (report.passed, report.proven, report.count("unproven")) == (True, 0, 1)
    assert "r1 (row 3)" in told(report, "rows")


def test_a_report_lists_every_finding_and_its_text_the_first(own: str) -> None:
    rows = [(at, row(id=f"r{at}", verifier="math", reference="4", solution="5")) for at in range(1, 9)]

    report = audit(rows, grader())

    record = report.record("rows")
    assert (record["passed"], record["broken"], len(record["findings"])) == (False, 8, 8)
    text = told(report, "rows")
    assert text.startswith("audit of rows: FAILED")
    assert "8 solutions that do not pass" in text
    assert "... and 3 more" in text


def test_several_scores_need_a_solution() -> None:
    checks = [{"verifier": "math", "reference": "4"}, {"verifier": "exact", "reference": "nothing else"}]
    assert list(_kinds(audit([(1, row(checks=checks))], grader()))) == ["unproven"]


def _kinds(report: Report) -> list[str]:
    return [finding.kind for finding in report.findings]


@pytest.mark.parametrize(
    ("reference", "other"),
    [
        ("B", "A"),
        ("(a)", "(b)"),
        (r"\text{(C)}", r"\text{(A)}"),
        ("Yes", "no"),
        ("12", "1003"),
        (12, 1003),
        (r"\boxed{12}", r"\boxed{1003}"),
        ("Paris", "neither of these"),
    ],
)
def test_a_decoy_is_of_the_references_kind(reference: Any, other: Any) -> None:
    assert decoy(reference) == other


def test_a_grader_audits_by_the_grade() -> None:
    graded = row(grade={"verifier": "constraints", "reference": {"all": [{"kind": "upper"}]}}, solution="RED")
    assert isinstance(grader(), Grader)
    assert audit([(1, graded)], grader()).findings == ()


@dataclass(frozen=True)
class Domain:
    verifiers: Mapping[str, Any]
    checks: tuple[DomainCheck, ...]
    reward_model: float = 0.0
    weight: float = 1.0


def ruled(*checks: DomainCheck, **verifiers: Any) -> Scorer:
    return Scorer({"d": Domain({"math": {}, **verifiers}, checks)}, ("finished", "answered"))


CHINESE = "<think>" + "首先我们把两个数加起来" * 3 + r"</think> \boxed{4}"


def test_a_rule_for_all_rows_is_no_failure_of_a_row_and_told() -> None:
    english = DomainCheck("language_consistency", "gate", "en")
    rows = [row(verifier="math", reference="4", solution=CHINESE)]

    report = audit(enumerate(rows, 1), ruled(english))

    assert (report.passed, report.proven, report.broken(), _kinds(report)) == (True, 1, 0, ["form"])
    assert report.findings[0].reason.startswith("its solution passes, but not the gate language_consistency: ")
    assert "1 have a solution that would get no reward by a rule of the domain" in told(report, "rows")


def test_a_gate_that_the_row_itself_asks_for_holds_of_its_solution() -> None:
    checks = [
        {"verifier": "math", "reference": "4"},
        {"verifier": "language_consistency", "role": "gate", "reference": "en"},
    ]
    report = audit([(1, row(checks=checks, solution=CHINESE))], ruled())
    assert _kinds(report) == ["solution"]
    assert "gate language_consistency does not hold" in report.findings[0].reason


def test_a_gate_on_form_does_not_refuse_a_reference(own: str) -> None:
    never = f"{own}:never"
    report = audit([(1, row(verifier="math", reference="4"))], ruled(DomainCheck(never, "gate")))
    assert (_kinds(report), report.proven) == ([], 1)


def test_a_penalty_that_counts_tokens_can_be_audited() -> None:
    rule = DomainCheck("overlong", "penalty")
    report = audit(
        [(1, row(verifier="math", reference="4"))], ruled(rule, overlong={"max_tokens": 100, "buffer": 50, "most": 0.3})
    )
    assert (_kinds(report), report.proven) == ([], 1)


def test_a_rule_that_cannot_judge_is_a_fault(own: str) -> None:
    report = audit([(1, row(verifier="math", reference="4"))], ruled(DomainCheck(f"{own}:broken", "penalty")))
    assert _kinds(report) == ["fault"]
    assert "not today" in report.findings[0].reason
