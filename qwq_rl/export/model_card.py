"""The README.md of an exported model, from the figures of the run. Pure functions; `model_card` is the whole file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

Figures = Mapping[str, Mapping[str, Any]]
"""Set -> `{"domains": {name: score}, "families": {...}}`, as in summary.json."""


@dataclass(frozen=True)
class StageFacts:
    """What the card says of one stage."""

    name: str
    kind: str
    algorithm: str | None
    start: str
    """A stage, the name of a folder or a Hub id, in backticks; or "scratch"."""
    reward_model: str | None
    updates: int
    cpu_seconds: float
    sets: Figures
    against: Mapping[str, Any] | None
    """The paired differences from the stage it continues from: `{"stage": ..., "sets": {...}}`."""


@dataclass(frozen=True)
class Facts:
    """What the card says of the model."""

    name: str
    architecture: str
    parameters: int
    base: str | None
    """What the first stage started from: a Hub id or the name of a folder; None for a model built from scratch."""
    data_sets: Sequence[str]
    """Hub ids among the training data."""
    recipe: str | None
    seed: int | None
    stages: Sequence[StageFacts]
    """The stages that the model went through, in order; the last one is exported."""
    temperature: float
    max_tokens: int
    commit: str | None
    versions: Mapping[str, str]
    sets: Figures
    """The results of the exported checkpoint."""
    example: tuple[str, str] | None
    """A held-out prompt and the model's response."""


def model_card(facts: Facts) -> str:
    """The whole file: YAML front matter, then Markdown."""
    head = yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True)
    body = [_what(facts), _results(facts), _training(facts), _use(facts), _provenance(facts)]
    return f"---\n{head}---\n\n" + "\n\n".join(part for part in body if part) + "\n"


def _front_matter(facts: Facts) -> dict[str, Any]:
    head: dict[str, Any] = {
        "license": "apache-2.0" if facts.base is None else "other",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [
            "qwq-rl",
            "reasoning",
            *(["reinforcement-learning"] if _algorithms(facts) else []),
            *_algorithms(facts),
        ],
    }
    if facts.base is not None:
        head["license_name"] = "that-of-the-base-model"
        # Without a slash it may be the name of a local folder, which means nothing on the Hub.
        head |= {"base_model": facts.base} if "/" in facts.base else {}
    if facts.data_sets:
        head["datasets"] = list(facts.data_sets)
    results = [result for data_set, areas in facts.sets.items() for result in _index_entries(data_set, areas)]
    if results:
        head["model-index"] = [{"name": facts.name, "results": results}]
    return head


def _index_entries(data_set: str, areas: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = []
    for domain, score in areas["domains"].items():
        metrics = [
            {"type": "pass@1", "name": metric_name, "value": round(score[key]["mean"], 4)}
            for key, metric_name in (("sampled", "pass@1, temperature 1"), ("greedy", "pass@1, greedy"))
            if score[key]
        ]
        entries.append(
            {
                "task": {"type": "text-generation", "name": domain},
                "dataset": {"name": f"{data_set}, {domain}", "type": data_set},
                "metrics": metrics,
            }
        )
    return [entry for entry in entries if entry["metrics"]]


def _algorithms(facts: Facts) -> list[str]:
    return list(dict.fromkeys(stage.algorithm for stage in facts.stages if stage.algorithm))


def _what(facts: Facts) -> str:
    start = "built from scratch" if facts.base is None else f"starting from `{facts.base}`"
    recipe = f"the recipe `{facts.recipe}` of qwq_rl" if facts.recipe else "qwq_rl"
    seed = "" if facts.seed is None else f" (seed {facts.seed})"
    return (
        f"# {facts.name}\n\nA reasoning model of {facts.parameters:,} parameters (`{facts.architecture}`), {start} and "
        f"trained with {recipe}{seed} in {len(facts.stages)} stage{'s' * (len(facts.stages) != 1)}. "
        "It thinks between `<think>` and `</think>` and answers after that."
    )


def _results(facts: Facts) -> str:
    if not facts.sets:
        return "## Results\n\nThis checkpoint was not evaluated."
    rows = []
    for data_set, areas in facts.sets.items():
        for kind in ("domains", "families"):
            rows += [_result_row(data_set, name, score, bold=kind == "domains") for name, score in areas[kind].items()]
    samples = max(score["samples"] for areas in facts.sets.values() for score in areas["domains"].values())
    return (
        "## Results\n\nHeld-out prompts; 95 % intervals, clustered by prompt. A domain's figure is the mean of its "
        f"families'.\n\n| set | area | pass@1, temperature 1 | pass@1, greedy | pass@{samples} | prompts |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(rows)
    )


def _result_row(data_set: str, name: str, score: Mapping[str, Any], bold: bool) -> str:
    figures = [_estimate(score[key]) for key in ("sampled", "greedy", "pass_at_k")]
    area = f"**{name}**" if bold else name
    return f"| {data_set} | {area} | {' | '.join(figures)} | {score['prompts']} |"


def _training(facts: Facts) -> str:
    rows = []
    for stage in facts.stages:
        method = " ".join(word for word in (stage.kind, stage.algorithm) if word)
        reward_note = f", with the reward model `{stage.reward_model}`" if stage.reward_model else ""
        rows.append(
            f"| `{stage.name}` | {method}{reward_note} | {stage.start} | {stage.updates} | {stage.cpu_seconds:.0f} |"
        )
    text = (
        "## How it was trained\n\n| stage | kind | starts from | updates | CPU seconds |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
    )
    return "\n\n".join([text, *(_gains(stage) for stage in facts.stages if stage.against and stage.against["sets"])])


def _gains(stage: StageFacts) -> str:
    assert stage.against is not None
    rows = [
        f"| {data_set} | {domain} | {_estimate(change['difference'], signed=True)} | {change['prompts']} |"
        for data_set, areas in stage.against["sets"].items()
        for domain, change in areas["domains"].items()
    ]
    return (
        f"What `{stage.name}` changed against `{stage.against['stage']}`, paired by prompt (pass@1, temperature 1):\n\n"
        "| set | domain | difference | prompts |\n|---|---|---|---|\n" + "\n".join(rows)
    )


def _use(facts: Facts) -> str:
    prompt, response = facts.example or ("YOUR PROMPT", "")
    sample = (
        f"\nTo this held-out prompt it wrote, when it was evaluated:\n\n~~~~~\n{response}\n~~~~~" if response else ""
    )
    return f"""## How to use it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH_OR_HUB_ID")
tokenizer = AutoTokenizer.from_pretrained("PATH_OR_HUB_ID")
messages = [{{"role": "user", "content": {json.dumps(prompt, ensure_ascii=False)}}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:]))
```

By `generation_config.json` it samples at temperature {facts.temperature:g}, at most {facts.max_tokens} new tokens.
{sample}"""


def _provenance(facts: Facts) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return (
        f"## Provenance\n\n- code: commit `{facts.commit or 'unknown'}`\n- versions: {versions or 'unknown'}\n"
        "- `training/` holds the recipe of every stage as it ran, where it came from, and every figure of the run "
        "(`summary.json`)"
    )


def _estimate(estimate: Mapping[str, float] | None, signed: bool = False) -> str:
    if estimate is None:
        return "-"
    sign = "+" if signed else ""
    return f"{estimate['mean']:{sign}.3f} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"
