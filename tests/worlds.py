"""Stages on several processes for tests: what they need, and how one is started."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stage_runs import SmallRun

from qwq_rl.run_folder.files import RunFolder

sharded = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None or shutil.which("g++") is None,
    reason="DeepSpeed on a CPU needs the extra `deepspeed` and g++",
)


def start(small: SmallRun, run: RunFolder, world: str, stage: str, *options: str) -> subprocess.Popen[str]:
    """Start a stage in `run` by `recipes/accelerate/WORLD.yaml`."""
    config = Path(__file__).parent.parent / "recipes" / "accelerate" / f"{world}.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", f"--config_file={config}", "-m", "qwq_rl.train"]
    # With the ninja that came with DeepSpeed: another one on the way would compile everything anew.
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.Popen(
        [*launch, str(small.recipes / f"{stage}.yaml"), "--run", str(run.path), *options],
        env={**os.environ, "PATH": tools, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def launched(small: SmallRun, run: RunFolder, world: str, stage: str, *options: str) -> str:
    """Train to the end; returns what was printed. ZeRO's first start compiles for two minutes."""
    process = start(small, run, world, stage, *options)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said[-3000:]
    return said
