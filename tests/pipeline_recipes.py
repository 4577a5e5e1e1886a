"""A recipe of five stages for the tests of the pipeline, and a short one of two."""

from __future__ import annotations

import re
from pathlib import Path

PIPELINE = """
stages: [start, control, reasoning, reward, general]
parallel: 2
gates:
  - stage: start
    set: tiny/tuning
    require:
      - {measure: pass_at_k, over: families, domains: [math], above: 0.0}
    extend: {steps: 10, times: 2}
evaluate: {sets: [tiny/final, tiny/harder], samples: 8, max_tokens: 48}
control: {stage: control, of: reasoning}
release: general
"""
SFT = """
kind: sft
model: {MODEL}
data: [{source: tiny/math_demonstrations}]
batch: 16
max_length: 128
update: {lr: 4.0e-3}
steps: 20
evaluate: {every: 10, sets: [tiny/tuning], samples: 4}
checkpoint: {every: 10, keep: 2}
"""
REWARD = """
kind: reward_model
model: {from: start}
data: [{source: tiny/preferences}]
batch: 16
max_length: 128
update: {lr: 1.0e-3}
steps: 20
checkpoint: {every: 10, keep: 1}
"""
RL = """
kind: rl
model: {MODEL}
algorithm: grpo
data: [{source: tiny/math}]
domains:
  math: {verifiers: {math: {}}, reward_model: WEIGHT}
rollout: {prompts: 16, generations: 8, max_tokens: 48}
update: {lr: 1.0e-3}
steps: 20
evaluate: {every: 10, sets: [tiny/tuning], samples: 4}
checkpoint: {every: 10, keep: 2}
"""
STAGES = ("start", "control", "reasoning", "reward", "general")
SHORT = ("start", "reasoning")


def write_recipe(folder: Path) -> Path:
    """The files of all stages in `folder`, which is made; returns it."""
    folder.mkdir()
    (folder / "pipeline.yaml").write_text(PIPELINE)
    (folder / "start.yaml").write_text(SFT.replace("MODEL", "new: tiny"))
    (folder / "control.yaml").write_text(SFT.replace("MODEL", "from: start"))
    (folder / "reasoning.yaml").write_text(RL.replace("MODEL", "from: start").replace("WEIGHT", "0.0"))
    (folder / "reward.yaml").write_text(REWARD)
    general = RL.replace("MODEL", "from: reasoning").replace("WEIGHT", "0.3")
    (folder / "general.yaml").write_text(general + "reward_model: {from: reward}\n")
    return folder


def shorten(recipe: Path) -> Path:
    """Leave of a recipe two stages, one after the other, and one set; returns its folder."""
    text = PIPELINE.replace(", control, reasoning, reward, general]", ", reasoning]").replace(", tiny/harder", "")
    text = re.sub("control: .*", "", text).replace("release: general", "release: reasoning")
    (recipe / "pipeline.yaml").write_text(text)
    return recipe
