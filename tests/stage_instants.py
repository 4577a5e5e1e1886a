"""Instants of a stage at which it can be struck exactly: just before it opens, renames, makes or removes some file.

A pattern names an instant: it is searched for in `EVENT PATH`, the events being those of Python's audit hooks, and the
path of a renaming the new one. What libraries write without Python, such as weights, lies between two instants.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

PATH_AT = {"open": 0, "os.rename": 1, "os.mkdir": 0, "os.remove": 0, "shutil.rmtree": 0}
STAND_STILL_AT = "STAND_STILL_AT"
"""Environment variable: the instant at which a process that `hooked` started stops, to be killed or gone on with."""

BEFORE_THE_MARK = {
    "saved, no result": r"os\.mkdir \S+/final\.partial$",
    "result half written": r"open \S+/final\.partial/tokenizer_config\.json$",
    "result whole, not in place": r"os\.rename \S+/checkpoints/final$",
    "result in place, not marked": r"open \S+/\.done\.json\.\d+$",
    "mark written, not in place": r"os\.rename \S+/done\.json$",
}
"""From the last save of a stage to the mark that it is done."""


def strike_at(instant: str, number: signal.Signals, nth: int = 1) -> None:
    """From here on this process sends itself a signal at the `nth` step that the pattern fits. It cannot be undone."""
    pattern, seen = re.compile(instant), 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in PATH_AT and pattern.search(f"{event} {arguments[PATH_AT[event]]}"):
            seen += 1
            if seen == nth:
                os.kill(os.getpid(), number)

    sys.addaudithook(hook)


def hooked(folder: Path) -> dict[str, str]:
    """Environment by which every Python process stands still at the instant that STAND_STILL_AT names.

    Writes what does it into `folder`, which may be there.
    """
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        f"import os, signal, sys\nsys.path.append({str(Path(__file__).parent)!r})\n"
        f"import stage_instants\nif {STAND_STILL_AT!r} in os.environ:\n"
        f"    stage_instants.strike_at(os.environ[{STAND_STILL_AT!r}], signal.SIGSTOP)\n"
    )
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}
