"""A stage that was killed ends as one that never was, whatever it is asked for: critic, refills, curricula, limits."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from stage_runs import SmallRun, differences, state_differences

from qwq_rl.run_folder.checkpoints import COMPLETE, saved, update_of
from qwq_rl.run_folder.files import RunFolder, StageFolder, read_json, read_lines, write_lines

UNSTEADY = """
import os
from qwq_rl.verifiers import run_as

@run_as("inline")
def verify(problem, response):
    # Another verdict each time: only what was written down comes again. What is no answer fails, as the audit asks.
    return float("boxed" in response.answer and os.urandom(1)[0] % 2)
"""
NEEDED = {"1_math_code": ("0_cold_start",), "2_general": ("0_cold_start", "1_math_code", "2_reward_model")}
EVERY = ("--checkpoint.every=1", "--checkpoint.keep=9", "--evaluate.every=3", "--limits.zero_rounds=null")
PPO = ("--algorithm=ppo", "--critic={lr: 0.001, warmup: 1, minibatches: 2, clip: 0.2}")
SOURCE = ("--rollout.refill=2", "--rollout.sampling=adaptive", "--rollout.lengthen={start: 16, over: 3}")
SKIPS = ("--limits.gradient_norm=0.3", "--limits.skipped_updates=9", "--limits.entropy=0.001")
SHARED = ("--update.updates_per_rollout=2", "--update.epochs=2")
SHAPED = (
    "--update.entropy=0.01",
    "--update.kl=0.01",
    "--limits.kl=9",
    "--rollout.overlong=mask",
    "--update.schedule=cosine",
)


@pytest.fixture(scope="module")
def unsteady(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options by which the verdicts on math come out otherwise each time."""
    file = tmp_path_factory.mktemp("verifiers") / "unsteady.py"
    file.write_text(UNSTEADY)
    use = f"--domains.math.verifiers={{math: {{use: '{file}:verify'}}}}"
    return (use, "--limits.broken_share=1", "--accept_changes=[verifiers.math]")  # 1_math_code asked another


def begin(small: SmallRun, path: Path, stage: str) -> tuple[RunFolder, StageFolder]:
    run = small.beside(path, *NEEDED[stage])
    return run, run.stage(stage)


def as_killed_after(whole: StageFolder, folder: StageFolder, update: int) -> None:
    """Make `folder` what a stage leaves that was killed at some time after the checkpoint of `update`, 0: before any.

    All that was recorded after it is there, verdicts too, as if the kill came at the very end of the next update.
    """
    shutil.copytree(whole.path, folder.path, dirs_exist_ok=True)
    folder.done.unlink()
    shutil.rmtree(folder.final)
    for checkpoint in saved(folder):
        if update_of(checkpoint) > update:
            (checkpoint / COMPLETE).unlink()
            (checkpoint / "rounds-0.pt").unlink()


def assert_the_same(whole: StageFolder, folder: StageFolder, told: str = "") -> None:
    assert list(differences(whole, folder)) == [], told
    assert list(state_differences(whole, folder)) == [], told


def test_a_critic_a_source_and_rails_go_on_within_a_round_with_the_verdicts_they_had(
    small: SmallRun, tmp_path: Path, unsteady: Sequence[str]
) -> None:
    options = (*EVERY, *PPO, *SOURCE, *SKIPS, *unsteady, "--update.updates_per_rollout=2", "--steps=5")
    run, whole = begin(small, tmp_path / "whole", "1_math_code")
    assert small.train(run, "1_math_code", *options) == 0
    assert (saved(whole)[-1] / "critic" / "critic.pt").exists()
    for after in (1, 2):
        run, folder = begin(small, tmp_path / str(after), "1_math_code")
        as_killed_after(whole, folder, after)

        assert small.train(run, "1_math_code", *options) == 0

        assert_the_same(whole, folder, f"killed after {after}")


def test_penalties_refills_and_skipped_updates_go_on_within_a_round(small: SmallRun, tmp_path: Path) -> None:
    options = (*EVERY, *SOURCE, *SKIPS, *SHAPED, *SHARED, "--steps=6")
    run, whole = begin(small, tmp_path / "whole", "1_math_code")
    assert small.train(run, "1_math_code", *options) == 0
    skipped = [line.get("skipped", 0) for line in read_lines(whole.metrics)]
    assert 0 < skipped[-1] < 6, skipped
    run, folder = begin(small, tmp_path / "killed", "1_math_code")
    as_killed_after(whole, folder, 3)

    assert small.train(run, "1_math_code", *options) == 0

    assert_the_same(whole, folder)


