"""The made-up run has the shape that real runs have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conforms import conforms

from qwq_rl.run_folder import schema
from qwq_rl.run_folder.files import read_lines

FILES: dict[str, Any] = {
    "0_cold_start/metrics.jsonl": schema.SupervisedMetrics,
    "2_reward_model/metrics.jsonl": schema.SupervisedMetrics,
    "1_math_code/metrics.jsonl": schema.RlMetrics,
    "1_math_code/evaluations.jsonl": schema.EvaluationLine,
    "2_general/rollouts/update-000003.jsonl": schema.RolloutRecord,
    "evaluations/2_general/tiny-final.jsonl": schema.EvaluationPrompt,
    "evaluations/2_general/tiny-final.json": schema.Evaluation,
    "1_control/provenance.json": schema.Provenance,
    "pipeline.json": schema.PipelineState,
    "summary.json": schema.Summary,
}


@pytest.mark.parametrize("name", FILES)
def test_the_made_up_run_keeps_to_the_contracts(run: Path, name: str) -> None:
    path = run / name
    found = read_lines(path) if path.suffix == ".jsonl" else [json.loads(path.read_text())]
    assert found
    assert [departure for one in found for departure in conforms(one, FILES[name])] == []
