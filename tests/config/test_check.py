"""`qwq-rl check`: what is wrong between the files of a recipe, and between a recipe and the machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwq_rl.config.check import check, main, mistakes
from qwq_rl.errors import RecipeError

GENERAL = """\
kind: rl
model: {from: 1_math_code}
algorithm: grpo
data:
  - {source: tiny/math}
  - {source: tiny/general}
domains:
  math: {verifiers: {math: {}}}
  general:
    reward_model: 0.3
    verifiers: {json_schema: {}, tool_call: {}, constraints: {}}
reward_model: {from: 2_reward_model}
rollout: {prompts: 16, generations: 8, max_tokens: 48}
update: {lr: 1e-3, kl: 1e-3}
steps: 100
evaluate: {every: 20, sets: [tiny/tuning], samples: 4}
checkpoint: {every: 20, keep: 2}
"""
CONTROL = """\
kind: sft
model: {from: 0_cold_start}
data: [{source: tiny/math_worked}]
batch: 16
max_length: 128
update: {lr: 1e-3}
steps: 100
evaluate: {every: 20, sets: [tiny/tuning], samples: 4}
checkpoint: {every: 20, keep: 2}
"""


@pytest.fixture
def folder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole recipe folder without a mistake, mostly the contract's examples; the working directory holds it."""
    page = (root / "docs" / "contracts.md").read_text()
    examples = dict(re.findall(r"<!-- example: (\w+) -->\n```yaml\n(.*?)```", page, re.DOTALL))
    texts = {
        "pipeline": examples["pipeline"],
        "0_cold_start": examples["sft_recipe"],
        "1_math_code": examples["rl_recipe"],
        "1_control": CONTROL,
        "2_reward_model": examples["reward_model_recipe"],
        "2_general": GENERAL,
    }
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    for name, text in texts.items():
        (recipe / f"{name}.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return Path("recipe")


def write_rows(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(number: int, **columns: Any) -> dict[str, Any]:
    return {
        "id": f"row-{number}",
        "domain": "math",
        "prompt": "1 + 1 = ?",
        "verifier": "math",
        "reference": "2",
    } | columns


def test_whole_recipe(folder: Path) -> None:
    assert mistakes(folder) == []
    assert list(check(folder)) == ["0_cold_start", "1_math_code", "1_control", "2_reward_model", "2_general"]


@pytest.mark.parametrize("stage", ["0_cold_start", "1_math_code", "1_control", "2_reward_model", "2_general"])
def test_stage_by_itself(folder: Path, stage: str) -> None:
    assert list(check(folder / f"{stage}.yaml")) == [stage]


def test_pipeline_file_stands_for_its_folder(folder: Path) -> None:
    assert len(check(folder / "pipeline.yaml")) == 5


WRONG = {
    "model from no stage": (
        "--2_general.model.from=1_math_cod",
        "--2_general.model.from: '1_math_cod' is no stage of this pipeline, no folder and no Hub id (`org/name`); "
        "did you mean 1_math_code?",
    ),
    "model from itself": ("--1_math_code.model.from=1_math_code", "a stage cannot start from itself"),
    "model from a later stage": ("--1_control.model.from=2_general", "2_general comes later in the pipeline"),
    "model from a reward model": ("--2_general.model.from=2_reward_model", "writes no responses"),
    "model from an empty folder": ("--0_cold_start.model={from: recipe}", "holds no model: there is no config.json"),
    "model from a missing path": ("--0_cold_start.model={from: ./a/b}", "is no stage of this pipeline, no folder"),
    "reward model from no stage": (
        "--2_general.reward_model.from=2_reward_modle",
        "there is no stage 2_reward_modle; did you mean 2_reward_model?",
    ),
    "reward model of another kind": (
        "--2_general.reward_model.from=1_control",
        "1_control is a stage of kind sft, not reward_model; there is 2_reward_model",
    ),
    "no such tiny set": ("--1_math_code.data.0.source=tiny/mth", "there is no tiny/mth; did you mean tiny/math?"),
    "tiny set of another kind": (
        "--0_cold_start.data.0.source=tiny/math",
        "tiny/math has no rows for a stage of kind sft: use tiny/math_demonstrations, tiny/code_demonstrations, "
        "tiny/general_demonstrations, tiny/math_worked, tiny/code_worked",
    ),
    "training on a held-out set": ("--1_math_code.data.0.source=tiny/final", "tiny/final is held out for evaluation"),
    "evaluation on a training set": ("--1_math_code.evaluate.sets=[tiny/math]", "tiny/math is for training"),
    "no such evaluation set": (
        "--1_math_code.evaluate.sets=[tiny/tunning]",
        "sets.0: there is no tiny/tunning; did you mean tiny/tuning?",
    ),
    "evaluation set twice": ("--pipeline.evaluate.sets=[tiny/final, tiny/final]", "sets.1: tiny/final is named twice"),
    "missing file": ("--0_cold_start.data.0.source=rows.jsonl", "rows.jsonl: there is no such file"),
    "missing Parquet file": ("--0_cold_start.data.0.source=rows.parquet", "rows.parquet: there is no such file"),
    "source of no kind": ("--0_cold_start.data.0.source=rows", "rows: not a source of rows"),
    "missing evaluation file": ("--0_cold_start.evaluate.sets=[rows.jsonl]", "rows.jsonl: there is no such file"),
    "unknown mapper": ("--0_cold_start.data.0={source: a/b, mapper: gsm8}", "data.0.mapper: mapper `gsm8` is unknown"),
    "mapper of generated rows": ("--1_math_code.data.0.mapper=gsm8k", "mapper: does nothing on tiny/ sets"),
    "unknown verifier": (
        "--1_math_code.domains.math.verifiers={math: maths}",
        "domains.math.verifiers.math: unknown verifier `maths`; did you mean `math`?",
    ),
    "missing verifier file": (
        "--1_math_code.domains.math.verifiers={math: my/checker.py:verify}",
        "there is no file my/checker.py",
    ),
    "unknown parameter of a verifier": (
        "--1_math_code.domains.math.verifiers.math.tolerence=1",
        "has no parameter `tolerence`",
    ),
    "verifier no row names": (
        "--1_math_code.domains.math.verifiers.json_schema={}",
        "does nothing: no row of math names this verifier (they name math)",
    ),
    "domain without rows": (
        "--1_math_code.domains.general={verifiers: {constraints: {}}}",
        "domains.general: does nothing: no row of `data` is of this domain",
    ),
    "rows without a domain": (
        "--1_math_code.domains={math: {verifiers: {math: {}}}}",
        "data.1.source: has rows of the domain code, which `domains` does not name",
    ),
    "reward model that is not used": (
        "--1_math_code.reward_model.from=2_reward_model",
        "2_reward_model comes later in the pipeline",
    ),
    "weight of a reward model that may outrank": (
        "--2_general.domains.general.reward_model=1",
        "a response that passes may get as little as 1 - 1, one that fails up to 0: choose a weight below 1",
    ),
    "gate of no stage": ("--pipeline.gates.0.stage=0_cold_strt", "there is no stage 0_cold_strt; did you mean 0_cold"),
    "gate of a reward model": ("--pipeline.gates.0.stage=2_reward_model", "gates.0.stage: 2_reward_model trains a"),
    "gate on no set": ("--pipeline.gates.0.set=tiny/tunning", "did you mean tiny/tuning?"),
    "gate on no domain": (
        "--pipeline.gates.0.require.0.domains=[mth]",
        "no stage has a domain mth; did you mean math?",
    ),
    "control that is no stage": ("--pipeline.control.stage=control", "there is no stage control"),
    "control of no stage": ("--pipeline.control.of=1_math", "there is no stage 1_math; did you mean 1_math_code?"),
    "control that starts elsewhere": (
        "--1_control.model.from=1_math_code",
        "control.stage: 1_control starts from 1_math_code and 1_math_code starts from 0_cold_start: a control starts",
    ),
    "release of no stage": ("--pipeline.release=2_genral", "there is no stage 2_genral; did you mean 2_general?"),
    "release of a reward model": ("--pipeline.release=2_reward_model", "2_reward_model trains a reward model"),
    "final set that is none": (
        "--pipeline.evaluate.sets=[tiny/finl]",
        "there is no tiny/finl; did you mean tiny/final?",
    ),
    "override of no stage": ("--2_genral.steps=1", "--2_genral.steps: there is no stage 2_genral; did you mean 2_gen"),
}


@pytest.mark.parametrize(("override", "message"), WRONG.values(), ids=WRONG)
def test_mistake(folder: Path, override: str, message: str) -> None:
    found = mistakes(folder, [override])
    assert any(message in mistake for mistake in found), found


def test_each_mistake_is_alone(folder: Path) -> None:
    """One mistake does not bring others with it."""
    assert len(mistakes(folder, ["--2_general.model.from=1_math_cod"])) == 1
    assert len(mistakes(folder, ["--1_math_code.domains.math.verifiers={math: maths}"])) == 1
    assert len(mistakes(folder, ["--pipeline.release=2_genral"])) == 1


def test_every_mistake_of_every_file_at_once(folder: Path) -> None:
    overrides = [
        "--pipeline.release=x",
        "--pipeline.gates.0.extend.tims=2",
        "--0_cold_start.trl.learning_rate=1",
        "--1_math_code.data.0.source=tiny/mth",
        "--1_math_code.stps=5",
        "--1_control.steps=0",
        "--2_reward_model.model.from=0_cold",
        "--2_general.domains.math.verifiers={mth: {}}",
    ]
    found = mistakes(folder, overrides)
    places = [mistake.split(": ")[0] for mistake in found]
    assert set(places) == {override.split("=")[0] for override in overrides}
    with pytest.raises(RecipeError) as raised:
        check(folder, overrides)
    assert str(raised.value).splitlines() == found


def test_mistakes_come_with_file_and_line(folder: Path) -> None:
    path = folder / "2_general.yaml"
    path.write_text(
        path.read_text().replace("{from: 1_math_code}", "{from: 1_mathcode}").replace("tiny/math", "tiny/mth")
    )
    first, second = mistakes(folder)
    assert first.startswith("recipe/2_general.yaml:2: model.from: '1_mathcode' is no stage")
    assert second == "recipe/2_general.yaml:5: data.0.source: there is no tiny/mth; did you mean tiny/math?"


def test_reward_model_weight_without_a_reward_model(folder: Path) -> None:
    found = mistakes(folder, ["--2_general.reward_model="])
    assert found == [
        "recipe/2_general.yaml:10: domains.general.reward_model: does nothing without `reward_model: {from: STAGE}`",
        "--2_general.reward_model: is missing: general has open rows, which a reward model alone can reward",
    ]


def test_reward_model_that_nothing_uses(folder: Path) -> None:
    """tiny/math has no open row, so without a weight nothing asks the reward model."""
    overrides = ["--2_general.data=[{source: tiny/math}]", "--2_general.domains={math: {verifiers: {math: {}}}}"]
    (only,) = mistakes(folder, overrides)
    assert only.endswith("reward_model: does nothing: no domain gives it weight, and no row is open")


def test_domain_of_open_rows_only(folder: Path) -> None:
    overrides = ["--2_general.data.1.source=org/chat", "--2_general.domains.general={verifiers: {}}"]
    assert mistakes(folder, overrides) == []
    (only,) = mistakes(folder, [*overrides, "--2_general.domains.general.reward_model=0.5"])
    assert "does nothing without verifiers" in only


def test_later_reward_model(folder: Path) -> None:
    stages = "[0_cold_start, 1_math_code, 1_control, 2_general, 2_reward_model]"
    (only,) = mistakes(folder, [f"--pipeline.stages={stages}"])
    place = "recipe/2_general.yaml:12: reward_model.from"
    assert only == f"{place}: 2_reward_model comes later in the pipeline: move it forward in pipeline.yaml"


def test_second_gate_that_extends_the_same_stage(folder: Path) -> None:
    path = folder / "pipeline.yaml"
    gate = "{stage: 0_cold_start, set: tiny/tuning, require: [{measure: pass_at_1, above: 0.1}], extend: %s}"
    extend = "{steps: 1, times: 1}"
    path.write_text(path.read_text().replace("evaluate:", f"  - {gate % extend}\nevaluate:"))
    (only,) = mistakes(folder)
    assert "gates.1.extend: does nothing: an earlier gate says how 0_cold_start is extended" in only


def test_partial_credit_bounds_the_weight(folder: Path) -> None:
    """A verifier that says how much a failing response can get lowers the weight the reward model may have."""
    Path("partial.py").write_text(
        "def verify(problem, response):\n    return 0.5\n\n\nverify.largest_failing_score = 0.75\n"
    )
    swap = "--2_general.domains.math={reward_model: %s, verifiers: {math: partial.py:verify}}"
    assert mistakes(folder, [swap % 0.2]) == []
    (only,) = mistakes(folder, [swap % 0.25])
    assert "may get as little as 1 - 0.25, one that fails up to 0.75: choose a weight below 0.25" in only


RULES = "--1_math_code.domains.math={verifiers: {math: {}, repetition: {most: 0.3}}, checks: [%s]}"
LOOPS = "{verifier: repetition, role: penalty}"


def test_rules_for_all_rows_of_a_domain(folder: Path) -> None:
    language = "{verifier: language_consistency, role: gate, reference: en}"
    assert mistakes(folder, [RULES % f"{LOOPS}, {language}, {{verifier: think_format, role: gate}}"]) == []


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            "{verifier: repetitoin, role: gate}",
            "checks.0.verifier: the domain has no verifier repetitoin; did you mean",
        ),
        ("{verifier: think_fromat, role: gate}", "unknown verifier `think_fromat`; did you mean `think_format`?"),
        ("{verifier: overlong, role: gate}", "its parameters belong under the domain's `verifiers`, as `overlong:"),
        ("{verifier: language_consistency, role: gate, reference: eng}", "checks.0.reference: the language must be"),
        ("{verifier: math, role: gate}", "checks.0.reference: the reference None is no math answer"),
        (f"{LOOPS}, {LOOPS}", "checks.1: repetition is asked as a penalty before"),
        ("{verifier: think_format}", "checks.0.role: is missing: `gate`: where the rule is broken"),
        ("{verifier: math, role: score, reference: 1}", "a score is what a row asks for: name it in the row; must be"),
        ("{verifier: math, rule: gate}", "checks.0.rule: unknown key; did you mean role?"),
        ("repetition", "checks.0: must be a mapping, not text 'repetition'"),
        ("{verifier: think_format, role: penalty}", "as little as 1 - 0 - 1, one that fails up to 0: lower `most`"),
    ],
)
def test_a_rule_that_cannot_be_asked_is_named(folder: Path, rule: str, message: str) -> None:
    assert message in "\n".join(mistakes(folder, [RULES % rule]))


