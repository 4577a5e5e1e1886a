"""A checkpoint of a run as a clean Hugging Face folder: `qwq-rl export RUN[@STAGE[/STEP]] --to DIR`.

Weights, configuration, tokenizer and chat template, a model card from the run's figures, the licence, and in
`training/` what it takes to repeat it. Optimiser states and pickled arguments stay behind.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from qwq_rl.errors import RunStateError, UserError
from qwq_rl.export.model_card import Facts, StageFacts, model_card
from qwq_rl.report.summary import continues_from, finished_stages, recipe_of, summarise
from qwq_rl.run_folder.checkpoints import damage_of, update_of, whole
from qwq_rl.run_folder.files import RunFolder, StageFolder, read_json, read_lines, write_json

KEPT = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""What of a checkpoint belongs to the model; the rest is the trainer's."""

MARK = "training/export.json"
"""Tells a folder of ours, which the next export may replace, from somebody's own."""


def export(run: Path, stage: str | None, to: Path, step: int | None = None) -> Path:
    """Write the final checkpoint of `stage` (the released one where None), or its `checkpoint-STEP`, to a folder.

    The folder appears as a whole or not at all; an earlier export in its place is replaced. Returns `to`.
    Raises RunStateError where there is no such checkpoint, UserError where `to` holds something else.
    """
    name = stage or _released(run)
    folder = RunFolder(run).stage(name)
    source = _checkpoint(folder, step)
    _refuse_foreign(to)
    partial = to.with_name(f".{to.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _copy_model(source, partial)
        temperature, max_tokens = _write_generation_config(partial, folder, run)
        facts = _facts(run, name, step, partial, (temperature, max_tokens))
        (partial / "README.md").write_text(model_card(facts))
        if facts.base is None:
            (partial / "LICENSE").write_text(_license())
        _copy_training(run, [stage.name for stage in facts.stages], partial / "training")
        write_json(partial / MARK, {"run": facts.name, "stage": name, "step": step})
        _put_in_place(partial, to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return to


def _put_in_place(partial: Path, to: Path) -> None:
    old = to.with_name(f".{to.name}.{os.getpid()}.old")
    if to.exists():
        os.replace(to, old)
    os.replace(partial, to)
    shutil.rmtree(old, ignore_errors=True)


def _released(run: Path) -> str:
    """The stage that the pipeline releases; where there is no pipeline, the only finished stage."""
    state, finished = read_json(RunFolder(run).state), finished_stages(run)
    if state:
        return str(state["release"])
    if len(finished) != 1:
        raise RunStateError(
            f"{run}: name the stage to export as {run}@STAGE; finished: {', '.join(finished) or 'none'}"
        )
    return finished[0]


def _checkpoint(folder: StageFolder, step: int | None) -> Path:
    source = folder.final if step is None else folder.checkpoints / f"checkpoint-{step}"
    complete = folder.done.exists() if step is None else damage_of(source) is None
    if not (complete and source.is_dir()):
        saved = [update_of(path) for path in whole(folder)]
        what = "is not finished" if step is None else f"has no complete checkpoint {step}"
        raise RunStateError(
            f"{folder.path}: the stage {what}; complete checkpoints: {', '.join(map(str, saved)) or 'none'}"
        )
    return source


def _refuse_foreign(to: Path) -> None:
    if to.exists() and not to.is_dir():
        raise UserError(f"{to} is a file; --to must name a folder")
    if to.is_dir() and any(to.iterdir()) and not (to / MARK).exists():
        raise UserError(f"{to} is not empty and holds no export of ours, so it is left alone; name a new folder")


def _copy_model(source: Path, to: Path) -> None:
    for path in sorted({path for pattern in KEPT for path in source.glob(pattern)}):
        shutil.copyfile(path, to / path.name)
    config = read_json(to / "config.json")
    if config is None or not list(to.glob("*.safetensors")):
        raise RunStateError(f"{source}: there is no whole model in this checkpoint (config.json and *.safetensors)")
    template = (read_json(to / "tokenizer_config.json") or {}).get("chat_template")
    if not (to / "chat_template.jinja").exists() and not template:
        raise RunStateError(f"{source}: its tokenizer has no chat template, so the model could not be talked to")
    config["use_cache"] = True  # training turns it off
    write_json(to / "config.json", config)


def _write_generation_config(to: Path, folder: StageFolder, run: Path) -> tuple[float, int]:
    """Sample as the stage did in training, or, without rollouts, in its evaluation; returns temperature and length."""
    rollout = recipe_of(run, folder.name).get("rollout") or {}
    evaluations = [read_json(path) or {} for path in sorted((run / "evaluations" / folder.name).glob("*.json"))]
    evaluated = [line["settings"]["max_tokens"] for line in evaluations if "settings" in line]
    temperature = float(rollout.get("temperature", 1.0))
    max_tokens = int(rollout.get("max_tokens") or max(evaluated, default=512))
    config = read_json(to / "generation_config.json") or {}
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0, "max_new_tokens": max_tokens}
    model = read_json(to / "config.json") or {}
    ends = {key: config.get(key, model.get(key)) for key in ("eos_token_id", "pad_token_id")}
    # Names with an underscore are notes of the library, which would make it derive the settings anew.
    kept = {key: value for key, value in config.items() if not key.startswith("_")}
    write_json(to / "generation_config.json", {**kept, **ends, **sampling})
    return temperature, max_tokens


def _lineage(run: Path, stage: str) -> list[str]:
    """The stages a model went through, the first one first."""
    lineage = [stage]
    while (before := continues_from(run, lineage[0])) in finished_stages(run) and before is not None:
        lineage.insert(0, before)
    return lineage


def _facts(run: Path, stage: str, step: int | None, model: Path, sampling: tuple[float, int]) -> Facts:
    summary, lineage = summarise(run), _lineage(run, stage)
    provenance = read_json(RunFolder(run).stage(stage).provenance) or {}
    config = read_json(model / "config.json") or {}
    stages = [_stage_facts(run, name, summary["stages"].get(name, {})) for name in lineage]
    sources = [entry["source"] for name in lineage for entry in recipe_of(run, name).get("data") or []]
    return Facts(
        name=summary["run"],
        architecture=", ".join(config.get("architectures") or [config.get("model_type", "unknown")]),
        parameters=_parameters(model),
        base=_base(continues_from(run, lineage[0])),
        data_sets=list(dict.fromkeys(source for source in sources if _on_the_hub(source))),
        recipe=Path(summary["recipe"]).name if summary["recipe"] else None,
        seed=summary["seed"],
        stages=stages,
        temperature=sampling[0],
        max_tokens=sampling[1],
        commit=provenance.get("git_commit"),
        versions=provenance.get("versions", {}),
        sets=stages[-1].sets if step is None else _sets_at(run, stage, step),
        example=_example(run, stage, stages[-1].sets) if step is None else None,
    )


def _stage_facts(run: Path, name: str, summary: Mapping[str, Any]) -> StageFacts:
    recipe, start = recipe_of(run, name), continues_from(run, name)
    return StageFacts(
        name=name,
        kind=recipe.get("kind", "unknown"),
        algorithm=recipe.get("algorithm"),
        start=f"`{_base(start)}`" if start else "scratch",
        reward_model=(recipe.get("reward_model") or {}).get("from"),
        updates=summary.get("updates", 0),
        cpu_seconds=summary.get("cpu_seconds", 0.0),
        sets=summary.get("sets", {}),
        against=summary.get("against"),
    )


def _sets_at(run: Path, stage: str, step: int) -> dict[str, Any]:
    """What the stage's own evaluations say of one of its checkpoints."""
    lines = read_lines(RunFolder(run).stage(stage).evaluations)
    return {
        line["set"]: {"domains": line["domains"], "families": line["families"]}
        for line in lines
        if line["update"] == step
    }


def _example(run: Path, stage: str, sets: Mapping[str, Any]) -> tuple[str, str] | None:
    """A held-out prompt that the model solved, and what it wrote: the first one, not a chosen one."""
    lines = (line for name in sets for line in read_lines(RunFolder(run).evaluation(stage, name).with_suffix(".jsonl")))
    return next(((line["prompt"], line["response"]) for line in lines if line["scores"][0] == 1), None)


def _parameters(model: Path) -> int:
    """The number of weights, from the headers of the files: 8 bytes of length, then JSON (safetensors)."""
    total = 0
    for path in model.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for length in tensor["shape"]:
                    size *= length
                total += size
    return total


def _base(source: str | None) -> str | None:
    """What a model started from, as others may read it: of a folder of this machine, its name alone."""
    return source if source is None or _on_the_hub(source) else Path(source).name


def _on_the_hub(source: str) -> bool:
    return not source.startswith(("tiny/", ".", "/", "~")) and Path(source).suffix not in (".jsonl", ".parquet")


def _copy_training(run: Path, lineage: Sequence[str], to: Path) -> None:
    """The recipes as they ran, reward models included, where each came from, and every figure of the run."""
    to.mkdir()
    reward_models = [(recipe_of(run, name).get("reward_model") or {}).get("from") for name in lineage]
    for name in [*lineage, *(name for name in reward_models if name in finished_stages(run))]:
        folder = RunFolder(run).stage(name)
        for path, ending in ((folder.resolved, "yaml"), (folder.provenance, "provenance.json")):
            if path.exists():
                shutil.copyfile(path, to / f"{name}.{ending}")
    summary = summarise(run)
    pipeline = Path(summary["recipe"] or "") / "pipeline.yaml"
    if summary["recipe"] and pipeline.is_file():
        shutil.copyfile(pipeline, to / "pipeline.yaml")
    write_json(to / "summary.json", summary)


def _license() -> str:
    """The text of our licence: beside the package in a checkout, in its metadata where it is installed."""
    beside = Path(__file__).resolve().parent.parent.parent / "LICENSE"
    if beside.exists():
        return beside.read_text()
    text = metadata.distribution("qwq-rl").read_text("licenses/LICENSE")
    if text is None:
        raise UserError("the licence text is missing from the installation; install qwq-rl anew")
    return text


def _target(text: str) -> tuple[Path, str | None, int | None]:
    """Read `RUN[@STAGE[/STEP]]`."""
    if Path(text).is_dir() or "@" not in text:
        run, rest = text, ""
    else:
        run, _, rest = text.rpartition("@")
    if not Path(run).is_dir():
        raise UserError(f"{run}: there is no such run folder")
    stage, _, step = rest.partition("/")
    if step and not step.isdecimal():
        raise UserError(f"{text}: after the stage comes the number of a checkpoint, not {step!r}")
    return Path(run), stage or None, int(step) if step else None


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser("qwq-rl export", description="Write a checkpoint as a Hugging Face folder.")
    parser.add_argument("what", metavar="RUN[@STAGE[/STEP]]", help="a run folder; the released stage unless named")
    parser.add_argument("--to", type=Path, required=True, help="the folder to write")
    arguments = parser.parse_args(argv)
    try:
        run, stage, step = _target(arguments.what)
        folder = export(run, stage, arguments.to, step)
    except UserError as error:
        print(f"qwq-rl export: {error}", file=sys.stderr)
        return error.exit_status
    print(f"exported to {folder}; its model card: {folder / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
