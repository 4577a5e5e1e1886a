"""A stage goes on only from what it was begun from, unless its recipe accepts by name what changed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from stage_runs import SmallRun

from qwq_rl.config.recipe import load_stage
from qwq_rl.errors import RecipeError, RunStateError
from qwq_rl.run_folder.checkpoints import COMPLETE, newest_complete, saved, update_of
from qwq_rl.run_folder.files import RunFolder, StageFolder, read_json, read_lines, write_json
from qwq_rl.stages.callbacks import StopRequest
from qwq_rl.stages.context import StageContext
from qwq_rl.stages.lineage import CONTRACT, agreed_contract, weights_version
from qwq_rl.training.clock import Clock

VERIFIER = """
from qwq_rl.verifiers import run_as

@run_as("inline")
def verify(problem, response):
    return float(f"boxed{{{problem['reference']}}}" in response.answer)
"""


def contract(folder: Path) -> dict[str, Any]:
    return read_json(folder / CONTRACT) or {}


def said(stage: StageFolder) -> dict[str, Any]:
    """The contract in the stage's provenance."""
    return dict((read_json(stage.provenance) or {})["contract"])


def as_killed_after(stage: StageFolder, update: int) -> None:
    stage.done.unlink()
    shutil.rmtree(stage.final)
    for checkpoint in saved(stage):
        if update_of(checkpoint) > update:
            shutil.rmtree(checkpoint)


def edit(path: Path, **fields: Any) -> None:
    write_json(path, {**(read_json(path) or {}), **fields})


def other_weights(folder: Path) -> None:
    """As training for one more update leaves them: names, shapes and sizes are the same."""
    path = folder / "model.safetensors"
    save_file({name: value * 1.001 for name, value in load_file(path).items()}, path, {"format": "pt"})


def other_vocabulary(folder: Path) -> None:
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["added_tokens"][0]["lstrip"] = True
    (folder / "tokenizer.json").write_text(json.dumps(whole))


def other_template(folder: Path) -> None:
    with (folder / "chat_template.jinja").open("a") as file:
        file.write("{# another #}")


CHANGES: Mapping[str, Callable[[Path], None]] = {
    "tokenizer": other_vocabulary,
    "chat_template": other_template,
    "eos": lambda folder: edit(folder / "tokenizer_config.json", eos_token="</think>"),
    "base": other_weights,
}


# --- what is carried --------------------------------------------------------------------------------------------------


def test_checkpoints_and_result_carry_the_contract_of_their_stage(small: SmallRun) -> None:
    stage = small.stage("1_math_code")
    places = [*saved(stage), stage.final]

    assert len(places) == 3
    for place in places:
        assert contract(place) == {**said(stage), "weights": weights_version(place)}
    assert len({contract(place)["weights"] for place in places}) == 2  # the last checkpoint is the result
    for checkpoint in saved(stage):
        assert CONTRACT in (read_json(checkpoint / COMPLETE) or {})["files"]


def test_the_lineage_of_a_stage_goes_back_to_the_first_model(small: SmallRun) -> None:
    lineage = said(small.stage("2_general"))["lineage"]

    assert [one["name"] for one in lineage] == ["1_math_code", "0_cold_start", "tiny"]
    assert lineage[:2] == [
        {"name": name, "weights": contract(small.stage(name).final)["weights"]}
        for name in ("1_math_code", "0_cold_start")
    ]
    assert lineage[2]["weights"] is None


def test_provenance_says_what_a_stage_was_compared_with(small: SmallRun) -> None:
    assert said(small.stage("0_cold_start"))["compared_with"] == "nothing: a new model"
    assert said(small.stage("2_general"))["compared_with"] == "1_math_code"
    assert said(small.stage("2_general"))["accepted"] == []


# --- resumed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", CHANGES)
def test_a_stage_does_not_go_on_from_another_base(small: SmallRun, tmp_path: Path, item: str) -> None:
    run = small.beside(tmp_path, "0_cold_start", "1_math_code")
    stage = run.stage("1_math_code")
    as_killed_after(stage, 2)
    CHANGES[item](run.stage("0_cold_start").final)
    before = {path: path.read_bytes() for path in stage.path.rglob("*") if path.is_file() and path != stage.lock}

    with pytest.raises(RunStateError, match=f"(?m)^  {item}: .*0_cold_start.*: then .+, now ") as refused:
        small.train(run, "1_math_code")

    assert "would go on from its checkpoint-2, and since that was trained this has changed:" in str(refused.value)
    assert re.search(rf"accept_changes: \[.*\b{item}\]", str(refused.value))
    assert {path: path.read_bytes() for path in before} == before