def test_penalties_lower_the_weight_that_the_reward_model_may_have(folder: Path) -> None:
    rule = "--2_general.domains.math={reward_model: %s, verifiers: {math: {}, repetition: {most: 0.3}}, checks: [%s]}"
    assert mistakes(folder, [rule % (0.6, LOOPS)]) == []
    (only,) = mistakes(folder, [rule % (0.7, LOOPS)])
    assert "domains.math.checks: a response that passes may get as little as 1 - 0.7 - 0.3, one that fails" in only


def test_the_penalties_that_rows_name_count_beside_the_rules(folder: Path) -> None:
    own = [{"verifier": "math", "reference": "2"}, {"verifier": "language_consistency", "role": "penalty"}]
    write_rows(Path("rows.jsonl"), row(1, verifier=None, reference=None, checks=own))
    given = ["--1_math_code.data.0.source=rows.jsonl", RULES % LOOPS]
    (only,) = mistakes(folder, given)
    assert "1 - 0 - 0.3 - 1" in only
    assert "(repetition, language_consistency)" in only
    assert mistakes(folder, [*given, "--1_math_code.domains.math.verifiers.language_consistency={most: 0.3}"]) == []


def test_a_value_that_a_built_in_verifier_refuses_is_told(folder: Path) -> None:
    (only,) = mistakes(folder, ["--1_math_code.domains.math.verifiers.math={anchor: box}"])
    assert "domains.math.verifiers.math: " in only
    assert "anchor is" in only


