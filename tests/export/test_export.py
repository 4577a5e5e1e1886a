"""A checkpoint becomes a folder that transformers loads at once, with a card that tells the run's own figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from run_files import write_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from qwq_rl.data.tiny.model import build_model, build_tokenizer
from qwq_rl.errors import RunStateError, UserError
from qwq_rl.export.export import export, main
from qwq_rl.run_folder.checkpoints import mark_complete
from qwq_rl.run_folder.files import RunFolder, append_line, read_json, write_json

WEAK, STRONG = [[1.0, 0.0], [0.0, 0.0]] * 6, [[1.0, 1.0], [1.0, 0.0]] * 6


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with what a trainer leaves in it."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), build_tokenizer()
    model = build_model(tokenizer, seed=0)
    model.config.use_cache = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in (
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    ):
        (folder / name).write_text("not for export")
    mark_complete(folder, {})
    return folder


@pytest.fixture
def run(tmp_path: Path, model_folder: Path) -> Path:
    path = write_run(tmp_path, {"0_cold_start": WEAK, "1_math_code": STRONG})
    for stage in ("0_cold_start", "1_math_code"):
        folder = RunFolder(path).stage(stage)
        folder.checkpoints.mkdir()
        folder.final.symlink_to(model_folder, target_is_directory=True)
    return path


def test_the_folder_loads_and_answers_a_chat_at_once(run: Path, tmp_path: Path, model_folder: Path) -> None:
    folder = export(run, None, tmp_path / "out")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "( 3 + 4 ) * 2 mod 5 = ?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs)
    assert inputs["input_ids"].shape[1] < output.shape[1] <= inputs["input_ids"].shape[1] + 40
    trained = AutoModelForCausalLM.from_pretrained(model_folder)
    for name, weight in trained.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])
    assert model.config.use_cache
    assert (model.generation_config.do_sample, model.generation_config.temperature) == (True, 0.9)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_nothing_of_the_trainer_is_in_it(run: Path, tmp_path: Path) -> None:
    folder = export(run, None, tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "README.md", "LICENSE", "training",
    }  # fmt: skip
    assert {path.name for path in (folder / "training").iterdir()} == {
        "0_cold_start.yaml", "0_cold_start.provenance.json", "1_math_code.yaml", "1_math_code.provenance.json",
        "pipeline.yaml", "summary.json", "export.json",
    }  # fmt: skip
    assert "Apache License" in (folder / "LICENSE").read_text()


def test_the_card_tells_the_figures_of_the_run(run: Path, tmp_path: Path) -> None:
    card = ModelCard.load(export(run, None, tmp_path / "out") / "README.md")
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "apache-2.0", "transformers", "text-generation",
    )  # fmt: skip
    assert card.data.datasets == ["org/problems"]
    assert "grpo" in card.data.tags
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results == {"pass@1, temperature 1": 0.75, "pass@1, greedy": 1.0}
    assert "| tiny/final | **math** | 0.750 [" in card.text
    assert "+0.500 [" in card.text
    assert "| `1_math_code` | rl grpo | `0_cold_start` | 10 | 21 |" in card.text
    assert "| `0_cold_start` | sft | scratch | 10 | 20 |" in card.text
    assert '"content": "0 + 1 = ?"' in card.text
    assert "wrote, when it was evaluated:\n\n~~~~~\n1\n" in card.text
    assert str(tmp_path) not in card.content


def test_the_cards_own_lines_of_code_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export(run, None, tmp_path / "out")
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code.replace("PATH_OR_HUB_ID", str(folder)), {})
    assert capsys.readouterr().out


def test_a_checkpoint_of_a_stage_comes_with_its_own_figures(
    run: Path, tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = RunFolder(run).stage("1_math_code")
    (stage.checkpoints / "checkpoint-5").symlink_to(model_folder, target_is_directory=True)
    final = read_json(RunFolder(run).evaluation("0_cold_start", "tiny/final"))
    assert final is not None
    append_line(stage.evaluations, final | {"update": 5, "set": "tiny/tuning"})
    assert main([f"{run}@1_math_code/5", "--to", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| tiny/tuning | **math** | 0.250 [" in text
    assert read_json(tmp_path / "out" / "training" / "export.json") == {
        "run": "tiny",
        "stage": "1_math_code",
        "step": 5,
    }
    assert "exported to" in capsys.readouterr().out


def test_what_is_not_there_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunStateError, match="no complete checkpoint 7; complete checkpoints: none"):
        export(run, "1_math_code", tmp_path / "out", step=7)
    with pytest.raises(RunStateError, match="1_control: the stage is not finished"):
        export(run, "1_control", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_was_cut_short_is_refused(run: Path, tmp_path: Path) -> None:
    torn = RunFolder(run).stage("1_math_code").checkpoints / "checkpoint-5"
    torn.mkdir()
    (torn / "config.json").write_text("{}")
    with pytest.raises(RunStateError, match="no complete checkpoint 5"):
        export(run, "1_math_code", tmp_path / "out", step=5)
    mark_complete(torn, {})
    with pytest.raises(RunStateError, match="no whole model"):
        export(run, "1_math_code", tmp_path / "out", step=5)
    assert list((tmp_path).glob(".out*")) == []


def test_a_folder_of_somebody_else_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("it was")
    with pytest.raises(UserError, match="left alone"):
        export(run, None, tmp_path / "thesis")
    with pytest.raises(UserError, match="is a file"):
        export(run, None, tmp_path / "thesis" / "chapter1.tex")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "it was"


def test_an_export_of_ours_is_replaced_as_a_whole(run: Path, tmp_path: Path) -> None:
    folder = export(run, "0_cold_start", tmp_path / "out")
    (folder / "stale.txt").touch()
    export(run, "1_math_code", folder)
    assert not (folder / "stale.txt").exists()
    assert (read_json(folder / "training" / "export.json") or {})["stage"] == "1_math_code"
    assert [path.name for path in tmp_path.glob(".out*")] == []


def test_a_model_from_elsewhere_does_not_get_our_licence(run: Path, tmp_path: Path) -> None:
    recipe = RunFolder(run).stage("0_cold_start").resolved
    recipe.write_text(recipe.read_text().replace("{new: tiny}", "{from: some-org/Base-1B}"))
    folder = export(run, None, tmp_path / "out")
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.base_model) == ("other", "some-org/Base-1B")
    assert not (folder / "LICENSE").exists()


def test_without_a_pipeline_the_only_finished_stage_is_meant(run: Path, tmp_path: Path) -> None:
    RunFolder(run).state.unlink()
    with pytest.raises(RunStateError, match="name the stage"):
        export(run, None, tmp_path / "out")
    RunFolder(run).stage("1_math_code").done.unlink()
    export(run, None, tmp_path / "out")
    assert (read_json(tmp_path / "out" / "training" / "export.json") or {})["stage"] == "0_cold_start"


def test_wrong_targets_are_one_message(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{run}@1_math_code/last", "--to", str(tmp_path / "out")]) == 2
    assert main([str(tmp_path / "nowhere"), "--to", str(tmp_path / "out")]) == 2
    messages = capsys.readouterr().err.splitlines()
    assert len(messages) == 2
    assert "the number of a checkpoint" in messages[0]
    assert "no such run folder" in messages[1]


def test_a_model_without_a_chat_template_is_refused(run: Path, tmp_path: Path, model_folder: Path) -> None:
    stage = RunFolder(run).stage("1_math_code")
    stage.final.unlink()
    stage.final.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (stage.final / name).write_bytes((model_folder / name).read_bytes())
    write_json(stage.final / "tokenizer_config.json", {})
    with pytest.raises(RunStateError, match="no chat template"):
        export(run, None, tmp_path / "out")
