"""docs/contracts.md against the code: every tagged example is loaded by what reads it, and what writes it conforms."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from conforms import conforms

from qwq_rl.audit.verify import main as verify
from qwq_rl.config.check import mistakes
from qwq_rl.config.recipe import load_pipeline, load_stage, resolved_yaml
from qwq_rl.data.row import REQUIRED, Kind, checks_of, row_mistakes
from qwq_rl.evals.estimates import PromptRecord, compare, evaluation_line
from qwq_rl.run_folder import schema, schema_audit
from qwq_rl.run_folder.files import RunFolder
from qwq_rl.sandbox import Job, LocalSandbox, Result
from qwq_rl.stages.provenance import collect
from qwq_rl.verifiers import BUILT_IN, Response, Verdict, load

PAGE = (Path(__file__).parent.parent / "docs" / "contracts.md").read_text()
BLOCK = re.compile(r"<!-- example: (\w+) -->\n```(json|yaml)\n(.*?)\n```", re.S)
TEXTS = {name: text for name, _, text in BLOCK.findall(PAGE)}

ROWS: dict[str, Kind] = {"row": "rl", "sft_row": "sft", "preference_row": "preference"}
RECIPES = ("sft_recipe", "rl_recipe", "reward_model_recipe")
STAGES = {
    "0_cold_start": "sft_recipe",
    "1_math_code": "rl_recipe",
    "1_control": "sft_recipe",
    "2_reward_model": "reward_model_recipe",
    "2_general": "rl_recipe",
}
RECORDS: dict[str, Any] = {
    "verdict": schema.VerdictRecord,
    "verdict_line": schema_audit.VerdictLine,
    "audit": schema_audit.AuditRecord,
    "rescore": schema_audit.Rescored,
    "disagreement": schema_audit.Disagreement,
    "pipeline_state": schema.PipelineState,
    "done": schema.Done,
    "metrics_rl": schema.RlMetrics,
    "metrics_supervised": schema.SupervisedMetrics,
    "evaluation_line": schema.EvaluationLine,
    "evaluation": schema.Evaluation,
    "evaluation_prompt": schema.EvaluationPrompt,
    "rollout": schema.RolloutRecord,
    "summary": schema.Summary,
    "provenance": schema.Provenance,
}


def example(name: str) -> Any:
    return json.loads(TEXTS[name])


def test_every_example_of_the_page_is_checked_here() -> None:
    assert set(TEXTS) == {*ROWS, *RECIPES, *RECORDS, "row_to_verify", "rules_recipe", "pipeline", "job", "job_result"}


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), ROWS.items())
def test_an_example_row_has_no_mistake(name: str, kind: Kind) -> None:
    assert row_mistakes(example(name), kind) == []


@pytest.mark.parametrize(("name", "kind"), ROWS.items())
def test_an_example_row_shows_every_required_column(name: str, kind: Kind) -> None:
    assert set(REQUIRED[kind]) <= example(name).keys()


def test_the_example_rows_solution_passes_its_check() -> None:
    row = example("row")
    (check,) = checks_of(row)
    answer = row["solution"].split("</think>")[1]

    verdict = load(check.verifier, {})({**row, "reference": check.reference}, Response(row["solution"], answer))

    assert isinstance(verdict, Verdict)
    assert verdict.score == 1.0, verdict


# --- verdicts and jobs ------------------------------------------------------------------------------------------------


def test_a_verdict_has_just_the_fields_of_the_page() -> None:
    assert (
        [field.name for field in fields(Verdict)]
        == list(example("verdict"))
        == list(schema.VerdictRecord.__annotations__)
    )


def test_the_example_row_to_verify_gets_the_example_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(example("row_to_verify")))

    assert verify(["math", str(tmp_path / "rows.jsonl")]) == 0

    said, shown = json.loads(capsys.readouterr().out), example("verdict_line")
    assert list(said) == list(shown)
    for name in ("id", "score", "status", "answer", "metrics"):
        assert said[name] == shown[name]


def test_what_an_audit_writes_conforms() -> None:
    from qwq_rl.audit.audit import audit
    from qwq_rl.audit.findings import Kind
    from qwq_rl.rewards.scorer import grader

    rows = [{"id": "r", "domain": "d", "verifier": "math", "reference": "4", "solution": "5"}]
    record = audit(enumerate(rows, 1), grader()).record("rows")

    assert conforms(record, schema_audit.AuditRecord) == []
    assert list(record) == list(example("audit"))
    assert get_args(Kind) == get_args(get_type_hints(schema_audit.AuditFinding)["kind"])


def test_the_finishes_of_a_record_are_those_of_a_response() -> None:
    assert get_args(get_type_hints(Response)["finish"]) == get_args(get_type_hints(schema.RolloutRecord)["finish"])


def test_the_example_job_is_read_and_written_as_it_stands() -> None:
    assert Job.from_dict(example("job")).to_dict() == example("job")


def test_the_example_result_is_read_and_written_as_it_stands() -> None:
    assert Result.from_dict(example("job_result")).to_dict() == example("job_result")


def test_the_example_job_is_judged_as_its_result_says() -> None:
    with LocalSandbox(slots=1) as sandbox:
        (result,) = sandbox.judge([Job.from_dict(example("job"))])
    said, shown = result.to_dict(), example("job_result")

    assert said.keys() == shown.keys()
    assert [case.keys() for case in said["cases"]] == [case.keys() for case in shown["cases"]]
    for field in ("id", "verdict", "passed", "total", "cached", "events"):
        assert said[field] == shown[field]


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_an_example_recipe_loads_and_its_resolved_form_loads_the_same(tmp_path: Path, name: str) -> None:
    (tmp_path / "0_stage.yaml").write_text(TEXTS[name])
    stage = load_stage(tmp_path / "0_stage.yaml")
    (tmp_path / "resolved.yaml").write_text(resolved_yaml(stage))

    assert f"{stage.kind}_recipe" == name
    assert load_stage(tmp_path / "resolved.yaml") == stage


def test_the_example_of_rules_fits_into_the_example_recipe_without_a_mistake(
    tmp_path: Path,
) -> None:
    recipe = yaml.safe_load(TEXTS["rl_recipe"]) | {"model": {"new": "tiny"}}
    recipe["domains"] |= yaml.safe_load(TEXTS["rules_recipe"])["domains"]
    (tmp_path / "1_math_code.yaml").write_text(yaml.safe_dump(recipe))

    assert mistakes(tmp_path / "1_math_code.yaml") == []


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_the_page_says_what_every_built_in_verifier_compares_with(name: str) -> None:
    assert re.search(rf"^\| [^|]*`{name}`.*\|", PAGE, re.M)


def test_the_example_pipeline_loads_with_its_stages(tmp_path: Path) -> None:
    for stage, name in STAGES.items():
        (tmp_path / f"{stage}.yaml").write_text(TEXTS[name])
    (tmp_path / "pipeline.yaml").write_text(TEXTS["pipeline"])

    pipeline, stages = load_pipeline(tmp_path)

    assert list(pipeline.stages) == list(stages) == list(STAGES)


# --- records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDS)
def test_an_example_record_conforms(name: str) -> None:
    assert conforms(example(name), RECORDS[name]) == []


def prompt(at: int, scores: tuple[float | None, ...], greedy: float | None) -> PromptRecord:
    flags = (0,) * len(scores)
    return PromptRecord(
        f"p{at}", "math", "chain", "1 + 1 = ?", scores, greedy, (4, 5), flags, flags, "2", "correct", ""
    )


@pytest.mark.parametrize("greedy", [False, True])
def test_what_evaluation_writes_conforms(greedy: bool) -> None:
    asked = [prompt(0, (1.0, 0.0), 1.0), prompt(1, (None, 1.0), None)]

    line = evaluation_line(asked, update=1, stage="s", data_set="tiny/final", time=1.0, cpu_seconds=2.0, greedy=greedy)

    assert conforms(line, schema.EvaluationLine) == []
    assert [conforms(one.line(), schema.EvaluationPrompt) for one in asked] == [[], []]


def test_what_evaluation_writes_of_faults_alone_conforms() -> None:
    line = evaluation_line(
        [prompt(0, (None, None), None)], update=1, stage="s", data_set="x", time=1.0, cpu_seconds=2.0, greedy=True
    )

    assert conforms(line, schema.EvaluationLine) == []


def test_what_a_comparison_writes_conforms() -> None:
    lines = [prompt(at, (1.0, 0.0), 1.0).line() for at in range(4)]

    assert conforms(compare(lines, lines), schema.Compared) == []


def test_what_provenance_writes_conforms(tmp_path: Path) -> None:
    (tmp_path / "0_stage.yaml").write_text(TEXTS["sft_recipe"])
    path = tmp_path / "0_stage.yaml"

    said = collect("0_stage", path, load_stage(path), 1, ["qwq_rl.train"], example("provenance")["contract"])

    assert conforms(said, schema.Provenance) == []


def test_what_a_round_of_rollouts_writes_conforms() -> None:
    from qwq_rl.rewards.reward import Scored
    from qwq_rl.rollouts.rollout import Rollout, Segment, rollout_line, summarise_round

    verdict = Verdict(**example("verdict"))
    scored = Scored(1.0, 1.0, {"math": verdict}, {"finished": True}, None)
    response = Response("4<|im_end|>", "4", token_ids=(4, 18))
    segments = (Segment("model", response.text, response.token_ids, (-0.1, -0.2)),)
    rollout = Rollout(example("row"), "1 + 1 = ?", (1, 2), segments, response, 0, 0, 3, scored)
    line = rollout_line(rollout, advantage=0.5)
    shared = {name: example("metrics_rl")[name] for name in schema.Update.__annotations__}

    assert conforms(line, schema.RolloutRecord) == []
    assert (
        conforms({**shared, "kind": "rl", "kl": 0.0, "seconds": {}, **summarise_round([line])}, schema.RlMetrics) == []
    )
    assert asdict(verdict) == example("verdict")


# --- the run folder ---------------------------------------------------------------------------------------------------


def test_the_page_names_the_files_where_the_code_puts_them() -> None:
    (tree,) = re.findall(r"```\n(runs/NAME/.*?)```", PAGE, re.S)
    run, stage = RunFolder(Path("NAME")), RunFolder(Path("NAME")).stage("STAGE")
    of_stage = (
        *(stage.resolved, stage.provenance, stage.metrics, stage.evaluations),
        *(stage.audit, stage.done, stage.log),
    )

    for path in (run.state, run.summary, run.report, run.lock, run.model):
        assert re.search(rf"(^|\s){re.escape(path.name)}\b", tree), path
    for path in (*of_stage, stage.rollouts(12), stage.final):
        assert path.name in tree, path
    assert run.evaluation("STAGE", "tiny/final").name in tree
