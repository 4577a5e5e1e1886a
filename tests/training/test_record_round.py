"""The file of a round's rollouts in one process; of several, in test_distributed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwq_rl.config.blocks import LimitsBlock
from qwq_rl.run_folder.files import read_lines
from qwq_rl.training.record_round import record_round
from qwq_rl.training.safeguards import LimitReached, Safeguards

ROWS = {"sum-1": {"id": "sum-1", "reference": "4"}}


def line(group: int, sample: int, reward: float) -> dict[str, Any]:
    verdict = {"score": reward, "status": "wrong", "reason": "9 is not 4", "answer": "9", "metrics": {}, "seconds": 0.0}
    segment = {"role": "model", "text": r"hm </think> \boxed{9}", "token_ids": [1, 2], "logprobs": [-0.5, -0.5]}
    judged = {"reward": reward, "score": reward, "verdicts": {"math": verdict}, "gates": {"finished": True}}
    placed = {"row": "sum-1", "domain": "math", "family": "chain", "group": group, "sample": sample, "update": 1}
    return {**placed, **judged, "prompt": "2 + 2?", "segments": [segment], "finish": "stop"}


def test_lines_lie_in_the_order_of_groups_and_samples_and_are_summed_up(tmp_path: Path) -> None:
    lines = [line(3, 1, 0.0), line(0, 1, 1.0), line(3, 0, 0.0), line(0, 0, 0.0)]
    counts = [{"math": {"judged": 3}}, {"math": {"judged": 1}}]

    summary, events = record_round(tmp_path / "update-000001.jsonl", lines, counts, 5, Safeguards(LimitsBlock()), ROWS)

    assert [(one["group"], one["sample"]) for one in read_lines(tmp_path / "update-000001.jsonl")] == [
        (0, 0),
        (0, 1),
        (3, 0),
        (3, 1),
    ]
    assert summary["groups"] == {"total": 2, "useful": 1, "all_zero": 1, "all_full": 0, "sampled": 5}
    assert summary["verifiers"] == {"math": {"judged": 4}}
    assert events == []


def test_a_round_that_stops_the_stage_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "update-000001.jsonl"

    with pytest.raises(LimitReached, match="every reward has been 0"):
        record_round(path, [line(0, 0, 0.0), line(0, 1, 0.0)], [], 1, Safeguards(LimitsBlock(zero_rounds=1)), ROWS)

    assert len(read_lines(path)) == 2
