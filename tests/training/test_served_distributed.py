"""Two processes share vLLM servers: what they sample is what one samples, and a lost server ends both."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from stage_runs import SmallRun, rollout_lines
from vllm_stand_in import StandIn
from worlds import launched, sharded, start

from qwq_rl.run_folder.files import RunFolder, StageFolder, read_lines

pytestmark = pytest.mark.slow

STAGE = "1_math_code"
# Five prompts for two processes, and in the second part of a round one of them has none.
FEW = (
    "--rollout.prompts=5", "--rollout.max_tokens=16", "--rollout.refill=1", "--steps=2", "--gates=[finished]",
    "--limits.zero_rounds=null", "--evaluate.every=2", "--evaluate.at_start=false", "--checkpoint.every=1",
)  # fmt: skip


def block(*servers: StandIn) -> str:
    return f"--rollout.server={{urls: [{', '.join(repr(one.url) for one in servers)}], timeout_s: 20}}"


def samples(stage: StageFolder, update: int) -> list[object]:
    return [(one["row"], one["sample"], one["segments"][0]["token_ids"]) for one in rollout_lines(stage, update)]


@pytest.mark.parametrize("world", ["cpu_ddp", pytest.param("cpu_zero3", marks=sharded)])
def test_two_processes_sample_what_one_samples(small: SmallRun, tmp_path: Path, world: str) -> None:
    servers = [StandIn(small.stage("0_cold_start").final) for _ in range(2)]
    one, two = (small.beside(tmp_path / name, "0_cold_start") for name in ("one", "two"))
    assert small.train(one, STAGE, *FEW, block(*servers)) == 0

    launched(small, two, world, STAGE, *FEW, block(*servers))

    assert samples(one.stage(STAGE), 1) == samples(two.stage(STAGE), 1)
    assert all(line["gap"]["max"] < 1e-4 for line in read_lines(two.stage(STAGE).metrics))
    assert all(len(server.loaded) == 4 and server.answered for server in servers)
    for server in servers:
        server.stop()


def test_a_lost_server_ends_all_processes_by_its_name(small: SmallRun, tmp_path: Path) -> None:
    server = StandIn(small.stage("0_cold_start").final)
    server.die_after = 7
    run: RunFolder = small.beside(tmp_path / "run", "0_cold_start")
    world = start(small, run, "cpu_ddp", STAGE, *FEW, block(server))
    while server.answered < 7 and world.poll() is None:
        time.sleep(0.1)

    began = time.monotonic()
    said = world.communicate(timeout=120)[0]

    assert time.monotonic() - began < 60
    assert world.returncode != 0
    assert f"the vLLM server {server.url}" in said
    assert "the same command then goes on from the last whole checkpoint" in said
