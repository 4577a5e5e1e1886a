"""What two processes under ZeRO-3 take of memory while they load a model, before and after TRL's arguments are made.

    python benchmarks/loading_memory.py

While such arguments live, transformers shares a model out as it loads it; without them DeepSpeed does it afterwards.
Memory is what a process has to itself: pages of the model's file, which are read as they are needed, do not count.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> int:
    """Save a model of random weights (109 M parameters in float32) and let two processes load it, in both orders."""
    from random_models import Shape, save_random_qwen

    config = ROOT / "recipes" / "accelerate" / "cpu_zero3.yaml"
    with tempfile.TemporaryDirectory() as folder:
        save_random_qwen(Path(folder), Shape(768, 12, 12, 64, 3072), 4096, 20)
        for first in ("model", "arguments"):
            launch = [sys.executable, "-m", "accelerate.commands.launch", f"--config_file={config}", __file__]
            environment = {**os.environ, "LOAD": folder, "FIRST": first, "OMP_NUM_THREADS": "1"}
            subprocess.run(launch, env=environment, check=True)
    return 0


def measure(model: Path, first: str) -> None:
    """Load and share out in one process of several; print what that took."""
    import deepspeed
    import torch
    from accelerate.utils import gather_object
    from transformers import AutoModelForCausalLM, TrainingArguments

    from qwq_rl.stages.distributed import join
    from qwq_rl.training.critic_engine import engine_config

    state = join()
    memory = Memory()
    arguments = TrainingArguments(str(model / "out"), use_cpu=True) if first == "arguments" else None
    policy = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    loaded = memory.most
    arguments = arguments or TrainingArguments(str(model / "out"), use_cpu=True)
    shared = arguments.deepspeed_plugin.deepspeed_config
    deepspeed.initialize(
        model=policy,
        optimizer=torch.optim.AdamW(policy.parameters()),
        config=engine_config(shared, 1.0, "no", policy.config.hidden_size),
    )
    file = (model / "model.safetensors").stat().st_size / 1e6
    for rank, (most, ready) in enumerate(gather_object([(loaded, memory.most)])):
        if state.is_main_process:
            print(
                f"{first} first, process {rank}: {most:,.0f} MB to load {file:,.0f}, {ready:,.0f} until ready to train"
            )


class Memory:
    """Looks at this process's memory a hundred times a second."""

    def __init__(self) -> None:
        self._before = own_memory()
        self.most = 0.0
        """Megabytes above those at first, at most."""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        pause = threading.Event()
        while not pause.wait(0.01):
            self.most = max(self.most, own_memory() - self._before)


def own_memory() -> float:
    """Megabytes in memory that are this process's own (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024 / 1e6


if __name__ == "__main__":
    if "LOAD" in os.environ:
        measure(Path(os.environ["LOAD"]), os.environ["FIRST"])
    else:
        sys.exit(main())
