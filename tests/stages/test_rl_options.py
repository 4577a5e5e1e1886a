"""What an rl stage can be asked for beyond plain GRPO: a critic, refills, limits, curricula."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from run_conforms import departures
from safetensors.torch import load_file
from stage_runs import SmallRun, rollout_lines

from qwq_rl.errors import UserError
from qwq_rl.rollouts import collect
from qwq_rl.run_folder.files import read_lines

PPO = ("--algorithm=ppo", "--critic={lr: 0.001, warmup: 1, minibatches: 2}")


def test_ppo_learns_with_a_critic_that_warms_up(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "0_cold_start")

    assert small.train(run, "1_math_code", *PPO) == 0

    stage = run.stage("1_math_code")
    lines = read_lines(stage.metrics)
    assert [path for path in departures(run.path) if stage.name in path] == []
    assert lines[0]["gradient_norm"] == 0
    assert all(line["gradient_norm"] > 0 for line in lines[1:])
    assert all(line["critic"]["updates"] == 2 for line in lines)
    assert lines[-1]["critic"]["value_loss"] < lines[0]["critic"]["value_loss"]


def test_useless_groups_are_replaced(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "0_cold_start")

    assert small.train(run, "1_math_code", "--rollout.refill=3", "--rollout.sampling=adaptive") == 0

    stage = run.stage("1_math_code")
    before = [line["groups"] for line in read_lines(small.stage("1_math_code").metrics)]
    after = [line["groups"] for line in read_lines(stage.metrics)]
    assert [one["total"] for one in after] == [6] * 4
    assert all(one["sampled"] > 6 for one in after if one["useful"] < 6)
    assert max(one["sampled"] for one in after) > 6
    assert sum(one["useful"] for one in after) > sum(one["useful"] for one in before)


def test_a_response_that_was_cut_off_can_be_left_out(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "0_cold_start")
    options = ("--rollout.max_tokens=3", "--rollout.overlong=mask", "--limits.zero_rounds=null", "--gates=[]")

    assert small.train(run, "1_math_code", *options) == 0

    lines = read_lines(run.stage("1_math_code").metrics)
    assert [line["truncated"] for line in lines] == [1.0] * 4
    assert [line["gradient_norm"] for line in lines] == [0.0] * 4


def test_responses_may_grow_longer_as_training_goes_on(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "0_cold_start")

    options = ("--rollout.lengthen={start: 2, over: 2}", "--limits.zero_rounds=null")
    assert small.train(run, "1_math_code", *options) == 0

    longest = [line["tokens"]["max"] for line in read_lines(run.stage("1_math_code").metrics)]
    assert longest[0] == 2
    assert longest[2] > 2


def test_what_the_sampler_thinks_is_what_the_trainer_thinks(small: SmallRun) -> None:
    for stage in ("1_math_code", "2_general"):
        assert all(line["gap"]["max"] < 1e-4 for line in read_lines(small.stage(stage).metrics))


def test_a_stage_that_earns_nothing_stops_and_says_why(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "0_cold_start")

    with pytest.raises(UserError, match=r"every reward has been 0 since the stage began, in 2 rounds") as stopped:
        small.train(run, "1_math_code", "--rollout.max_tokens=2", "--limits.zero_rounds=2")

    assert "max_tokens" in str(stopped.value)


def test_a_gradient_above_the_limit_is_not_applied(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "0_cold_start")

    assert small.train(run, "1_math_code", "--limits.gradient_norm=1.0e-6", "--limits.skipped_updates=9") == 0

    stage = run.stage("1_math_code")
    before, after = (load_file(folder.final / "model.safetensors") for folder in (run.stage("0_cold_start"), stage))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [line["skipped"] for line in read_lines(stage.metrics)] == [1, 2, 3, 4]
    assert [path for path in departures(run.path) if stage.name in path] == []


def test_a_round_sampled_part_by_part_is_the_same_round(
    small: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "PART", 8)
    run = small.beside(tmp_path, "0_cold_start")

    assert small.train(run, "1_math_code", "--steps=2") == 0

    fields = ("id", "row", "score", "reward")
    for update in (1, 2):
        whole, parts = (rollout_lines(folder.stage("1_math_code"), update) for folder in (small.run, run))
        tokens = [[one["segments"][0]["token_ids"] for one in lines] for lines in (whole, parts)]
        assert tokens[0] == tokens[1]
        assert [[one[name] for name in fields] for one in whole] == [[one[n] for n in fields] for one in parts]
