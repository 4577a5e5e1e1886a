"""The launcher's configurations: each starts the world it says, and all of them train the same."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parent.parent.parent / "recipes" / "accelerate"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: make install-full"
)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed on a CPU needs g++")


@cache
def launched(name: str) -> dict[str, Any]:
    """What two_steps.py says under a configuration. ZeRO's first start compiles for two minutes."""
    command = [sys.executable, "-m", "accelerate.commands.launch", f"--config_file={FOLDER / name}.yaml"]
    done = subprocess.run(
        [*command, str(Path(__file__).parent / "two_steps.py")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("said ")]
    return dict(json.loads(line.removeprefix("said ")))


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_has_only_keys_that_accelerate_knows(name: str) -> None:
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))

    assert isinstance(config, ClusterConfig)
    assert config.num_processes == yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["num_processes"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "processes"), [("cpu", 1), ("cpu_ddp", 2)])
def test_a_configuration_starts_as_many_processes_as_it_says(name: str, processes: int) -> None:
    assert launched(name)["processes"] == processes


@pytest.mark.slow
@needs_deepspeed
@needs_compiler
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_shards_over_two_processes_and_learns_what_ddp_learns(stage: int) -> None:
    said = launched(f"cpu_zero{stage}")

    assert (said["processes"], said["zero_stage"]) == (2, stage)
    assert said["weight"] == pytest.approx(launched("cpu_ddp")["weight"], abs=2e-5)
