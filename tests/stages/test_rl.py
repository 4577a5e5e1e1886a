"""An rl stage: what it records of real updates, and how verdicts, gates and the reward model become advantages."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from run_conforms import departures
from safetensors.torch import load_file
from stage_runs import SmallRun, rollout_lines
from transformers import AutoModelForCausalLM, AutoTokenizer

from qwq_rl.algorithms.named import ALGORITHMS
from qwq_rl.config.recipe import load_stage
from qwq_rl.config.stages import RlRecipe
from qwq_rl.data.row import Row
from qwq_rl.data.sources import load_rows
from qwq_rl.errors import RecipeError, UserError
from qwq_rl.rewards.reward import win_rates
from qwq_rl.rewards.reward_model import load_reward_model, score_answers
from qwq_rl.run_folder.files import RunFolder, read_json, read_lines
from qwq_rl.stages.callbacks import StopRequest
from qwq_rl.stages.context import StageContext
from qwq_rl.stages.rl import grpo_config
from qwq_rl.training.clock import Clock

Line = dict[str, Any]
RL = ("1_math_code", "2_general")


def lines_of(small: SmallRun, stage: str) -> list[Line]:
    return read_lines(small.stage(stage).metrics)


def groups_of(lines: list[Line]) -> list[list[Line]]:
    return [[line for line in lines if line["group"] == group] for group in sorted({line["group"] for line in lines})]


def mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# --- the record -------------------------------------------------------------------------------------------------------


def test_every_record_is_as_the_contracts_say(small: SmallRun) -> None:
    found = [one for one in departures(small.run.path) if "pipeline.json" not in one and "summary.json" not in one]

    assert found == []
    assert len(list(small.run.path.glob("*/done.json"))) == 5


@pytest.mark.parametrize("stage", RL)
def test_there_is_a_line_and_a_file_of_rollouts_for_every_update(small: SmallRun, stage: str) -> None:
    recipe = load_stage(small.recipes / f"{stage}.yaml")
    assert isinstance(recipe, RlRecipe)

    updates = list(range(1, recipe.steps + 1))

    responses = recipe.rollout.prompts * recipe.rollout.generations
    assert [line["update"] for line in lines_of(small, stage)] == updates
    assert [line["samples"] for line in lines_of(small, stage)] == [update * responses for update in updates]
    for update in updates:
        rollouts = rollout_lines(small.stage(stage), update)
        assert Counter(line["group"] for line in rollouts) == dict.fromkeys(range(recipe.rollout.prompts), 4)
        assert all(len({line["row"] for line in group}) == 1 for group in groups_of(rollouts))
        assert {line["update"] for line in rollouts} == {update}
        assert len({line["id"] for line in rollouts}) == responses


@pytest.mark.parametrize("stage", RL)
def test_groups_are_counted_by_what_they_teach(small: SmallRun, stage: str) -> None:
    seen: Counter[str] = Counter()
    for line in lines_of(small, stage):
        groups = [
            [one["reward"] for one in group] for group in groups_of(rollout_lines(small.stage(stage), line["update"]))
        ]

        expected = {
            "total": len(groups),
            "useful": sum(max(group) > min(group) for group in groups),
            "all_zero": sum(max(group) == 0 for group in groups),
            "all_full": sum(min(group) == 1 for group in groups),
            "sampled": len(groups),
        }
        assert line["groups"] == expected
        seen.update(expected)
    assert seen["useful"] > 0
    assert seen["all_zero"] > 0


@pytest.mark.parametrize("stage", RL)
def test_the_numbers_of_a_domain_are_those_of_its_rollouts(small: SmallRun, stage: str) -> None:
    for line in lines_of(small, stage):
        rollouts = rollout_lines(small.stage(stage), line["update"])
        assert set(line["domains"]) == {one["domain"] for one in rollouts}
        for name, said in line["domains"].items():
            mine = [one for one in rollouts if one["domain"] == name]
            lengths: list[float | None] = [len(one["segments"][0]["token_ids"]) for one in mine]
            assert said["rollouts"] == len(mine)
            assert said["groups"] == len(groups_of(mine))
            assert said["useful"] == sum(len({one["reward"] for one in group}) > 1 for group in groups_of(mine))
            for measure in ("reward", "score"):
                assert said[measure] == pytest.approx(mean([one[measure] for one in mine]))
            assert said["tokens"] == pytest.approx(mean(lengths))
            assert said["truncated"] == mean([float(one["finish"] == "length") for one in mine])
        assert line["reward"] == pytest.approx(mean([one["reward"] for one in rollouts]))
        for name, said in line["families"].items():
            mine = [one for one in rollouts if f"{one['domain']}/{one['family']}" == name]
            assert said["rollouts"] == len(mine) > 0
            assert said["reward"] == pytest.approx(mean([one["reward"] for one in mine]))
        statuses = Counter(verdict["status"] for one in rollouts for verdict in one["verdicts"].values())
        assert line["statuses"] == statuses
        judged = Counter(name.partition("#")[0] for one in rollouts for name in one["verdicts"])
        assert {name: counts["judged"] for name, counts in line["verifiers"].items()} == judged


@pytest.mark.parametrize("stage", RL)
def test_an_advantage_is_the_reward_within_its_group(small: SmallRun, stage: str) -> None:
    for line in lines_of(small, stage):
        for group in groups_of(rollout_lines(small.stage(stage), line["update"])):
            rewards = torch.tensor([one["reward"] for one in group])
            expected = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
            assert [one["advantage"] for one in group] == pytest.approx(expected.tolist(), abs=1e-4)


def test_recorded_log_probabilities_are_the_policys_own(small: SmallRun) -> None:
    start = small.stage("0_cold_start").final
    model, tokenizer = AutoModelForCausalLM.from_pretrained(start), AutoTokenizer.from_pretrained(start)
    for line in rollout_lines(small.stage("1_math_code"), 1)[::5]:
        (segment,) = line["segments"]
        prompt = tokenizer(line["prompt"], add_special_tokens=False)["input_ids"]
        ids = torch.tensor([prompt + segment["token_ids"]])
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = scores.gather(1, ids[0, len(prompt) :, None])[:, 0]
        assert segment["logprobs"] == pytest.approx(expected.tolist(), abs=2e-3)
        assert segment["text"] == tokenizer.decode(segment["token_ids"])


def test_the_rows_of_an_update_do_not_come_again_in_the_next(small: SmallRun) -> None:
    rows = [{one["row"] for one in rollout_lines(small.stage("1_math_code"), update)} for update in (1, 2, 3, 4)]

    assert len(set.union(*rows)) == sum(map(len, rows)) == 4 * 6


def test_a_verdict_is_that_of_the_responses_own_answer(small: SmallRun) -> None:
    rows = {row["id"]: row for name in ("CHAINS", "SHIFTS") for row in load_rows(str(small.recipes / f"{name}.jsonl"))}
    judged = [one for update in (1, 2, 3, 4) for one in rollout_lines(small.stage("1_math_code"), update)]
    math_ones = [one for one in judged if one["domain"] == "math" and one["gates"]["answered"]]

    right = {
        one["score"]
        for one in math_ones
        if f"{{{rows[one['row']]['checks'][0]['reference']}}}" in one["segments"][0]["text"]
    }
    wrong = {
        one["score"]
        for one in math_ones
        if f"{{{rows[one['row']]['checks'][0]['reference']}}}" not in one["segments"][0]["text"]
    }

    assert (right, wrong) == ({1.0}, {0.0})
    assert {one["score"] for one in judged if one["domain"] == "code"} == {0.0, 1.0}


def test_evaluating_is_no_part_of_an_updates_seconds(small: SmallRun) -> None:
    for line in lines_of(small, "1_math_code"):
        assert sum(line["seconds"].values()) <= line["wall_seconds"] + 0.01
        assert set(line["seconds"]) == {"generate", "score", "update"}


# --- the reward model -------------------------------------------------------------------------------------------------


def test_the_reward_of_an_open_row_is_its_win_rate_within_the_group(small: SmallRun) -> None:
    stage = small.stage("2_general")
    model, tokenizer = load_reward_model(small.stage("2_reward_model").final)
    tau = (read_json(stage.path / "preference.json") or {})["tau"]
    rows = {row["id"]: row for row in load_rows(str(small.recipes / "OPEN.jsonl"))}
    for update in (1, 2, 3):
        for group in groups_of(rollout_lines(stage, update)):
            if group[0]["family"] != "greet":
                continue
            texts = [one["segments"][0]["text"].removesuffix("<|im_end|>") for one in group]
            answers = [text.rpartition("</think>")[2].strip() for text in texts]
            if not all(answers):  # an empty one loses without being shown to the model; that has a test of its own
                continue
            raw = score_answers(model, tokenizer, [(rows[group[0]["row"]], answer) for answer in answers])
            rates = win_rates(raw, tau)
            assert [one["preference"] for one in group] == pytest.approx(rates, abs=1e-4)
            for one in group:
                assert one["score"] is None
                assert one["reward"] == (one["preference"] if all(one["gates"].values()) else 0.0)


def test_a_row_with_a_check_is_rewarded_by_both(small: SmallRun) -> None:
    echoes = [one for u in (1, 2, 3) for one in rollout_lines(small.stage("2_general"), u) if one["family"] == "echo"]

    assert echoes
    for one in echoes:
        passed = one["score"] * all(one["gates"].values())
        assert one["reward"] == pytest.approx(passed * (0.7 + 0.3 * one["preference"]))


def test_a_domain_without_the_reward_model_has_no_preference(small: SmallRun) -> None:
    rollouts = [one for u in (1, 2, 3) for one in rollout_lines(small.stage("2_general"), u)]

    assert {one["preference"] for one in rollouts if one["domain"] == "math"} == {None}
    assert None not in {one["preference"] for one in rollouts if one["domain"] == "general"}


def test_the_divergence_is_from_the_model_the_stage_started_from(small: SmallRun) -> None:
    first, *later = [line["kl"] for line in lines_of(small, "2_general")]

    assert first == pytest.approx(0.0, abs=1e-6)
    assert all(kl > 1e-6 for kl in later)


# --- a trainer by itself ----------------------------------------------------------------------------------------------


def setting_of(small: SmallRun, path: Path, world_size: int = 1) -> StageContext:
    run = small.beside(path, "0_cold_start")
    return StageContext(run, run.stage("1_math_code"), small.recipes, world_size, None, Clock(), StopRequest())


def test_the_weight_of_a_domain_scales_its_part_of_the_gradient(small: SmallRun, tmp_path: Path) -> None:
    norms = {}
    for weight in (1, 1000):
        run = small.beside(tmp_path / str(weight), "0_cold_start")
        options = ("--steps=1", "--evaluate.every=1", "--evaluate.at_start=false", "--checkpoint.every=1")
        weights = (f"--domains.math.weight={weight}", f"--domains.code.weight={weight}")
        assert small.train(run, "1_math_code", *weights, *options) == 0
        norms[weight] = read_lines(run.stage("1_math_code").metrics)[0]["gradient_norm"]

    assert norms[1000] == pytest.approx(1000 * norms[1], rel=1e-3)


def test_a_rule_of_a_domain_is_recorded_and_takes_from_the_reward(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path / "run", "0_cold_start")
    path = tmp_path / "rule.py"
    path.write_text(
        "def brief(problem, response): return -0.25 * (len(response.token_ids) > 4)\nbrief.largest_penalty = 0.25"
    )
    rule = "checks: [{verifier: brief, role: penalty}]"
    domain = f"{{verifiers: {{math: {{}}, brief: '{path}:brief'}}, {rule}}}"

    assert small.train(run, "1_math_code", f"--domains.math={domain}") == 0

    stage = run.stage("1_math_code")
    for line in read_lines(stage.metrics):
        rollouts = rollout_lines(stage, line["update"])
        ruled = [one for one in rollouts if one["domain"] == "math"]
        penalties = [one["verdicts"]["brief"]["score"] for one in ruled]
        assert [list(one["verdicts"]) for one in ruled] == [["math", "brief"]] * len(ruled)
        assert all("brief" not in one["verdicts"] for one in rollouts if one["domain"] == "code")
        assert line["scores"]["brief"] == pytest.approx(mean(penalties))
        assert line["verifiers"]["brief"]["judged"] == len(ruled)
        for one, penalty in zip(ruled, penalties, strict=True):
            passes = one["score"] == 1 and all(one["gates"].values())
            assert one["reward"] == (pytest.approx(1 + penalty) if passes else 0)


FAULTY = """
def verify(problem, response):
    place = int(problem["id"][-1]) % 3
    if place == 0:
        raise OSError("the checker's disk is gone")
    return None if place == 1 and len(response.token_ids) % 2 else 0.5