def test_a_reference_alone_is_for_the_single_verifier_that_is_no_rule(folder: Path) -> None:
    write_rows(Path("rows.jsonl"), row(1, verifier=None))
    given = ["--1_math_code.data.0.source=rows.jsonl"]
    assert mistakes(folder, given) == []
    assert mistakes(folder, [*given, RULES % LOOPS]) == []
    (only,) = mistakes(folder, [*given, "--1_math_code.domains.math={verifiers: {math: {}, exact: {}}}"])
    assert only.endswith("has rows of math with a reference that name no verifier, and the domain has 2 (math, exact)")


def test_rows_of_a_file(folder: Path) -> None:
    write_rows(Path("rows.jsonl"), row(1), row(2))
    assert mistakes(folder, ["--1_math_code.data.0.source=rows.jsonl"]) == []


def test_malformed_rows_are_named_by_their_line(folder: Path) -> None:
    write_rows(Path("rows.jsonl"), row(1), row(2, prompt=3), row(1))
    found = mistakes(folder, ["--1_math_code.data.0.source=rows.jsonl"])
    place = "--1_math_code.data.0.source: rows.jsonl"
    assert found[0].startswith(f"{place}:2: `prompt` must be ")
    assert found[1].startswith(f"{place}:3: the id 'row-1' is taken")


