"""A checkpoint of a run as a clean Hugging Face folder: `qwq-rl export RUN[@STAGE[/STEP]] --to DIR`.

The folder gets the weights, configuration, tokenizer and chat template, a model card with the figures of the run, the
licence, and in `training/` what is needed to repeat the training. Optimiser states and pickled arguments are left out.
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
"""The files of a checkpoint that belong to the model; all others belong to the trainer."""

MARK = "training/export.json"
"""Marks a folder as an earlier export, which the next export may replace."""


def export(run: Path, stage: str | None, to: Path, step: int | None = None) -> Path:
    """Write the final checkpoint of `stage` (None: the released stage), or its `checkpoint-STEP`, to the folder `to`.

    The folder is written completely or not at all. An earlier export there is replaced. Returns `to`. Raises
    RunStateError if there is no such checkpoint, UserError if `to` holds something else.
    """
    name = stage or _released_stage(run)
    folder = RunFolder(run).stage(name)
    source = _checkpoint(folder, step)
    _refuse_foreign(to)
    # Beside the target, hence on the same file system, so that a rename can put it in place.
    partial = to.with_name(f".{to.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _copy_model(source, partial)
        temperature, max_tokens = _write_generation_config(partial, folder, run)
        facts = _facts(run, name, step, partial, (temperature, max_tokens))
        (partial / "README.md").write_text(model_card(facts))
        # A model with a base is under the licence of that base, which we do not know.
        if facts.base is None:
            (partial / "LICENSE").write_text(_license())
        _copy_training(run, [stage.name for stage in facts.stages], partial / "training")
        write_json(partial / MARK, {"run": facts.name, "stage": name, "step": step})
        _put_in_place(partial, to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return to


def _put_in_place(partial: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    # A rename cannot replace a folder that is not empty, so the old one is moved away first.
    if target.exists():
        os.replace(target, old)
    os.replace(partial, target)
    shutil.rmtree(old, ignore_errors=True)


def _released_stage(run: Path) -> str:
    """The stage that the pipeline releases; without a pipeline the only finished stage."""
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
        problem = "is not finished" if step is None else f"has no complete checkpoint {step}"
        raise RunStateError(
            f"{folder.path}: the stage {problem}; complete checkpoints: {', '.join(map(str, saved)) or 'none'}"
        )
    return source


def _refuse_foreign(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; --to must name a folder")
    if target.is_dir() and any(target.iterdir()) and not (target / MARK).exists():
        raise UserError(f"{target} is not empty and holds no export of ours, so it is left alone; name a new folder")


def _copy_model(source: Path, target: Path) -> None:
    for path in sorted({path for pattern in KEPT for path in source.glob(pattern)}):
        shutil.copyfile(path, target / path.name)
    config = read_json(target / "config.json")
    if config is None or not list(target.glob("*.safetensors")):
        raise RunStateError(f"{source}: there is no whole model in this checkpoint (config.json and *.safetensors)")
    template = (read_json(target / "tokenizer_config.json") or {}).get("chat_template")
    if not (target / "chat_template.jinja").exists() and not template:
        raise RunStateError(f"{source}: its tokenizer has no chat template, so the model could not be talked to")
    config["use_cache"] = True  # training turns it off
    write_json(target / "config.json", config)


def _write_generation_config(target: Path, folder: StageFolder, run: Path) -> tuple[float, int]:
    """Set the sampling to that of the stage's rollouts, or, without rollouts, of its evaluations.

    Returns the temperature and the largest number of new tokens.
    """
    rollout = recipe_of(run, folder.name).get("rollout") or {}
    evaluations = [read_json(path) or {} for path in sorted((run / "evaluations" / folder.name).glob("*.json"))]
    lengths = [evaluation["settings"]["max_tokens"] for evaluation in evaluations if "settings" in evaluation]
    temperature = float(rollout.get("temperature", 1.0))
    max_tokens = int(rollout.get("max_tokens") or max(lengths, default=512))
    config = read_json(target / "generation_config.json") or {}
    # top_k 0 and top_p 1 switch both off: training and evaluation sample from the full distribution.
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0, "max_new_tokens": max_tokens}
    model = read_json(target / "config.json") or {}
    token_ids = {key: config.get(key, model.get(key)) for key in ("eos_token_id", "pad_token_id")}
    # Keys with an underscore are notes by transformers, which would make it derive the settings again.
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    write_json(target / "generation_config.json", {**settings, **token_ids, **sampling})
    return temperature, max_tokens


def _lineage(run: Path, stage: str) -> list[str]:
    """The stages that the model went through, in order; `stage` is the last."""
    lineage = [stage]
    while (parent := continues_from(run, lineage[0])) in finished_stages(run) and parent is not None:
        lineage.insert(0, parent)
    return lineage


def _facts(run: Path, stage: str, step: int | None, model_folder: Path, sampling: tuple[float, int]) -> Facts:
    summary, lineage = summarise(run), _lineage(run, stage)
    provenance = read_json(RunFolder(run).stage(stage).provenance) or {}
    config = read_json(model_folder / "config.json") or {}
    stages = [_stage_facts(run, name, summary["stages"].get(name, {})) for name in lineage]
    sources = [entry["source"] for name in lineage for entry in recipe_of(run, name).get("data") or []]
    return Facts(
        name=summary["run"],
        architecture=", ".join(config.get("architectures") or [config.get("model_type", "unknown")]),
        parameters=_parameters(model_folder),
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
    """Set -> scores of a checkpoint, from the evaluations during the stage."""
    lines = read_lines(RunFolder(run).stage(stage).evaluations)
    return {
        line["set"]: {"domains": line["domains"], "families": line["families"]}
        for line in lines
        if line["update"] == step
    }


def _example(run: Path, stage: str, sets: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first held-out prompt whose first response was right, and that response: the first one, not a chosen one."""
    lines = (line for name in sets for line in read_lines(RunFolder(run).evaluation(stage, name).with_suffix(".jsonl")))
    return next(((line["prompt"], line["response"]) for line in lines if line["scores"][0] == 1), None)