"""


@pytest.fixture
def faulty(tmp_path: Path) -> str:
    path = tmp_path / "faulty.py"
    path.write_text(FAULTY)
    return f"--domains.math.verifiers.math={path}:verify"


def test_a_stage_stops_where_too_much_could_not_be_judged(small: SmallRun, tmp_path: Path, faulty: str) -> None:
    run = small.beside(tmp_path / "run", "0_cold_start")

    with pytest.raises(UserError) as stopped:
        small.train(run, "1_math_code", faulty, "--limits.broken_share=1.0")

    said = str(stopped.value)
    assert said.startswith("update 1: ")
    assert "of 24 responses could not be judged, more than limits.fault_share 0.05" in said
    assert "the checker's disk is gone" in said
    assert not run.stage("1_math_code").done.exists()


def test_what_could_not_be_judged_is_counted_and_teaches_nothing(small: SmallRun, tmp_path: Path, faulty: str) -> None:
    run = small.beside(tmp_path / "run", "0_cold_start")

    limits = ("--limits.fault_share=1.0", "--limits.broken_share=1.0")
    assert small.train(run, "1_math_code", faulty, *limits, "--gates=[]") == 0

    stage = run.stage("1_math_code")
    counted = 0
    for line in read_lines(stage.metrics):
        rollouts = rollout_lines(stage, line["update"])
        unjudged = [one for one in rollouts if one["reward"] is None]
        assert line["faults"] == len(unjudged) == line["domains"]["math"]["faults"]
        assert {one["advantage"] for one in unjudged} <= {0.0}
        counted += len(unjudged)
        for group in groups_of(rollouts):
            known = [one for one in group if one["reward"] is not None]
            assert math.fsum(one["advantage"] for one in known) == pytest.approx(0, abs=1e-4)
    assert counted > 0


def test_a_round_of_which_nothing_could_be_judged_changes_no_weight(small: SmallRun, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def verify(problem, response):\n    return None\n")
    run = small.beside(tmp_path / "run", "0_cold_start")
    broken = f"{tmp_path / 'broken.py'}:verify"
    limits = ("--limits.fault_share=1.0", "--limits.broken_share=1.0")
    options = (*limits, "--gates=[]", f"--domains.math.verifiers.math={broken}")

    assert small.train(run, "1_math_code", f"--domains.code.verifiers.code={broken}", *options) == 0

    stage = run.stage("1_math_code")
    assert [path for path in departures(run.path) if stage.name in path] == []
    assert [(line["faults"], line["reward"]) for line in read_lines(stage.metrics)] == [(24, None)] * 4
    before, after = (load_file(folder.final / "model.safetensors") for folder in (run.stage("0_cold_start"), stage))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_micro_batches_add_up_to_the_same_update(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "0_cold_start")

    assert small.train(run, "1_math_code", "--update.micro_tokens=100") == 0

    whole, split = (folder.stage("1_math_code") for folder in (small.run, run))
    assert [line["reward"] for line in read_lines(split.metrics)] == [
        line["reward"] for line in read_lines(whole.metrics)
    ]
    for name in ("gradient_norm", "learning_rate"):
        expected = [line[name] for line in read_lines(whole.metrics)]
        assert [line[name] for line in read_lines(split.metrics)] == pytest.approx(expected, rel=1e-3)


def test_updates_that_share_a_round_each_have_a_whole_line(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "0_cold_start")
    options = ("--update.updates_per_rollout=2", "--update.epochs=2", "--steps=6")

    assert small.train(run, "1_math_code", *options) == 0

    stage = run.stage("1_math_code")
    lines = read_lines(stage.metrics)
    assert [path for path in departures(run.path) if stage.name in path] == []
    assert sorted(path.stem for path in stage.rollouts(0).parent.iterdir()) == ["update-000001", "update-000005"]
    assert [line["reward"] for line in lines[:4]] == [lines[0]["reward"]] * 4
    assert [line["samples"] for line in lines] == [12, 24, 36, 48, 60, 72]
    assert lines[1]["clipped"] is not None


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name not in ("grpo", "ppo")])
def test_every_algorithm_takes_an_update(small: SmallRun, tmp_path: Path, algorithm: str) -> None:
    run = small.beside(tmp_path, "0_cold_start")
    options = ("--steps=1", "--evaluate.every=1", "--evaluate.at_start=false", "--checkpoint.every=1")

    assert small.train(run, "1_math_code", f"--algorithm={algorithm}", *options) == 0

    (line,) = read_lines(run.stage("1_math_code").metrics)
    assert line["gradient_norm"] > 0


def test_a_new_model_can_be_trained_and_has_nothing_to_diverge_from(small: SmallRun, tmp_path: Path) -> None:
    text = (small.recipes / "1_math_code.yaml").read_text().replace("from: 0_cold_start", "new: tiny")
    recipes = SmallRun(tmp_path, RunFolder(tmp_path / "run"))
    (tmp_path / "1_new.yaml").write_text(text)
    options = ("--steps=1", "--evaluate.every=1", "--evaluate.at_start=false", "--checkpoint.every=1")

    assert recipes.train(recipes.run, "1_new", *options) == 0
    with pytest.raises(RecipeError, match=r"update\.kl: needs the model that the stage started from"):
        recipes.train(recipes.run, "1_new", "--update.kl=0.01", *options)


def test_a_recipes_own_trl_settings_reach_trl(small: SmallRun, tmp_path: Path) -> None:
    recipe = load_stage(small.recipes / "1_math_code.yaml", ["--trl={cast_lm_head_to_fp32: true}"])
    assert isinstance(recipe, RlRecipe)

    found = grpo_config(recipe, setting_of(small, tmp_path))

    assert found.cast_lm_head_to_fp32 is True
    assert (found.beta, found.num_generations, found.max_completion_length) == (0.0, 4, 32)


# --- published data ---------------------------------------------------------------------------------------------------

PUBLISHED = """\
kind: rl
model: {from: 0_cold_start}
algorithm: grpo
data:
  - {source: GSM8K, mapper: gsm8k, limit: 20}
  - {source: HUMANEVAL, mapper: humaneval, limit: 20}
