"""`qwq-rl run` with the trainer and the evaluator of this folder: run.py RECIPE RUN [--from STAGE] [--accelerate]."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from qwq_rl.cli import spoken
from qwq_rl.config.recipe import load_pipeline
from qwq_rl.pipeline.plan import PipelinePlan
from qwq_rl.pipeline.processes import accelerate_command
from qwq_rl.pipeline.scheduler import StartCommands, run_stages
from qwq_rl.pipeline.terminal import Board
from qwq_rl.run_folder.files import RunFolder

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--from", dest="restart")
    parser.add_argument("--accelerate", action="store_true")
    options = parser.parse_args()
    pipeline, stages = load_pipeline(options.recipe)
    launch = accelerate_command(None) if options.accelerate else (sys.executable, str(HERE / "launcher.py"))
    programs = StartCommands((*launch, str(HERE / "counter.py")), (sys.executable, str(HERE / "evaluator.py")))
    with Board(Console(width=200)) as board:
        plan = PipelinePlan(options.recipe, pipeline, stages, {})
        run_stages(plan, RunFolder(options.run), programs, board, options.restart)
    return 0


if __name__ == "__main__":
    sys.exit(spoken(main))
