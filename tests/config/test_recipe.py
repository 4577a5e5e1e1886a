"""Stage recipes and pipelines: what they hold, what they refuse, and that a resolved recipe is the recipe."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq_rl.config.loader import blocks_of
from qwq_rl.config.recipe import (
    KINDS,
    CheckpointBlock,
    DataSource,
    Domain,
    Evaluate,
    Extend,
    Gate,
    ModelSource,
    Pipeline,
    Requirement,
    RewardModelSource,
    RlRecipe,
    RlUpdate,
    RolloutBlock,
    SftRecipe,
    SupervisedUpdate,
    difference,
    load_pipeline,
    load_stage,
    recipe_hash,
    resolved_yaml,
    split_overrides,
)
from qwq_rl.config.reference import recipe_reference
from qwq_rl.config.trl_block import owned_fields, trl_fields
from qwq_rl.errors import RecipeError


def example(root: Path, name: str) -> str:
    """A literal example of docs/contracts.md."""
    found = re.search(
        rf"<!-- example: {name} -->\n```yaml\n(.*?)```", (root / "docs" / "contracts.md").read_text(), re.DOTALL
    )
    assert found is not None, name
    return found[1]


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Path:
    """The contract's pipeline with its stages, as a recipe folder."""
    sft = example(root, "sft_recipe")
    stages = {
        "pipeline": example(root, "pipeline"),
        "0_cold_start": sft,
        "1_math_code": example(root, "rl_recipe"),
        "1_control": sft.replace("{new: tiny}", "{from: 0_cold_start}"),
        "2_reward_model": example(root, "reward_model_recipe"),
        "2_general": example(root, "rl_recipe").replace("{from: 0_cold_start}", "{from: 1_math_code}"),
    }
    for name, text in stages.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def mistakes(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as raised:
        load_stage(path, overrides)
    return str(raised.value).splitlines()


def test_rl_example(folder: Path) -> None:
    stage = load_stage(folder / "1_math_code.yaml")
    assert stage == RlRecipe(
        kind="rl",
        model=ModelSource(from_="0_cold_start"),
        algorithm="grpo",
        data=(DataSource("tiny/math"), DataSource("tiny/code")),
        domains={"math": Domain({"math": {}}), "code": Domain({"code": {}})},
        gates=("think_closed", "finished", "answered"),
        rollout=RolloutBlock(prompts=16, generations=8, max_tokens=48),
        update=RlUpdate(lr=1e-3, clip=(0.2, 0.28)),
        steps=100,
        evaluate=Evaluate(every=20, sets=("tiny/tuning",), samples=4, at_start=True),
        checkpoint=CheckpointBlock(every=20, keep=2),
    )


def test_sft_example(folder: Path) -> None:
    stage = load_stage(folder / "0_cold_start.yaml")
    assert isinstance(stage, SftRecipe)
    assert stage.model == ModelSource(new="tiny")
    assert stage.update == SupervisedUpdate(lr=4e-3, warmup=20)


def test_pipeline_example(folder: Path) -> None:
    pipeline, stages = load_pipeline(folder)
    assert list(stages) == list(pipeline.stages)
    assert pipeline.gates == (
        Gate(
            stage="0_cold_start",
            set="tiny/tuning",
            require=(
                Requirement("pass_at_k", above=0.0, domains=("math", "code"), over="families"),
                Requirement("worked_minus_terse", above=0.3, domains=("math",)),
            ),
            extend=Extend(steps=100, times=2),
        ),
    )
    assert stages["2_reward_model"].kind == "reward_model"


def test_overrides_reach_the_stage_they_are_for(folder: Path) -> None:
    overrides = {"1_math_code": ["--steps=40"], "pipeline": ["--parallel=1"]}
    pipeline, stages = load_pipeline(folder, overrides)
    assert (pipeline.parallel, stages["1_math_code"].steps, stages["2_general"].steps) == (1, 40, 100)


REFUSED = {
    "both sources of a model": ("--model.new=tiny", "model: needs exactly one of `from`"),
    "no source of a model": ("--model={}", "--model: needs exactly one of `from`"),
    "ppo without a critic": ("--algorithm=ppo", "critic: belongs to algorithm ppo, and only there"),
    "critic without ppo": ("--critic={lr: 1.0e-5}", "critic: belongs to algorithm ppo, and only there"),
    "bound within the clip": ("--update.delta=1.1", "must be above 1 + the upper clip"),
    "length that cannot grow": ("--rollout.lengthen={start: 48, over: 9}", "48 is not below max_tokens, 48"),
    "limit of what is not measured": ("--limits.kl=1", "limits.kl: is measured only where update.kl is above 0"),
    "misspelt algorithm": ("--algorithm=drgrpo", "did you mean dr_grpo?"),
    "one generation": ("--rollout.generations=1", "must be at least 2, not 1"),
    "uneven updates": ("--update.updates_per_rollout=3", "= 128 responses cannot be split into 3 equal updates"),
    "evaluation after the end": ("--evaluate.every=101", "101 is more than the stage's 100 steps"),
    "checkpoint after the end": ("--checkpoint.every=101", "101 is more than the stage's 100 steps"),
    "warm-up after the end": ("--update.warmup=101", "101 is more than the stage's 100 steps"),
    "no data": ("--data=[]", "is empty: there is nothing to train on"),
    "no domain": ("--domains={}", "is empty: no row would be rewarded"),
    "no evaluation set": ("--evaluate.sets=[]", "is empty: there is nothing to evaluate on"),
    "gate twice": ("--gates=[finished, finished]", "names a gate twice"),
    "unknown gate": ("--gates=[finishd]", "did you mean finished?"),
    "unknown tracker": ("--track=[wandbb]", "did you mean wandb?"),
    "weight of nothing": ("--data.0.weight=0", "must be above 0, not 0"),
    "reward model weight beyond 1": ("--domains.math.reward_model=1.5", "must be at most 1, not 1.5"),
    "unknown field of TRL": ("--trl.use_vlm=true", "GRPOConfig has no such field; did you mean use_vllm?"),
    "field the recipe owns": ("--trl.learning_rate=1", "the recipe itself says this, in update.lr"),
    "misspelt field the recipe owns": ("--trl.max_completion_lenght=9", "max_completion_length in rollout.max_tokens"),
    "term that our loss does without": ("--trl.sync_ref_model=true", "does nothing: losses and references are the"),
    "a server without an address": ("--rollout.server={urls: [h:8000]}", "is no address of a server: give http://"),
    "no server": ("--rollout.server={urls: []}", "is empty: nobody would sample"),
    "vLLM's settings without vLLM": ("--trl.vllm_mode=server", "does nothing without use_vllm: true"),
}


@pytest.mark.parametrize("engine", ["use_vllm", "use_transformers_continuous_batching"])
def test_one_engine_samples(folder: Path, engine: str) -> None:
    server = "--rollout.server={urls: ['http://node-3:8000']}"
    (only,) = mistakes(folder / "1_math_code.yaml", server, f"--trl.{engine}=true")
    assert f"trl.{engine}" in only
    assert "does nothing beside rollout.server, whose servers sample" in only


@pytest.mark.parametrize(("override", "message"), REFUSED.values(), ids=REFUSED)
def test_rl_recipe_refuses(folder: Path, override: str, message: str) -> None:
    (only,) = mistakes(folder / "1_math_code.yaml", override)
    assert message in only


@pytest.mark.parametrize(
    "overrides",
    [
        ["--algorithm=ppo", "--critic={lr: 1.0e-5}"],
        ["--limits.kl=1", "--update.kl=0.1"],
        ["--trl.vllm_mode=server", "--trl.use_vllm=true"],
        ["--trl.adam_beta1=0.8", "--trl.bf16=true", "--trl.top_k=5"],
        ["--update.updates_per_rollout=4"],
        ["--evaluate.every=100", "--checkpoint.every=100", "--update.warmup=100"],
    ],
)
def test_rl_recipe_accepts(folder: Path, overrides: list[str]) -> None:
    load_stage(folder / "1_math_code.yaml", overrides)


REFUSED_SFT = {
    "muon without its learning rate": (["--update.optimizer=muon"], "update.matrix_lr: is missing"),
    "matrix learning rate without muon": (["--update.matrix_lr=1"], "does nothing with optimizer adamw"),
    "evaluation after the end": (["--evaluate.every=501"], "501 is more than the stage's 500 steps"),
    "field of another configuration": (["--trl.beta=0.1"], "SFTConfig has no such field"),
    "field the recipe owns": (["--trl.weight_decay=0.1"], "the recipe itself says this, in update.weight_decay"),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED_SFT.values(), ids=REFUSED_SFT)
def test_sft_recipe_refuses(folder: Path, overrides: list[str], message: str) -> None:
    (only,) = mistakes(folder / "0_cold_start.yaml", *overrides)
    assert message in only


def test_muon_with_its_learning_rate(folder: Path) -> None:
    stage = load_stage(folder / "0_cold_start.yaml", ["--update.optimizer=muon", "--update.matrix_lr=2e-2"])
    assert isinstance(stage, SftRecipe)
    assert stage.update.matrix_lr == 0.02


def test_reward_model_recipe_refuses(folder: Path) -> None:
    found = mistakes(folder / "2_reward_model.yaml", "--checkpoint.every=121", "--trl.max_length=4")
    assert sorted(found) == [
        "--checkpoint.every: 121 is more than the stage's 120 steps: it would never happen",
        "--trl.max_length: the recipe itself says this, in max_length",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--kind=rll", "--kind: cannot be 'rll': a stage is one of rl, sft, reward_model; did you mean rl?"),
        ("--kind=", "--kind: is missing or no text: a stage is one of rl, sft, reward_model"),
        ("--kind=[rl]", "--kind: is missing or no text: a stage is one of rl, sft, reward_model"),
    ],
)
def test_kind_that_is_none(folder: Path, override: str, message: str) -> None:
    (only,) = mistakes(folder / "1_math_code.yaml", override)
    assert only.startswith(message)


