"""`qwq-rl run` as it is typed, with the trainer and the evaluator of this folder, and no model to export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from qwq_rl.cli import spoken
from qwq_rl.pipeline.run import execute, read_order
from qwq_rl.pipeline.scheduler import StartCommands
from qwq_rl.pipeline.terminal import Board
from qwq_rl.report.build import write_report
from qwq_rl.report.summary import summarise
from qwq_rl.run_folder.files import RunFolder, write_json

HERE = Path(__file__).parent


def finish(folder: RunFolder, release: str) -> dict[str, Any]:
    summary = summarise(folder.path)
    write_json(folder.summary, summary)
    write_report(folder.path)
    return summary


def main() -> int:
    train = (sys.executable, str(HERE / "launcher.py"), str(HERE / "counter.py"))
    programs = StartCommands(train, (sys.executable, str(HERE / "evaluator.py")))
    execute(read_order(sys.argv[1:]), programs, Board(Console(width=200)), finish)
    return 0


if __name__ == "__main__":
    sys.exit(spoken(main))