@pytest.mark.parametrize(("after", "options"), [(0, ("--checkpoint.every=3",)), (2, (*EVERY, *SHARED, "--steps=5"))])
def test_a_stage_with_a_reward_model_goes_on_with_the_scale_and_the_verdicts_it_had(
    small: SmallRun, tmp_path: Path, unsteady: Sequence[str], after: int, options: Sequence[str]
) -> None:
    run, whole = begin(small, tmp_path / "whole", "2_general")
    assert small.train(run, "2_general", *options, *unsteady) == 0
    run, folder = begin(small, tmp_path / "killed", "2_general")
    as_killed_after(whole, folder, after)

    assert small.train(run, "2_general", *options, *unsteady) == 0

    assert_the_same(whole, folder)
    assert read_json(whole.path / "preference.json") == read_json(folder.path / "preference.json")


def test_a_journal_is_trimmed_to_what_the_oldest_checkpoint_may_need(small: SmallRun) -> None:
    folder = small.stage("1_math_code")

    calls = [json.loads(line) for line in (folder.path / "verdicts.jsonl").read_text().splitlines()]

    assert [update_of(path) for path in saved(folder)] == [2, 4]
    assert {call["update"] for call in calls} == {3, 4}
    assert all(
        len(call["scored"]) == call["counts"]["math"]["judged"] + call["counts"]["code"]["judged"] for call in calls
    )


def test_rows_that_were_mended_before_the_first_checkpoint_are_judged_anew(small: SmallRun, tmp_path: Path) -> None:
    """With the verdicts on what the rows said before, a stage would learn what nobody asks of it."""
    run, whole = begin(small, tmp_path / "whole", "1_math_code")
    assert small.train(run, "1_math_code", "--checkpoint.every=4") == 0
    rows = read_lines(small.recipes / "CHAINS.jsonl")
    checks = [{"verifier": "math", "reference": "0", "role": "score"}]
    write_lines(tmp_path / "mended.jsonl", [{**row, "checks": checks} for row in rows])
    mended_rows = f"--data.0.source={tmp_path / 'mended.jsonl'}"
    options = ("--checkpoint.every=4", mended_rows, "--limits.broken_share=1")
    run, folder = begin(small, tmp_path / "killed", "1_math_code")
    as_killed_after(whole, folder, 0)

    assert small.train(run, "1_math_code", *options) == 0

    run, mended = begin(small, tmp_path / "mended", "1_math_code")
    assert small.train(run, "1_math_code", *options) == 0
    assert_the_same(mended, folder)
    assert list(differences(whole, folder)) != []


CHOICES: dict[str, Sequence[Sequence[str]]] = {
    "algorithm": (PPO, ("--algorithm=dapo",), ("--algorithm=gspo",), ("--algorithm=dr_grpo",), ("--algorithm=cispo",)),
    "rounds": ((), ("--update.updates_per_rollout=2",), SHARED, ("--update.updates_per_rollout=4",)),
    "source": ((), SOURCE, ("--rollout.refill=1",), ("--rollout.sampling=adaptive",)),
    "loss": ((), SHAPED, ("--update.kl=0.01", "--update.schedule=linear"), ("--update.entropy=0.02",)),
    "limits": ((), SKIPS[:2], ("--limits.entropy=0.001",)),
    "memory": ((), ("--update.micro_tokens=300",)),
    "model": ((), ("--model.lora={rank: 2, alpha: 4}",) if find_spec("peft") else ()),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_any_choice_of_options_survives_a_kill_after_any_checkpoint(
    small: SmallRun, tmp_path: Path, unsteady: Sequence[str], seed: int
) -> None:
    draw = random.Random(seed)
    options = [*EVERY, "--steps=7", *(one for choices in CHOICES.values() for one in draw.choice(choices))]
    options += draw.choice([(), unsteady])
    stage, after = draw.choice(list(NEEDED)), draw.randrange(1, 7)
    run, whole = begin(small, tmp_path / "whole", stage)
    assert small.train(run, stage, *options) == 0
    run, folder = begin(small, tmp_path / "killed", stage)
    as_killed_after(whole, folder, after)

    assert small.train(run, stage, *options) == 0

    assert_the_same(whole, folder, f"{stage} killed after {after} with {options}")
