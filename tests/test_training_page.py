"""docs/training.md: its examples are recipes that load, its table is the code, its files are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from qwq_rl.algorithms.named import ALGORITHMS
from qwq_rl.config.blocks import LimitsBlock
from qwq_rl.config.recipe import load_stage
from qwq_rl.config.stages import RlRecipe

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "training.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- example: (\w+) -->\n```yaml\n(.*?)```", PAGE, re.S))

STAGE = """\
kind: rl
model: {from: Qwen/Qwen2.5-1.5B-Instruct}
algorithm: grpo
data: [{source: "openai/gsm8k:main", mapper: gsm8k}]
domains: {math: {verifiers: {math: {}}}}
rollout: {prompts: 32, generations: 8, max_tokens: 2048}
update: {lr: 1.0e-6}
steps: 200
evaluate: {every: 20, sets: [tiny/tuning], samples: 4}
checkpoint: {every: 20, keep: 2}
"""


def merged(base: Any, changes: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return base | {key: merged(base.get(key), value) for key, value in changes.items()}


def leaves(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, part in value.items() for key, leaf in leaves(part, (*path, name)).items()}


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_an_example_in_a_recipe_loads(tmp_path: Path, name: str) -> None:
    (tmp_path / "1_math.yaml").write_text(yaml.safe_dump(merged(yaml.safe_load(STAGE), yaml.safe_load(EXAMPLES[name]))))

    recipe = load_stage(tmp_path / "1_math.yaml")

    assert isinstance(recipe, RlRecipe)
    assert recipe.rollout.prompts * recipe.rollout.generations % recipe.update.updates_per_rollout == 0


def test_there_are_examples_of_what_the_page_is_about() -> None:
    assert set(EXAMPLES) == {
        "sampling", "correction", "open_reasoner_zero", "vapo", "lora", "accepted", "vllm_server", "vllm_colocated",
        "vllm_nccl", "batching",
    }  # fmt: skip


def test_the_table_of_algorithms_is_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+?) \| (.+?) \| `(\w+)` \| `(\w+)` \| `(\w+)` \|$", PAGE, re.M)
    found = {name: (baseline.strip("`"), scale.strip("`"), *rest) for name, baseline, scale, *rest in rows}

    assert found == {
        name: (one.baseline or "critic", one.scale or "whitened", one.level, one.loss.__name__, one.weights)
        for name, one in ALGORITHMS.items()
    }


def test_the_objective_of_ones_own_is_a_policy_loss() -> None:
    (text,) = re.findall(r"<!-- example: loss -->\n```python\n(.*?)```", PAGE, re.S)
    names: dict[str, Any] = {}
    exec(compile(text, "docs/training.md", "exec"), names)
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    ratios, advantages, mask = torch.tensor([[0.0, 3.0]]), torch.tensor([[0.5]]), torch.ones(1, 2)

    losses = names["bounded"](logprobs, ratios, advantages, mask)
    losses.sum().backward()

    assert losses.tolist() == [[0.5, 2.0]]
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-0.5, -1.0]]


def test_every_limit_stands_on_the_page() -> None:
    section = PAGE.split("\n## Limits\n")[1].split("\n## ")[0]

    assert [name for name in LimitsBlock.__dataclass_fields__ if f"`{name}`" not in section] == []


def test_every_file_that_is_named_is_there() -> None:
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]*(?:\.py)?|[a-z_]+\.py)`", PAGE))
    places = [ROOT, ROOT / "qwq_rl"]

    assert named
    assert [
        name for name in named if not any((place / name).exists() for place in places) and name != "rollouts/"
    ] == []
