"""From records to estimates, closed form; and from a real tiny model to the files of an evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conforms import conforms
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from qwq_rl.data.row import Row
from qwq_rl.data.tiny.model import build_model, build_tokenizer
from qwq_rl.errors import RunStateError, UserError
from qwq_rl.evals.estimates import PromptRecord, agreement, compare, evaluation_line
from qwq_rl.evals.evaluate import evaluate_model, load_model, main, stage_checkpoint
from qwq_rl.evals.intervals import mean_interval, stratified_interval
from qwq_rl.run_folder import schema
from qwq_rl.run_folder.files import RunFolder, read_json, read_lines, write_json


def record(name: str, scores: list[float | None], family: str = "math/chain", **more: object) -> PromptRecord:
    domain, _, kind = family.partition("/")
    zeros = (0,) * len(scores)
    base = PromptRecord(name, domain, kind, "1 + 1 = ?", tuple(scores), None, zeros, zeros, zeros, "2", "correct", "")
    return replace(base, **more)  # type: ignore[arg-type]


def line(records: list[PromptRecord], greedy: bool = False) -> dict:
    return evaluation_line(
        records, update=3, stage="s", data_set="tiny/final", time=1.0, cpu_seconds=2.0, greedy=greedy
    )


def test_a_domain_is_the_mean_of_its_families_and_a_family_that_of_its_prompts() -> None:
    records = [record("a", [1.0, 0.0]), record("b", [1.0, 1.0]), record("c", [0.0, 0.0], "math/story")]
    found = line([*records, record("d", [1.0, 1.0], "code/fold")])
    assert found["families"]["math/chain"]["sampled"]["mean"] == 0.75
    assert found["domains"]["math"]["sampled"]["mean"] == 0.375
    assert found["domains"]["math"]["pass_at_k"]["mean"] == 0.5
    assert found["domains"]["math"]["prompts"] == 3
    assert found["samples"] == 2
    assert list(found["domains"]) == ["math", "code"]


def test_intervals_are_those_of_the_statistics() -> None:
    chain, story = [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]
    records = [record(f"c{i}", list(scores)) for i, scores in enumerate(chain)]
    records += [record(f"s{i}", list(scores), "math/story") for i, scores in enumerate(story)]
    found, of_chain, of_both = line(records), mean_interval(chain), stratified_interval([chain, story])
    assert of_chain is not None
    assert of_both is not None
    assert found["families"]["math/chain"]["sampled"]["low"] == pytest.approx(of_chain.low)
    assert found["domains"]["math"]["sampled"] == pytest.approx(vars(of_both))


def test_greedy_is_there_where_it_was_asked_for() -> None:
    records = [record("a", [0.0], greedy=1.0), record("b", [0.0], greedy=0.0)]
    assert line(records, greedy=True)["domains"]["math"]["greedy"]["mean"] == 0.5
    assert line(records)["domains"]["math"]["greedy"] is None


def test_faults_are_counted_and_left_out() -> None:
    records = [record("a", [1.0, None], greedy=None), record("b", [None, None], greedy=1.0)]
    found = line(records, greedy=True)["domains"]["math"]
    assert (found["sampled"]["mean"], found["greedy"]["mean"], found["faults"]) == (1.0, 1.0, 4)
    assert line([record("a", [None])])["domains"]["math"]["sampled"] is None


def test_modes_split_the_responses_by_their_reasoning() -> None:
    records = [record("a", [1.0, 0.0, 1.0, None], terse=(0, 1, 0, 0)), record("b", [0.0] * 4, terse=(0, 0, 0, 0))]
    modes = line(records)["modes"]["math"]
    assert modes["worked"] == {"mean": pytest.approx(2 / 6), "share": 7 / 8}
    assert modes["terse"] == {"mean": 0.0, "share": 1 / 8}
    assert line(records[1:])["modes"]["math"]["terse"] == {"mean": None, "share": 0.0}


def test_tokens_and_truncation_weigh_families_alike() -> None:
    records = [record("a", [1.0, 1.0], tokens=(10, 20), truncated=(1, 0))]
    records += [record(f"s{i}", [1.0, 1.0], "math/story", tokens=(30, 30)) for i in range(3)]
    found = line(records)["domains"]["math"]
    assert (found["tokens"], found["truncated"]) == (22.5, 0.25)


def test_two_checkpoints_are_compared_prompt_by_prompt() -> None:
    before = [record("a", [0.0, 0.0]), record("b", [1.0, 0.0]), record("x", [1.0], "code/fold")]
    after = [record("b", [1.0, 0.0]), record("a", [1.0, 1.0]), record("c", [0.0])]
    found = compare([r.line() for r in after], [r.line() for r in before])
    assert found["families"]["math/chain"]["difference"]["mean"] == 0.5
    assert found["domains"]["math"]["prompts"] == 2
    assert list(found["domains"]) == ["math"]


def test_agreement_counts_pairs_within_and_across_prompts() -> None:
    judged = [("a", 1.0, 0.9), ("a", 0.0, 0.1), ("a", 0.0, 0.9), ("b", 1.0, 0.2), ("b", None, 5.0)]
    found = agreement(judged)
    assert found == {"reward_model_pairs": 0.75, "reward_model_auc": (1.5 + 1.0) / 4, "pairs": 2, "prompts": 2}


def test_agreement_without_a_pair_is_not_a_number() -> None:
    assert agreement([("a", 1.0, 0.9), ("b", 1.0, 0.2)])["reward_model_auc"] is None


# From here on with a real model


VERIFIERS = """
def even(problem, response):
    return len(response.token_ids) % 2 == 0

