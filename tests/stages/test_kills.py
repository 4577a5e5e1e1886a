"""The short form of benchmarks/kills.py: trainer, launcher and process group killed, one each."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_stages_killed_again_and_again_end_as_if_left_alone(root: Path, tmp_path: Path) -> None:
    seed = random.randrange(1000)
    command = [sys.executable, str(root / "benchmarks/kills.py"), "--kills=3", f"--seed={seed}"]
    tools = {**os.environ, "PYTHONPATH": str(root / "tests")}

    done = subprocess.run(
        [*command, f"--keep={tmp_path / 'runs'}"], env=tools, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    assert done.stdout.endswith("of 3 kills in time, 0 differences\n")
    assert "the next start named the orphan" in done.stdout