def test_a_change_that_the_recipe_accepts_is_recorded_and_accepted_once(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "0_cold_start", "1_math_code")
    stage = run.stage("1_math_code")
    as_killed_after(stage, 2)
    other_template(run.stage("0_cold_start").final)
    then = contract(stage.checkpoints / "checkpoint-2")["chat_template"]

    assert small.train(run, "1_math_code", "--accept_changes=[chat_template]") == 0

    (accepted,) = said(stage)["accepted"]
    assert accepted == {
        "item": "chat_template",
        "then": then,
        "now": said(stage)["chat_template"],
        "since": "checkpoint-2",
    }
    assert contract(stage.final)["accepted"] == [accepted]
    as_killed_after(stage, 4)
    assert small.train(run, "1_math_code", "--steps=5") == 0  # without the name: the checkpoint knows the template
    assert said(stage)["accepted"] == [accepted]


def test_an_accepted_item_does_not_let_another_pass(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "0_cold_start", "1_math_code")
    as_killed_after(run.stage("1_math_code"), 2)
    for change in (other_template, other_weights):
        change(run.stage("0_cold_start").final)

    with pytest.raises(RunStateError) as refused:
        small.train(run, "1_math_code", "--accept_changes=[chat_template]")

    assert "accept_changes: [base]" in str(refused.value)
    assert "chat_template" not in str(refused.value)


def test_a_checkpoint_that_was_swapped_is_told(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "0_cold_start", "1_math_code")
    stage = run.stage("1_math_code")
    as_killed_after(stage, 2)
    other_weights(stage.checkpoints / "checkpoint-2")

    with pytest.raises(RunStateError, match=r"base: the weights in \S+/checkpoint-2, since they were saved"):
        small.train(run, "1_math_code")


def test_another_reward_model_under_a_stage_is_told(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "0_cold_start", "1_math_code", "2_reward_model", "2_general")
    as_killed_after(run.stage("2_general"), 2)
    other_weights(run.stage("2_reward_model").final)

    with pytest.raises(RunStateError, match="reward_model: the weights of 2_reward_model: then sha256"):
        small.train(run, "2_general")


def test_a_checkpoint_without_a_contract_is_gone_on_from(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "0_cold_start", "1_control")
    stage = run.stage("1_control")
    as_killed_after(stage, 4)
    mark = stage.checkpoints / "checkpoint-4" / COMPLETE
    (mark.parent / CONTRACT).unlink()
    edit(mark, files={name: size for name, size in (read_json(mark) or {})["files"].items() if name != CONTRACT})

    assert small.train(run, "1_control") == 0

    compared = "nothing: checkpoint-4 was saved before checkpoints carried a contract"
    assert said(stage)["compared_with"] == compared


def test_a_verifier_that_was_edited_stops_a_stage_and_once_accepted_is_asked_again(
    small: SmallRun, tmp_path: Path
) -> None:
    file = tmp_path / "own.py"
    file.write_text(VERIFIER)
    options = (
        f"--domains.math.verifiers={{math: {{use: '{file}:verify'}}}}",
        *("--limits.broken_share=1", "--checkpoint.every=1", "--checkpoint.keep=9"),
    )
    run = small.beside(tmp_path / "run", "0_cold_start")
    stage = run.stage("1_math_code")
    assert small.train(run, "1_math_code", *options) == 0
    as_killed_after(stage, 2)
    judges = {line["judges"] for line in read_lines(stage.path / "verdicts.jsonl")}
    file.write_text(VERIFIER + "# mended\n")

    with pytest.raises(RunStateError, match=rf"verifiers\.math\.math: its code \({file}\): then sha256:"):
        small.train(run, "1_math_code", *options)
    assert small.train(run, "1_math_code", *options, "--accept_changes=[verifiers.math]") == 0

    again = [line for line in read_lines(stage.path / "verdicts.jsonl") if line["judges"] not in judges]
    assert {line["update"] for line in again} == {3, 4}
    assert [one["item"] for one in said(stage)["accepted"]] == ["verifiers.math.math"]


# --- a later stage ----------------------------------------------------------------------------------------------------


def beside(small: SmallRun, path: Path) -> RunFolder:
    """A run in which 2_general is to be trained."""
    return small.beside(path, "0_cold_start", "1_math_code", "2_reward_model")


@pytest.mark.parametrize("item", CHANGES)
def test_a_stage_does_not_start_from_a_result_that_was_changed(small: SmallRun, tmp_path: Path, item: str) -> None:
    run = beside(small, tmp_path)
    CHANGES[item](run.stage("1_math_code").final)

    with pytest.raises(RunStateError, match=f"(?m)^  {item}: .*1_math_code.*: then .+, now ") as refused:
        small.train(run, "2_general")

    assert "2_general would start from 1_math_code, and since that was trained" in str(refused.value)
    assert re.search(rf"--2_general\.accept_changes=\[.*\b{item}\]", str(refused.value))
    assert not run.stage("2_general").metrics.exists()


def test_a_stage_says_so_where_a_stage_before_the_last_is_another_by_now(small: SmallRun, tmp_path: Path) -> None:
    run = beside(small, tmp_path)
    other_weights(run.stage("0_cold_start").final)

    with pytest.raises(RunStateError, match="base: the weights of 0_cold_start, which 1_math_code was trained from"):
        small.train(run, "2_general")