def test_rows_of_another_kind(folder: Path) -> None:
    write_rows(Path("rows.jsonl"), row(1))
    (only,) = mistakes(folder, ["--0_cold_start.data.0.source=rows.jsonl"])
    assert "this looks like a row of kind rl; a row of kind sft is needed" in only


def test_open_rows_of_a_file_need_a_reward_model(folder: Path) -> None:
    write_rows(Path("rows.jsonl"), row(1), row(2, verifier=None, reference=None))
    (only,) = mistakes(folder, ["--1_math_code.data.0.source=rows.jsonl"])
    assert only.endswith("reward_model: is missing: math has open rows, which a reward model alone can reward")


def test_verifier_that_only_rows_name(folder: Path) -> None:
    write_rows(Path("rows.jsonl"), row(1), row(2, verifier="mth"))
    (only,) = mistakes(folder, ["--1_math_code.data.0.source=rows.jsonl"])
    assert "data.0.source: in rows of math: unknown verifier `mth`; did you mean `math`?" in only


def test_user_verifier_and_parameters(folder: Path) -> None:
    Path("mine.py").write_text(
        "def strict(digits):\n    def verify(problem, response):\n        return True\n    return verify\n"
    )
    swap = "--1_math_code.domains.math.verifiers.math={use: mine.py:strict, %s: 3}"
    assert mistakes(folder, [swap % "digits"]) == []
    (only,) = mistakes(folder, [swap % "digit"])
    assert "has no parameter `digit`; did you mean `digits`?" in only