domains:
  math: {verifiers: {math: {}}}
  code: {verifiers: {code: {}}}
gates: [finished]
rollout: {prompts: 4, generations: 2, max_tokens: 24}
update: {lr: 1.0e-3}
steps: 1
evaluate: {every: 1, sets: [HELDOUT], samples: 1}
checkpoint: {every: 1, keep: 1}
"""


def test_published_problems_go_through_the_same_trainer(small: SmallRun, tmp_path: Path, published: Path) -> None:
    for name in ("math/gsm8k_train.jsonl", "code/humaneval.jsonl"):
        if not (published / name).is_file():
            pytest.skip(f"{name} is not in {published}")
    recipe: dict[str, Any] = yaml.safe_load(PUBLISHED)
    recipe["data"][0]["source"] = str(published / "math/gsm8k_train.jsonl")
    recipe["data"][1]["source"] = str(published / "code/humaneval.jsonl")
    recipe["evaluate"]["sets"] = [str(small.recipes / "HELDOUT.jsonl")]
    (tmp_path / "recipes").mkdir()
    for name in ("0_cold_start", "1_published"):
        text = yaml.safe_dump(recipe) if name == "1_published" else (small.recipes / f"{name}.yaml").read_text()
        (tmp_path / "recipes" / f"{name}.yaml").write_text(text)
    run: RunFolder = small.beside(tmp_path / "run", "0_cold_start")

    assert SmallRun(tmp_path / "recipes", run).train(run, "1_published") == 0

    (line,) = read_lines(run.stage("1_published").metrics)
    rollouts: list[Row] = rollout_lines(run.stage("1_published"), 1)
    assert {name: said["rollouts"] for name, said in line["domains"].items()} == {"math": 4, "code": 4}
    assert {one["family"] for one in rollouts} == {"gsm8k", "humaneval"}
    assert all(one["score"] is not None for one in rollouts)
    assert line["faults"] == 0