def faulty(problem, response):
    raise RuntimeError("out of order")
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("model"), build_tokenizer()
    # A model of random weights never closes a thinking block, so this template opens none.
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    build_model(tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(folder: Path, verifier: str = "even", count: int = 6) -> list[Row]:
    path = folder / "lab.py"
    path.write_text(VERIFIERS)
    check = {"verifier": f"{path}:{verifier}", "reference": None}
    return [
        {"id": f"r{i}", "domain": "math", "family": f"f{i % 2}", "prompt": f"{i} + 1 mod 5 = ?", **check}
        for i in range(count)
    ]


def write_rows(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_model_is_sampled_and_judged(checkpoint: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(checkpoint)
    problems = rows(tmp_path)
    found = evaluate_model(model, tokenizer, problems, samples=40, max_tokens=40, greedy=True, seed=0)
    assert [r.id for r in found] == [row["id"] for row in problems]
    for one in found:
        assert one.greedy in (0.0, 1.0)
        for score, tokens, cut in zip(one.scores, one.tokens, one.truncated, strict=True):
            assert tokens == 40 if cut else score == (tokens % 2 == 0)
    assert {score for one in found for score in one.scores} == {0.0, 1.0}


def test_a_prompt_keeps_its_samples_whatever_else_is_evaluated(checkpoint: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(checkpoint)
    settings = {"samples": 3, "max_tokens": 8, "greedy": False, "seed": 0}
    problems = rows(tmp_path)
    whole = evaluate_model(model, tokenizer, problems, **settings)  # type: ignore[arg-type]
    part = evaluate_model(model, tokenizer, problems[4:], **settings)  # type: ignore[arg-type]
    assert [r.line() for r in part] == [r.line() for r in whole[4:]]
    assert len({r.response for r in whole}) > 1


def test_a_verifier_that_fails_is_a_fault_and_no_wrong_answer(checkpoint: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(checkpoint)
    problems = [
        {**row, "checks": [{"verifier": row["verifier"], "reference": None}], "verifier": None}
        for row in rows(tmp_path, "faulty", 1)
    ]
    (found,) = evaluate_model(model, tokenizer, problems, samples=40, max_tokens=40, greedy=False, seed=0)
    assert None in found.scores
    assert 1.0 not in found.scores


def test_the_command_writes_both_files_and_does_nothing_twice(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_rows(tmp_path / "set.jsonl", rows(tmp_path)), tmp_path / "out"
    command = ["--model", str(checkpoint), "--sets", str(source), "--out", str(out), "--samples", "2"]
    assert main([*command, "--max-tokens", "6"]) == 0
    (written,) = out.glob("*.json")
    first = read_json(written)
    assert first is not None
    assert (first["set"], first["samples"], first["domains"]["math"]["prompts"]) == (str(source), 2, 6)
    lines = read_lines(written.with_suffix(".jsonl"))
    assert len(lines) == 6
    assert conforms(first, schema.Evaluation) == []
    assert conforms(lines[0], schema.EvaluationPrompt) == []
    assert main([*command, "--max-tokens", "6"]) == 0
    assert read_json(written) == first
    assert main([*command, "--max-tokens", "7"]) == 0
    again = read_json(written)
    assert again is not None
    assert again["time"] > first["time"]
    assert "pass@1" in capsys.readouterr().out


def test_a_stage_that_is_not_finished_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "0_cold_start" / "done.json", {"update": 1})
    with pytest.raises(RunStateError, match="stage 1_math_code is not finished; finished are: 0_cold_start"):
        stage_checkpoint(tmp_path, "1_math_code")
    assert main(["--run", str(tmp_path), "--stage", "1_math_code", "--sets", "tiny/final"]) == 3
    assert "not finished" in capsys.readouterr().err


def test_a_stage_is_evaluated_at_its_last_update(checkpoint: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    stage = run.stage("1_math_code")
    stage.checkpoints.mkdir(parents=True)
    stage.final.symlink_to(checkpoint, target_is_directory=True)
    write_json(stage.done, {"update": 7, "cpu_seconds": 3.5, "wall_seconds": 4.0})
    source = write_rows(tmp_path / "set.jsonl", rows(tmp_path))
    command = ["--run", str(run.path), "--stage", "1_math_code", "--sets", str(source), "--samples", "1"]
    assert main([*command, "--max-tokens", "4", "--no-greedy"]) == 0
    found = read_json(run.evaluation("1_math_code", str(source)))
    assert found is not None
    assert (found["update"], found["cpu_seconds"], found["domains"]["math"]["greedy"]) == (7, 3.5, None)


def test_every_stage_of_a_run_knows_the_verifiers_that_its_recipes_name(checkpoint: Path, tmp_path: Path) -> None:
    stage = RunFolder(tmp_path / "run").stage("0_start")
    stage.checkpoints.mkdir(parents=True)
    stage.final.symlink_to(checkpoint, target_is_directory=True)
    write_json(stage.done, {"update": 7, "cpu_seconds": 3.5, "wall_seconds": 4.0})
    own = [{**row, "verifier": "own"} for row in rows(tmp_path)]
    source, recipe = write_rows(tmp_path / "set.jsonl", own), tmp_path / "recipe"
    recipe.mkdir()
    (recipe / "1_later.yaml").write_text(f"domains: {{math: {{verifiers: {{own: '{tmp_path}/lab.py:even'}}}}}}\n")
    write_json(RunFolder(tmp_path / "run").state, {"recipe": str(recipe), "stages": {}})
    command = ["--run", str(tmp_path / "run"), "--stage", "0_start", "--sets", str(source), "--samples", "1"]
    assert main([*command, "--max-tokens", "4", "--no-greedy"]) == 0


def test_open_rows_show_how_far_the_reward_model_agrees_with_the_rule(checkpoint: Path, tmp_path: Path) -> None:
    """The run's own reward model scores the answers to rows that no check trains on."""
    run = RunFolder(tmp_path / "run")
    stage, judge = run.stage("2_general"), run.stage("2_reward_model")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(checkpoint, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(judge.final)
    tokenizer.save_pretrained(judge.final)
    stage.checkpoints.mkdir(parents=True)
    stage.final.symlink_to(checkpoint, target_is_directory=True)
    stage.resolved.write_text("reward_model: {from: 2_reward_model}\n")
    for folder in (stage, judge):
        write_json(folder.done, {"update": 7, "cpu_seconds": 3.5, "wall_seconds": 4.0})
    open_rows = [
        {**row, "id": f"open-{row['id']}", "family": "greet", "verifier": None, "grade": {"verifier": row["verifier"]}}
        for row in rows(tmp_path)
    ]
    source = write_rows(tmp_path / "set.jsonl", [*rows(tmp_path), *open_rows])
    command = ["--run", str(run.path), "--stage", "2_general", "--sets", str(source), "--samples", "40"]
    assert main([*command, "--max-tokens", "40", "--no-greedy"]) == 0
    found = read_json(run.evaluation("2_general", str(source)))
    assert found is not None
    assert conforms(found, schema.Evaluation) == []
    assert found["agreement"]["prompts"] == 6
    assert found["agreement"]["pairs"] > 0
    assert 0.0 < found["agreement"]["reward_model_auc"] < 1.0


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load_model(tmp_path)


def test_an_unknown_verifier_is_said_before_anything_is_sampled(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_rows(tmp_path / "set.jsonl", [{**row, "verifier": "mathh"} for row in rows(tmp_path)])
    assert main(["--model", str(checkpoint), "--sets", str(source), "--out", str(tmp_path / "out")]) == 2
    assert "mathh" in capsys.readouterr().err
