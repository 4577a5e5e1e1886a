"""What the metrics say of a round of rollouts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_rl.rollouts.rollout import added, summarise_round

Line = dict[str, Any]


def line(group: int, reward: float | None, domain: str = "math", finish: str = "stop", **more: Any) -> Line:
    segment = {"role": "model", "token_ids": [1] * more.pop("tokens", 3), "logprobs": [-0.5, -1.5]}
    verdict = {"status": more.pop("status", "correct"), "score": reward, "metrics": more.pop("metrics", {})}
    verdicts = {"math": verdict, **more.pop("verdicts", {})}
    placed = {"group": group, "domain": domain, "family": more.pop("family", "chain"), "finish": finish}
    return {**placed, "reward": reward, "score": more.pop("score", reward), "segments": [segment], "verdicts": verdicts}


def test_groups_are_useful_all_zero_all_full_or_none_of_these() -> None:
    rewards = ((0.0, 1.0), (0.0, 0.0), (1.0, 1.0), (0.5, 0.5), (None, 1.0), (None, None), (0.2, 0.1))

    found = summarise_round([line(group, reward) for group, of in enumerate(rewards) for reward in of])

    assert found["groups"] == {"total": 7, "useful": 2, "all_zero": 1, "all_full": 2}
    assert found["faults"] == 3


def test_what_could_not_be_judged_is_in_no_mean() -> None:
    found = summarise_round([line(0, 1.0), line(0, None), line(0, 0.5), line(0, None, score=0.0)])

    assert found["reward"] == 0.75
    assert found["domains"]["math"]["score"] == 0.5
    assert found["domains"]["math"]["faults"] == 2


def test_a_round_without_any_reward_has_none() -> None:
    found = summarise_round([line(0, None), line(0, None)])

    assert found["reward"] is None
    assert found["families"] == {"math/chain": {"reward": None, "score": None, "rollouts": 2}}


def test_an_open_row_has_a_reward_and_no_score() -> None:
    found = summarise_round([line(0, 0.4, score=None), line(0, 0.6, score=None)])

    assert (found["domains"]["math"]["reward"], found["domains"]["math"]["score"]) == (0.5, None)


def test_rollouts_whose_program_tried_to_get_out_are_counted() -> None:
    found = summarise_round([line(0, 1.0, metrics={"attempts": 2.0}), line(0, 1.0, metrics={"passed": 2.0})])

    assert found["attempts"] == 1


def test_lengths_truncation_and_statuses_are_those_of_all_responses() -> None:
    lines = [line(0, 1.0, tokens=3), line(0, 0.0, finish="length", tokens=9, status="no_answer")]

    found = summarise_round(lines)

    assert found["tokens"] == {"mean": 6.0, "max": 9}
    assert found["truncated"] == 0.5
    assert found["statuses"] == {"correct": 1, "no_answer": 1}


def test_counts_of_verifiers_add_up_over_processes() -> None:
    counts = [{"math": {"judged": 8, "faults": 1}}, {"math": {"judged": 8, "cached": 2}, "code": {"judged": 4}}]

    assert added(counts) == {"code": {"judged": 4}, "math": {"judged": 16, "faults": 1, "cached": 2}}


def test_every_verifier_and_rule_has_its_mean_score() -> None:
    loop = {"repetition": {"status": "wrong", "score": -0.3, "metrics": {}}}

    found = summarise_round([line(0, 1.0), line(0, 0.5, verdicts=loop), line(0, None)])

    assert found["scores"] == {"math": 0.75, "repetition": -0.3}


def test_entropy_is_estimated_from_the_sampled_tokens() -> None:
    assert summarise_round([line(0, 1.0), line(0, 0.0)])["entropy"] == pytest.approx(1.0)


RESPONSES = st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.sampled_from([None, 0.0, 0.5, 1.0]))


@given(st.lists(RESPONSES, min_size=1))
def test_domains_add_up_to_the_round(drawn: list[tuple[str, int, float | None]]) -> None:
    lines = [line(ord(domain) * 10 + group, reward, domain) for domain, group, reward in drawn]

    found = summarise_round(lines)

    domains = found["domains"].values()
    assert sum(of["rollouts"] for of in domains) == len(lines)
    assert sum(of["groups"] for of in domains) == found["groups"]["total"]
    assert sum(of["useful"] for of in domains) == found["groups"]["useful"]
    assert sum(of["faults"] for of in domains) == found["faults"]
    assert sum(of["rollouts"] for of in found["families"].values()) == len(lines)
