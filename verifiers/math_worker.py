"""The process in which math-verify runs: one JSON question a line on stdin, one JSON reply a line on stdout.

Started as a script (`python -P math_worker.py DEADLINE_S MEMORY_MB`), so that it imports nothing of the project and
nothing of the trainer. It may be killed at any time.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any


def main() -> None:
    """Answer questions until stdin ends."""
    deadline_s, memory_mb = float(sys.argv[1]), int(sys.argv[2])
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print must not reach the channel
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        channel.write(json.dumps({"missing": str(error)}) + "\n")
        return
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    channel.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, deadline_s + 2)  # ends this process if its parent is gone
        reply = _reply(json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        channel.write(json.dumps(reply) + "\n")


def _reply(question: dict[str, str]) -> dict[str, Any]:
    try:
        return {"outcome": _compare(question["gold"], question["answer"])}
    except (Exception, RecursionError, MemoryError) as error:
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}


def _compare(gold: str, answer: str) -> str:
    """`equal`, `different` or `gold_unread`; boxes make both sides math, whatever delimiters they came with."""
    from math_verify import parse, verify

    read_gold = parse(f"\\boxed{{{gold}}}", parsing_timeout=None)
    if not read_gold:
        return "gold_unread"
    read_answer = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)
    return "equal" if read_answer and verify(read_gold, read_answer, timeout_seconds=None) else "different"


if __name__ == "__main__":
    main()
