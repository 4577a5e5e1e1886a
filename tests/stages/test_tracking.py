"""A recipe's trackers get the figures that the run folder has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qwq_rl.run_folder.files import read_lines

ROOT = Path(__file__).parents[2]
RECIPE = """
kind: rl
model: {new: tiny}
algorithm: grpo
data: [{source: tiny/math}]
domains: {math: {verifiers: {math: {}}}}
rollout: {prompts: 2, generations: 2, max_tokens: 4}
update: {lr: 1.0e-3}
steps: 2
evaluate: {every: 2, sets: [tiny/tuning], samples: 1, limit: 1}
checkpoint: {every: 2, keep: 1}
track: [tensorboard]
"""


@pytest.mark.slow
def test_tensorboard_gets_rewards_by_domain_and_evaluations(tmp_path: Path) -> None:
    event_files = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is absent: make install-full"
    )
    recipe, run = tmp_path / "1_math.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    command = [sys.executable, "-m", "qwq_rl.train", str(recipe), "--run", str(run)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)

    (events,) = {path.parent for path in run.rglob("events.out.tfevents.*")}
    read = event_files.EventAccumulator(str(events))
    read.Reload()

    metrics = read_lines(run / "1_math" / "metrics.jsonl")
    sent = [event.value for event in read.Scalars("train/math/reward")]
    assert sent == pytest.approx([line["domains"]["math"]["reward"] for line in metrics])
    assert "train/tiny/tuning/math/pass@1" in read.Tags()["scalars"]