def test_verifiers_that_both_stages_have_are_compared(small: SmallRun, tmp_path: Path) -> None:
    run = beside(small, tmp_path)
    options = ("--domains.math.verifiers={math: {tolerance: 0.01}}", "--steps=1", "--evaluate.every=1")

    with pytest.raises(RunStateError, match=r"verifiers\.math\.math: its code or its parameters \(") as refused:
        small.train(run, "2_general", *options)
    assert small.train(run, "2_general", *options, "--accept_changes=[verifiers]") == 0

    assert str(refused.value).count(": then ") == 1  # `general` is a domain of this stage alone
    (accepted,) = said(run.stage("2_general"))["accepted"]
    assert (accepted["item"], accepted["since"]) == ("verifiers.math.math", "1_math_code")


def test_a_folder_without_a_contract_is_started_from_and_provenance_says_so(small: SmallRun, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(small.stage("0_cold_start").final, folder)
    (folder / CONTRACT).unlink()
    run = RunFolder(tmp_path / "run")

    options = ("--steps=1", "--evaluate.every=1", "--checkpoint.every=1", "--update.warmup=0")
    assert small.train(run, "1_control", f"--model.from={folder}", *options) == 0

    found = said(run.stage("1_control"))
    assert found["compared_with"] == f"nothing: there is no {CONTRACT} in {folder}"
    assert found["lineage"] == [{"name": str(folder), "weights": weights_version(folder)}]


def test_a_model_of_the_hub_is_known_by_its_commit(
    small: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--lab--model"
    shutil.copytree(small.stage("0_cold_start").final, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    run = RunFolder(tmp_path / "run")
    recipe = load_stage(small.recipes / "1_control.yaml", ["--model.from=lab/model"])

    found = agreed_contract(
        recipe, StageContext(run, run.stage("1_control"), small.recipes, 1, None, Clock(), StopRequest())
    )

    assert found["compared_with"] == "nothing: lab/model comes from the Hub, without a contract"
    assert found["lineage"] == [{"name": "lab/model", "weights": f"commit:{commit}"}]


# --- names and digests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "names", "told"),
    [
        ("1_math_code", "[tokeniser]", "there is no tokeniser in this stage's contract; did you mean tokenizer?"),
        ("1_math_code", "[verifiers.maths]", "did you mean verifiers.math?"),
        ("1_math_code", "[eos, reward_model]", "accept_changes.1: there is no reward_model"),
        (
            "0_cold_start",
            "[verifiers]",
            "there is no verifiers in this stage's contract; there is tokenizer, chat_template",
        ),
        ("2_reward_model", "base", "write [base]"),
    ],
)
def test_a_name_that_stands_for_nothing_is_a_mistake(small: SmallRun, stage: str, names: str, told: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_stage(small.recipes / f"{stage}.yaml", [f"--accept_changes={names}"])

    assert told in str(refused.value)


def test_every_item_can_be_named(small: SmallRun) -> None:
    names = (
        "tokenizer, chat_template, eos, base, reward_model, verifiers, verifiers.math, verifiers.general.constraints"
    )

    stage = load_stage(small.recipes / "2_general.yaml", [f"--accept_changes=[{names}]"])

    assert list(stage.accept_changes) == names.split(", ")


def test_accepting_a_change_makes_no_other_recipe(
    small: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small.beside(tmp_path, "0_cold_start", "1_math_code")

    assert small.train(run, "1_math_code", "--accept_changes=[base]") == 0

    assert "1_math_code is finished already" in capsys.readouterr().out


@pytest.mark.parametrize("at", [0, 5_000_000, 11_999_999])
def test_other_weights_have_another_digest_however_large_they_are(tmp_path: Path, at: int) -> None:
    content = bytes(range(256)) * 46_875
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    before = weights_version(tmp_path)
    retrained = bytearray(content)
    for place in range(at % 9973, len(content), 9973):  # a change in every 10 kB or so
        retrained[place] ^= 1

    path.write_bytes(bytes(retrained))

    assert before is not None
    assert weights_version(tmp_path) != before
    path.write_bytes(content)
    assert weights_version(tmp_path) == before
    path.write_bytes(content + b"\0")
    assert weights_version(tmp_path) != before


def test_a_folder_without_weights_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    assert weights_version(tmp_path) is None


def test_the_result_of_a_resumed_stage_has_the_digest_of_its_own_weights(small: SmallRun, tmp_path: Path) -> None:
    run = small.beside(tmp_path, "0_cold_start", "1_control")
    stage = run.stage("1_control")
    as_killed_after(stage, 4)

    assert small.train(run, "1_control") == 0

    newest = newest_complete(stage)
    assert newest is not None
    assert contract(stage.final)["weights"] == weights_version(stage.final) == contract(newest)["weights"]
    assert said(stage)["compared_with"] == "checkpoint-4"
