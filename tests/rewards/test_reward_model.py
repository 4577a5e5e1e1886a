"""The reward model's part in a reward: win rates within a group, and the scale they are measured on."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from stage_runs import SmallRun

from qwq_rl.data.row import Row
from qwq_rl.errors import UserError
from qwq_rl.rewards.reward import win_rates
from qwq_rl.rewards.reward_model import MICRO_BATCH_TOKENS, Preference, load_reward_model, score_answers
from qwq_rl.run_folder.files import read_json, write_json
from qwq_rl.verifiers import Response

ROW: Row = {"id": "r", "domain": "general", "prompt": "greet Ann of sky town who likes tea"}
REPLIES = ("hello Ann, enjoy your tea!", "go away Ann, no tea", "hi Ann, best of your tea!", "welcome Bob")


@pytest.fixture(scope="module")
def folder(small: SmallRun) -> str:
    return str(small.stage("2_reward_model").final)


def items(*answers: str) -> list[tuple[Row, Response]]:
    return [(ROW, Response(f"x</think>{answer}", answer)) for answer in answers]


def raw(folder: str, *answers: str) -> list[float]:
    return score_answers(*load_reward_model(folder), [(ROW, answer) for answer in answers])


def test_a_win_rate_is_within_the_group_on_the_measured_scale(folder: str, tmp_path: Path) -> None:
    record = tmp_path / "preference.json"

    found = Preference(folder, record).win_rates(items(*REPLIES), 2, [True] * 4)

    scores = raw(folder, *REPLIES)
    tau = statistics.fmean([statistics.pvariance(scores[:2]), statistics.pvariance(scores[2:])]) ** 0.5
    assert (read_json(record) or {})["tau"] == pytest.approx(tau, rel=1e-4)
    assert found == pytest.approx([*win_rates(scores[:2], tau), *win_rates(scores[2:], tau)], abs=1e-4)


def test_the_scale_stays_what_the_first_round_measured(folder: str, tmp_path: Path) -> None:
    record = tmp_path / "preference.json"
    write_json(record, {"tau": 5.0})

    found = Preference(folder, record).win_rates(items(*REPLIES), 4, [True] * 4)

    assert found == pytest.approx(win_rates(raw(folder, *REPLIES), 5.0), abs=1e-4)
    assert read_json(record) == {"tau": 5.0}


def test_a_round_without_open_rows_measures_no_scale(folder: str, tmp_path: Path) -> None:
    record = tmp_path / "preference.json"

    found = Preference(folder, record).win_rates(items(*REPLIES), 2, [False] * 4)

    assert found == [None] * 4
    assert not record.exists()


def test_only_the_groups_that_are_wanted_are_judged(folder: str, tmp_path: Path) -> None:
    found = Preference(folder, tmp_path / "p.json").win_rates(items(*REPLIES), 2, [False, False, True, True])

    assert found[:2] == [None, None]
    assert sum(rate for rate in found[2:] if rate is not None) == pytest.approx(1.0)


def test_an_empty_answer_loses_every_comparison(folder: str, tmp_path: Path) -> None:
    found = Preference(folder, tmp_path / "p.json").win_rates(items(REPLIES[0], "", REPLIES[1]), 3, [True] * 3)

    assert None not in found
    assert found[1] == min(rate for rate in found if rate is not None) < 0.01


def test_a_group_of_empty_answers_is_a_draw(folder: str, tmp_path: Path) -> None:
    assert Preference(folder, tmp_path / "p.json").win_rates(items("", ""), 2, [True] * 2) == [0.5, 0.5]


def test_answers_are_scored_in_order_whatever_the_batches(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [*REPLIES, "hi", f"{REPLIES[0]} {REPLIES[0]}", "tea " * 40]
    together = raw(folder, *answers)

    monkeypatch.setattr("qwq_rl.rewards.reward_model.MICRO_BATCH_TOKENS", 60)
    apart = raw(folder, *answers)

    assert 60 * len(answers) < MICRO_BATCH_TOKENS
    assert apart == pytest.approx(together, abs=1e-5)
    assert apart == pytest.approx([raw(folder, answer)[0] for answer in answers], abs=1e-5)
    assert len(set(apart)) == len(answers)


def test_no_answers_have_no_scores(folder: str) -> None:
    assert raw(folder) == []


def test_a_reward_model_that_is_not_there_is_named(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "1_math_code")

    with pytest.raises(UserError, match="2_general starts from stage 2_reward_model, which has not finished"):
        small.train(run, "2_general")
