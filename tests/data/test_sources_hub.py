"""Rows from a Hub id, through the real `datasets` client against a Hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_stub import serve_data_set

READ = """
import json, sys
from qwq_rl.errors import RowError
from qwq_rl.data.sources import load_rows
for source, limit in json.loads(sys.argv[1]):
    try:
        print(json.dumps([row["id"] for row in load_rows(source, limit=limit)]))
    except RowError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What loading each source gave; in a process of its own, because the client reads HF_ENDPOINT on import."""
    sources = [["acme/sums", None], ["acme/sums", 2], ["acme/sums:default:test", None], ["acme/none", None]]
    rows = [{"id": f"r{at}", "domain": "math", "prompt": f"{at} + 1 = ?"} for at in range(5)]
    files = {"train.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}
    with serve_data_set("acme/sums", files) as endpoint:
        home = tmp_path_factory.mktemp("hub")
        environment = {
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }
        done = subprocess.run(
            [sys.executable, "-c", READ, json.dumps(sources)],
            env=environment,
            cwd=Path(__file__).parent.parent.parent,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_hub_id_gives_the_rows_of_its_train_split(answers: list[Any]) -> None:
    assert answers[0] == ["r0", "r1", "r2", "r3", "r4"]


def test_a_limit_streams_the_first_rows(answers: list[Any]) -> None:
    assert answers[1] == ["r0", "r1"]


def test_a_missing_split_says_which_there_are(answers: list[Any]) -> None:
    assert "['train']" in answers[2]


def test_a_missing_data_set_is_named(answers: list[Any]) -> None:
    assert answers[3].startswith("acme/none: the Hub data set cannot be loaded: ")