REFUSED_PIPELINE = {
    "stage twice": ("--stages.2=1_math_code", "1_math_code is named twice"),
    "stage without a file": ("--stages.1=1_math_cod", "1_math_cod.yaml; did you mean 1_math_code?"),
    "name that is no folder": ("--stages.1=a/b", "'a/b' cannot name a stage"),
    "name that a run folder needs": ("--stages.1=model", "'model' cannot name a stage"),
    "no stages": ("--stages=[]", "is empty: name at least one stage"),
    "unknown measure": ("--gates.0.require.0.measure=pass_at_2", "did you mean pass_at_k?"),
    "gate without requirements": ("--gates.0.require=[]", "is empty: the gate would always be open"),
    "requirement always met": ("--gates.0.require.0.above=-0.1", "a pass_at_k is never below 0"),
    "requirement never met": ("--gates.0.require.0.above=1", "must be below 1, not 1"),
    "modes over families": ("--gates.0.require.1.over=families", "worked_minus_terse is measured over domains only"),
    "control of itself": ("--control.of=1_control", "1_control cannot be its own control"),
    "unknown key": ("--relase=x", "unknown key; did you mean release?"),
}


@pytest.mark.parametrize(("override", "message"), REFUSED_PIPELINE.values(), ids=REFUSED_PIPELINE)
def test_pipeline_refuses(folder: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load_pipeline(folder, {"pipeline": [override]})
    assert message in str(raised.value)
    assert str(raised.value).startswith("--pipeline.")


def test_mistakes_of_all_files_come_at_once(folder: Path) -> None:
    overrides = {name: ["--steps=0"] for name in ("0_cold_start", "1_math_code", "2_reward_model")}
    with pytest.raises(RecipeError) as raised:
        load_pipeline(folder, overrides | {"pipeline": ["--parallel=0"]})
    assert str(raised.value).splitlines() == [
        "--pipeline.parallel: must be at least 1, not 0",
        *(f"--{name}.steps: must be at least 1, not 0" for name in ("0_cold_start", "1_math_code", "2_reward_model")),
    ]


def test_split_overrides() -> None:
    assert split_overrides(["--a.x=1", "--b.y.z=[2]", "--a.w=3", "--pipeline.parallel=1"], ["a", "b"]) == {
        "a": ["--x=1", "--w=3"],
        "b": ["--y.z=[2]"],
        "pipeline": ["--parallel=1"],
    }


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--stge.x=1", "--stge.x: there is no stage stge; did you mean stage?"),
        ("--steps=1", "--steps=1: an override is written --STAGE.key=value"),
        ("--stage.x", "--stage.x: an override is written --STAGE.key=value"),
        ("stage.x=1", "stage.x=1: an override is written --STAGE.key=value"),
    ],
)
def test_split_overrides_refuses(argument: str, message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        split_overrides([argument], ["stage"])
    assert str(raised.value) == message


NUMBERS = st.floats(1e-12, 1.0)
COUNTS = st.integers(1, 10**9)
NAMES = st.text("abcXYZ019_-é数", min_size=1, max_size=6)
SOURCES = st.builds(DataSource, source=NAMES, weight=NUMBERS, mapper=st.none() | NAMES, limit=st.none() | COUNTS)
EVALUATE = st.builds(
    Evaluate,
    every=st.just(1),
    sets=st.lists(NAMES, min_size=1).map(tuple),
    samples=COUNTS,
    limit=COUNTS,
    at_start=st.booleans(),
)
CHECKPOINT = st.builds(CheckpointBlock, every=st.just(1), keep=COUNTS)
DOMAINS = st.builds(
    Domain,
    verifiers=st.dictionaries(NAMES, NAMES | st.dictionaries(NAMES, st.none() | NUMBERS | NAMES | st.lists(COUNTS))),
    weight=NUMBERS,
    reward_model=NUMBERS,
)
RL = st.builds(
    RlRecipe,
    kind=st.just("rl"),
    model=st.builds(ModelSource, from_=NAMES),
    algorithm=st.sampled_from(["grpo", "dr_grpo", "dapo", "gspo", "cispo"]),
    seed=COUNTS,
    data=st.lists(SOURCES, min_size=1, max_size=3).map(tuple),
    domains=st.dictionaries(NAMES, DOMAINS, min_size=1, max_size=3),
    reward_model=st.none() | st.builds(RewardModelSource, NAMES),
    gates=st.sampled_from([(), ("finished",), ("answered", "think_closed")]),
    rollout=st.builds(
        RolloutBlock, prompts=COUNTS, generations=st.integers(2, 9), max_tokens=COUNTS, temperature=NUMBERS
    ),
    update=st.builds(RlUpdate, lr=NUMBERS, clip=st.tuples(NUMBERS, NUMBERS), kl=NUMBERS, epochs=COUNTS),
    steps=COUNTS,
    evaluate=EVALUATE,
    checkpoint=CHECKPOINT,
    trl=st.fixed_dictionaries({}, optional={"top_p": NUMBERS, "bf16": st.booleans(), "generation_kwargs": st.none()}),
)
UPDATES = st.builds(SupervisedUpdate, lr=NUMBERS, optimizer=st.just("muon"), matrix_lr=NUMBERS) | st.builds(
    SupervisedUpdate, lr=NUMBERS, weight_decay=NUMBERS
)
SFT = st.builds(
    SftRecipe,
    kind=st.just("sft"),
    model=st.just(ModelSource(new="tiny")),
    data=st.lists(SOURCES, min_size=1, max_size=2).map(tuple),
    batch=COUNTS,
    max_length=COUNTS,
    update=UPDATES,
    steps=COUNTS,
    evaluate=EVALUATE,
    checkpoint=CHECKPOINT,
    track=st.sampled_from([(), ("wandb",), ("trackio", "tensorboard")]),
)


@settings(deadline=None, max_examples=40)
@given(stage=RL | SFT)
def test_resolved_recipe_is_the_recipe(tmp_path_factory: pytest.TempPathFactory, stage: RlRecipe | SftRecipe) -> None:
    path = tmp_path_factory.getbasetemp() / "stage.yaml"
    path.write_text(resolved_yaml(stage))
    again = load_stage(path)
    assert again == stage
    assert recipe_hash(again) == recipe_hash(stage)


def test_hash_is_of_the_settings_and_not_of_the_writing(folder: Path) -> None:
    path = folder / "1_math_code.yaml"
    before = recipe_hash(load_stage(path))
    path.write_text("# a comment\n" + path.read_text().replace("lr: 1.0e-3", "lr: 0.001").replace("kl: 0.0, ", ""))
    assert recipe_hash(load_stage(path)) == before
    assert recipe_hash(load_stage(path, ["--seed=1"])) != before
    assert re.fullmatch("[0-9a-f]{64}", before)


def test_difference_names_what_changed(folder: Path) -> None:
    path = folder / "1_math_code.yaml"
    overrides = ["--update.lr=1e-2", "--data=[{source: tiny/math, limit: 5}]", "--gates=[]"]
    before, after = (resolved_yaml(load_stage(path, some)) for some in ([], overrides))
    assert difference(before, after).splitlines() == [
        'data.1.source: "tiny/code" -> left out',
        "data.1.weight: 1.0 -> left out",
        'gates.0: "think_closed" -> left out',
        'gates.1: "finished" -> left out',
        'gates.2: "answered" -> left out',
        "update.lr: 0.001 -> 0.01",
        "data.0.limit: not there -> 5",
        "gates: not there -> []",
    ]
    assert difference(before, before) == ""


@pytest.mark.slow
def test_fields_of_trl_are_those_of_its_classes() -> None:
    """The fields read from TRL's source, against the classes themselves in a process that may import them."""
    code = """
import dataclasses, json, trl
classes = {"rl": trl.GRPOConfig, "sft": trl.SFTConfig, "reward_model": trl.RewardConfig}
print(json.dumps({kind: [f.name for f in dataclasses.fields(one) if f.init] for kind, one in classes.items()}))
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = ast.literal_eval(process.stdout.strip().splitlines()[-1])
    for kind, names in found.items():
        assert sorted(trl_fields(kind)) == sorted(names)


@pytest.mark.parametrize("kind", KINDS)
def test_owned_fields_are_fields_of_trl(kind: str) -> None:
    """A field that TRL renames would slip through."""
    owned = {field for _, kinds, fields in owned_fields() if kind in kinds or kinds == "any" for field in fields}
    assert owned <= set(trl_fields(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_owned_fields_point_at_keys_of_the_recipe(kind: str) -> None:
    keys = {
        f"{path}.{one.name}".lstrip(".").rstrip("_")
        for path, block in [("", KINDS[kind]), *blocks_of(KINDS[kind])]
        for one in dataclasses.fields(block)
    }
    for said, kinds, _ in owned_fields():
        if (kind in kinds or kinds == "any") and " " not in said:
            assert said in keys


def test_every_field_has_a_sentence() -> None:
    for root in (*KINDS.values(), Pipeline):
        for block in (root, *(inner for _, inner in blocks_of(root))):
            for one in dataclasses.fields(block):
                assert one.metadata["help"].endswith("."), f"{block.__name__}.{one.name}"


def test_reference_page_is_up_to_date(root: Path) -> None:
    command = "python -m qwq_rl.config.reference > docs/recipes.md"
    assert (root / "docs" / "recipes.md").read_text() == recipe_reference(), f"make it again: {command}"


def test_reference_page_has_no_dead_links() -> None:
    page = recipe_reference()
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert len(anchors) == len(headings)
    assert set(re.findall(r"\(#([^)]*)\)", page)) <= anchors
