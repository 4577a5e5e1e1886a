"""The whole of recipes/tiny, two updates a stage: every record is what the contracts say, and nothing is done twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from run_conforms import departures

from qwq_rl.run_folder.files import RunFolder

ROOT = Path(__file__).parent.parent
SUPERVISED, RL = ("0_cold_start", "1_control"), ("1_math_code", "2_general")
EVALUATED, ALL = (*SUPERVISED, *RL), (*SUPERVISED, *RL, "2_reward_model")
SHORT = [
    "--pipeline.gates=[]",
    "--pipeline.evaluate.samples=2",
    "--pipeline.evaluate.sets=[tiny/harder]",
    *(f"--{stage}.{field}=2" for stage in ALL for field in ("steps", "checkpoint.every")),
    *(f"--{stage}.update.warmup=0" for stage in (*SUPERVISED, "2_reward_model")),
    *(f"--{stage}.evaluate.{field}=2" for stage in EVALUATED for field in ("every", "samples", "limit")),
]


def train(runs: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qwq_rl.cli", "run", "recipes/tiny", "--runs", str(runs), *SHORT]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    done = train(folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_every_record_of_a_run_is_what_the_contracts_say(runs: Path) -> None:
    assert departures(runs / "tiny") == []


@pytest.mark.slow
def test_a_run_ends_with_a_page_and_a_model(runs: Path) -> None:
    folder = RunFolder(runs / "tiny")

    assert folder.report.stat().st_size > 10_000
    assert {"config.json", "model.safetensors", "README.md"} <= {path.name for path in folder.model.iterdir()}


@pytest.mark.slow
def test_the_same_command_again_trains_and_evaluates_nothing(runs: Path) -> None:
    kept = [*(runs / "tiny").glob("*/done.json"), *(runs / "tiny").glob("evaluations/*/*.json")]
    before = {path: path.stat().st_mtime_ns for path in kept}

    again = train(runs)

    assert again.returncode == 0, again.stderr
    assert len(before) == len(ALL) + len(EVALUATED)
    assert {path: path.stat().st_mtime_ns for path in kept} == before
