"""A process that keeps to the evaluation's contract and evaluates nothing: for the tests of the pipeline."""

from __future__ import annotations

import argparse
from pathlib import Path

from counter import evaluation

from qwq_rl.run_folder.files import RunFolder, read_json, write_json, write_lines


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("run", "stage", "sets", "samples", "max-tokens"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--greedy", action="store_true")
    options = parser.parse_args()
    folder = RunFolder(Path(options.run))
    done = read_json(folder.stage(options.stage).done)
    assert done is not None
    for data_set in options.sets.split(","):
        found = evaluation(options.stage, data_set, done["update"]) | {"checkpoint": "final", "cpu_seconds": 1.0}
        found["settings"] = {"samples": int(options.samples), "max_tokens": int(options.max_tokens)}
        path = folder.evaluation(options.stage, data_set)
        write_lines(path.with_suffix(".jsonl"), (prompt(number) for number in range(4)))
        write_json(path, found)


def prompt(number: int) -> dict[str, object]:
    lists = {"scores": [1, 0], "tokens": [17, 4], "terse": [0, 1], "truncated": [0, 0]}
    words = {"prompt": "1 + 1 = ?", "response": "2", "status": "correct", "reason": "2 equals the reference 2"}
    return {"id": f"p{number}", "domain": "math", "family": "chain", "greedy": 1, **lists, **words}


if __name__ == "__main__":
    main()