def test_user_mapper(folder: Path) -> None:
    Path("mine.py").write_text("def to_row(row):\n    return row\n")
    write_rows(Path("rows.jsonl"), row(1))
    entry = "--1_math_code.data.0={source: rows.jsonl, mapper: mine.py:%s}"
    assert mistakes(folder, [entry % "to_row"]) == []
    (only,) = mistakes(folder, [entry % "torow"])
    assert "data.0: data.0.mapper: mapper `mine.py:torow`" in only
    assert only.endswith("mine.py has no `torow`; did you mean `to_row`?")


def test_model_folders_and_hub_ids(folder: Path) -> None:
    Path("models/base").mkdir(parents=True)
    Path("models/base/config.json").write_text("{}")
    for source in ("models/base", "./models/base", "Qwen/Qwen2.5-0.5B"):
        assert mistakes(folder, [f"--0_cold_start.model={{from: {source}}}"]) == []


def test_stage_by_itself_knows_the_stages_beside_it(folder: Path) -> None:
    (only,) = mistakes(folder / "2_general.yaml", ["--model.from=1_math_cod"])
    assert only.endswith("did you mean 1_math_code?")
    (only,) = mistakes(folder / "1_control.yaml", ["--model.from=2_general"])
    assert "2_general comes later" in only
    (only,) = mistakes(folder / "2_general.yaml", ["--reward_model.from=1_control"])
    assert "1_control is a stage of kind sft" in only