def _parameters(model_folder: Path) -> int:
    """The number of weights, from the headers of the safetensors files: 8 bytes with the length, then JSON."""
    total = 0
    for path in model_folder.glob("*.safetensors"):
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
    """What a model started from, as it may be published: of a local folder only its name, not its path."""
    return source if source is None or _on_the_hub(source) else Path(source).name


def _on_the_hub(source: str) -> bool:
    return not source.startswith(("tiny/", ".", "/", "~")) and Path(source).suffix not in (".jsonl", ".parquet")


def _copy_training(run: Path, lineage: Sequence[str], target: Path) -> None:
    """Copy the recipes and the provenance of the stages, also of their reward models, and all figures of the run."""
    target.mkdir()
    reward_models = [(recipe_of(run, name).get("reward_model") or {}).get("from") for name in lineage]
    for name in [*lineage, *(name for name in reward_models if name in finished_stages(run))]:
        folder = RunFolder(run).stage(name)
        for path, suffix in ((folder.resolved, "yaml"), (folder.provenance, "provenance.json")):
            if path.exists():
                shutil.copyfile(path, target / f"{name}.{suffix}")
    summary = summarise(run)
    pipeline = Path(summary["recipe"] or "") / "pipeline.yaml"
    if summary["recipe"] and pipeline.is_file():
        shutil.copyfile(pipeline, target / "pipeline.yaml")
    write_json(target / "summary.json", summary)


def _license() -> str:
    """The text of our licence: a file of the checkout, or, if installed, a part of the package metadata."""
    checkout_file = Path(__file__).resolve().parent.parent.parent / "LICENSE"
    if checkout_file.exists():
        return checkout_file.read_text()
    text = metadata.distribution("qwq-rl").read_text("licenses/LICENSE")
    if text is None:
        raise UserError("the licence text is missing from the installation; install qwq-rl anew")
    return text


def _parse_what(text: str) -> tuple[Path, str | None, int | None]:
    """Read `RUN[@STAGE[/STEP]]`."""
    # The name of a run folder may itself contain an @.
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
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser("qwq-rl export", description="Write a checkpoint as a Hugging Face folder.")
    parser.add_argument("what", metavar="RUN[@STAGE[/STEP]]", help="a run folder; the released stage unless named")
    parser.add_argument("--to", type=Path, required=True, help="the folder to write")
    arguments = parser.parse_args(argv)
    try:
        run, stage, step = _parse_what(arguments.what)
        folder = export(run, stage, arguments.to, step)
    except UserError as error:
        print(f"qwq-rl export: {error}", file=sys.stderr)
        return error.exit_status
    print(f"exported to {folder}; its model card: {folder / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
