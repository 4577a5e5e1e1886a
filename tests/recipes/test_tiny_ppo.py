"""recipes/tiny has stage 1 with PPO beside the pipeline: the same samples, another algorithm."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from qwq_rl.config.check import check
from qwq_rl.config.recipe import load_pipeline
from qwq_rl.config.stages import RlRecipe

TINY = Path(__file__).parent.parent.parent / "recipes" / "tiny"


def test_it_differs_from_stage_1_in_nothing_but_the_algorithm() -> None:
    (grpo,) = check(TINY / "1_math_code.yaml").values()
    (ppo,) = check(TINY / "1_math_code_ppo.yaml").values()

    assert isinstance(ppo, RlRecipe)
    assert dataclasses.replace(ppo, algorithm="grpo", critic=None) == grpo


def test_the_pipeline_leaves_it_out() -> None:
    pipeline, stages = load_pipeline(TINY)

    assert "1_math_code_ppo" not in (*pipeline.stages, *stages)
