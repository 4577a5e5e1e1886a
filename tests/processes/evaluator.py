"""A process that keeps to the evaluation's contract and evaluates nothing: for the tests of the pipeline."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from trainer import evaluation

from qwq_rl.runfolder import RunFolder, read_json, write_json


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("run", "stage", "sets", "samples", "max-tokens"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--greedy", action="store_true")
    options = parser.parse_args()
    folder = RunFolder(Path(options.run))
    done = read_json(folder.stage(options.stage).done)
    assert done is not None
    time.sleep(float(os.environ.get("LITTLE_EVALUATION_SECONDS", "0")))
    for data_set in options.sets.split(","):
        found = evaluation(options.stage, data_set, done["update"])
        write_json(folder.evaluation(options.stage, data_set), found | {"checkpoint": "final"})
        print(f"evaluated {options.stage} on {data_set}")


if __name__ == "__main__":
    main()