def test_stage_by_itself_without_a_pipeline(folder: Path) -> None:
    (folder / "pipeline.yaml").unlink()
    assert mistakes(folder / "2_general.yaml") == []
    (only,) = mistakes(folder / "2_general.yaml", ["--model.from=1_math_cod"])
    assert only.endswith("did you mean 1_math_code?")


def test_mistakes_of_the_pipeline_do_not_spoil_a_stage_by_itself(folder: Path) -> None:
    (folder / "pipeline.yaml").write_text("stages: [0_cold_start, 1_math_code]\nrelase: [\n")
    assert mistakes(folder / "1_math_code.yaml") == []


def test_no_such_recipe(folder: Path) -> None:
    (only,) = mistakes(folder / "2_genral.yaml")
    assert only == "recipe/2_genral.yaml: there is no such recipe; did you mean recipe/2_general.yaml?"


def test_folder_without_a_pipeline(folder: Path) -> None:
    (folder / "pipeline.yaml").unlink()
    (only,) = mistakes(folder)
    assert only == "recipe: has no pipeline.yaml, which names the stages; to check one stage, name its file"


def test_command_shows_the_stages(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "stage", "0_cold_start", "1_math_code", "1_control", "2_reward_model", "2_general",
    ]  # fmt: skip
    assert re.split(" {2,}", lines[2]) == [
        "1_math_code", "rl grpo", "0_cold_start", "tiny/math 50%, tiny/code 50%", "100", "128",
    ]  # fmt: skip
    data = "tiny/math_demonstrations 50%, tiny/code_demonstrations 50%"
    assert re.split(" {2,}", lines[1]) == ["0_cold_start", "sft", "new tiny", data, "500", "16"]


def test_command_lists_the_mistakes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--1_math_code.stps=5", "--pipeline.release=x"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0].startswith("--pipeline.release: there is no stage x")
    assert lines[1] == "--1_math_code.stps: unknown key; did you mean steps?"
    assert lines[2] == "2 mistakes in recipe"


def test_check_imports_no_heavy_library_and_is_quick(folder: Path) -> None:
    code = """
import sys, time
from qwq_rl.config.check import main
status = main(["recipe"])
heavy = {"torch", "transformers", "trl", "datasets", "accelerate", "sympy", "numpy"} & set(sys.modules)
print(status, sorted(heavy), time.process_time() < 1.5)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "0 [] True"
