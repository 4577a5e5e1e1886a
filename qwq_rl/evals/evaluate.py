"""Evaluates a checkpoint on held-out sets: `python -m qwq_rl.evals.evaluate --run RUN --stage STAGE --sets tiny/final`.

It samples at temperature 1, and once greedily. The random numbers of a sample depend only on (seed, row, sample), so
that two checkpoints evaluated with the same seed get the same ones. Read `evaluate_checkpoint`, then `evaluate_model`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from qwq_rl.data.row import Row, checks_of, grading_checks_of, prompt_messages
from qwq_rl.data.sources import load_rows
from qwq_rl.errors import RunStateError, UserError
from qwq_rl.evals.estimates import PromptRecord, agreement, evaluation_line
from qwq_rl.run_folder.files import RunFolder, read_json, write_json, write_lines

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from qwq_rl.inference.sampler import Completion
    from qwq_rl.rewards.reward import Scored
    from qwq_rl.verifiers import Response

Progress = Callable[[str, int, int], None]
"""Called with the name of the current work, how many items are done, and how many there are."""

SMALL = 10_000_000
"""A model with fewer parameters than this runs faster on one thread than on several."""


@dataclass(frozen=True)
class Settings:
    """How a checkpoint is evaluated."""

    samples: int
    max_tokens: int
    greedy: bool = True
    seed: int = 0


@dataclass(frozen=True)
class EvaluatedModel:
    """The checkpoint or model that is evaluated."""

    folder: Path
    """A Hugging Face folder."""
    name: str
    """Its name in results: its path within the run, or the path of its folder."""
    stage: str
    update: int = 0
    cpu_seconds: float = 0.0
    """CPU seconds that the stage had used at `update`."""
    since: float = 0.0
    """When it was finished, in seconds since the epoch. An older evaluation belongs to another checkpoint."""
    reward_model: Path | None = None
    """The reward model it was trained with."""
    verifiers: Mapping[str, Any] = field(default_factory=dict)
    """The verifiers that its run's recipes name (`named_verifiers`)."""


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    *,
    samples: int,
    max_tokens: int,
    greedy: bool,
    seed: int,
    verifiers: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> list[PromptRecord]:
    """Sample `samples` responses to every row at temperature 1 (and one greedily), and judge them by the row's `grade`.

    `verifiers` are those that recipes name (`named_verifiers`). Returns one record per row, in order. The model stays
    in its mode (training or not). Raises RowError for a row that nothing can grade.
    """
    from qwq_rl.data.chat import render_prompt
    from qwq_rl.inference.local import generate

    texts = [render_prompt(tokenizer, row) for row in rows]
    prompt_ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    # The noise of a row depends on its id, not on its position in the set.
    keys = [zlib.crc32(str(row["id"]).encode()) for row in rows]
    report = progress or (lambda what, done, total: None)

    def sampled(count: int, temperature: float, what: str) -> list[list[Completion]]:
        return generate(
            model,
            prompt_ids,
            samples=count,
            max_tokens=max_tokens,
            temperature=temperature,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            seed=seed,
            keys=keys,
            on_batch=lambda done: report(what, done, len(rows)),
        )

    completions = sampled(samples, 1.0, "sampling")
    if greedy:
        for row_samples, greedy_response in zip(completions, sampled(1, 0.0, "greedy"), strict=True):
            row_samples += greedy_response  # after the samples: `_record` knows it by its position
    judged = _judge(tokenizer, rows, texts, completions, verifiers, report)
    return [_record(row, responses, samples) for row, responses in zip(rows, judged, strict=True)]


def evaluate_checkpoint(
    checkpoint: EvaluatedModel,
    sets: Sequence[tuple[str, Path]],
    settings: Settings,
    *,
    again: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Evaluate on every set. A set is a source of rows, and the `.json` path for its estimates (lines go to `.jsonl`).

    Existing results of the same checkpoint and settings are kept unless `again`. Returns the estimates.
    """
    missing = [(name, path) for name, path in sets if again or not _is_current(path, checkpoint, settings)]
    if missing:
        rows = {name: load_rows(name, kind="rl") for name, _ in missing}
        require_verifiers((row for set_rows in rows.values() for row in set_rows), checkpoint.verifiers)
        model, tokenizer = load_model(checkpoint.folder)
        for name, path in missing:
            records = evaluate_model(
                model, tokenizer, rows[name], **asdict(settings), verifiers=checkpoint.verifiers, progress=progress
            )
            line = evaluation_line(
                records,
                update=checkpoint.update,
                stage=checkpoint.stage,
                data_set=name,
                time=time.time(),
                cpu_seconds=checkpoint.cpu_seconds,
                greedy=settings.greedy,
            )
            line |= {"checkpoint": checkpoint.name, "settings": asdict(settings)}
            line["agreement"] = _agreement(checkpoint.reward_model, rows[name], records)
            # The estimates are written last: if they exist, the evaluation is complete.
            write_lines(path.with_suffix(".jsonl"), (record.line() for record in records))
            write_json(path, line)
    return [read_json(path) or {} for _, path in sets]


def named_verifiers(files: Iterable[Path]) -> dict[str, Any]:
    """The entries of recipes under `domains.X.verifiers`, by the name that rows use. The first entry of a name wins."""
    named: dict[str, Any] = {}
    for file in files:
        try:
            recipe = yaml.safe_load(file.read_text())
        except (OSError, ValueError, yaml.YAMLError):  # not a readable recipe: `check` reports that
            continue
        domains = recipe.get("domains") if isinstance(recipe, dict) else None
        for domain in domains.values() if isinstance(domains, dict) else ():
            named = dict((domain or {}).get("verifiers") or {}) | named
    return named


def require_verifiers(rows: Iterable[Row], named: Mapping[str, Any]) -> None:
    """Raise UserError if a verifier that grades rows does not exist. Call it before anything is sampled."""
    from qwq_rl.rewards.scorer import grader

    grading = grader(named)
    for name in sorted({check.verifier for row in rows for check in grading_checks_of(row)}):
        grading.verifier(name)


def load_model(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a Hugging Face folder for inference, on the GPU if there is one.

    Raises UserError if the folder holds no model.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: there is no model in this folder (no config.json)")
    # Slow to import: only when the folder is known to hold a model.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    if "OMP_NUM_THREADS" not in os.environ and model.num_parameters() < SMALL:
        torch.set_num_threads(1)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def stage_checkpoint(run: Path, stage: str) -> EvaluatedModel:
    """The final checkpoint of a stage of a run. Raises RunStateError if the stage is not finished."""
    folder = RunFolder(run).stage(stage)
    done = read_json(folder.done)
    if done is None or not folder.final.is_dir():
        finished = sorted(path.parent.name for path in run.glob("*/done.json"))
        raise RunStateError(f"{run}: stage {stage} is not finished; finished are: {', '.join(finished) or 'none'}")
    recipe = yaml.safe_load(folder.resolved.read_text()) if folder.resolved.exists() else {}
    source = (recipe.get("reward_model") or {}).get("from")
    reward_model = RunFolder(run).stage(source).final if source and RunFolder(run).stage(source).done.exists() else None
    state = read_json(RunFolder(run).state) or {}
    resolved = (path for path in sorted(run.glob("*/resolved.yaml")) if ".old-" not in path.parent.name)
    recipes = sorted(Path(state["recipe"]).glob("*.yaml")) if state.get("recipe") else []
    # The order of files matters: the stage's own entry for a verifier wins over those of other stages.
    return EvaluatedModel(
        folder=folder.final,
        name=str(folder.final.relative_to(run)),
        stage=stage,
        update=done["update"],
        cpu_seconds=done["cpu_seconds"],
        since=folder.done.stat().st_mtime,
        reward_model=reward_model,
        verifiers=named_verifiers([folder.resolved, *resolved, *recipes]),
    )


def _judge(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    texts: Sequence[str],
    completions: Sequence[Sequence[Completion]],
    verifiers: Mapping[str, Any] | None,
    report: Progress,
) -> list[list[tuple[Response, Scored]]]:
    """Read and grade every completion of every row.

    Equal completions of a row share one verdict: late in training most are equal.
    """
    from qwq_rl.data.chat import read_response
    from qwq_rl.rewards.scorer import grader

    distinct = dict.fromkeys(
        (index, completion.token_ids, completion.finish)
        for index, row_completions in enumerate(completions)
        for completion in row_completions
    )
    items = [(rows[index], read_response(tokenizer, texts[index], ids, finish)) for index, ids, finish in distinct]
    report("judging", 0, len(items))
    graded = zip((item[1] for item in items), grader(verifiers).score(items), strict=True)
    scored = dict(zip(distinct, graded, strict=True))
    report("judging", len(items), len(items))
    return [
        [scored[index, completion.token_ids, completion.finish] for completion in row_completions]
        for index, row_completions in enumerate(completions)
    ]


def _record(row: Row, judged: Sequence[tuple[Response, Scored]], samples: int) -> PromptRecord:
    """Make the record of one row. The first `samples` responses are sampled; one after them is the greedy response."""
    sampled, greedy = judged[:samples], judged[samples:]
    response, scored = sampled[0]
    status, reason = _deciding_verdict(scored)
    return PromptRecord(
        id=str(row["id"]),
        domain=row["domain"],
        family=row.get("family") or row["domain"],
        prompt=str(prompt_messages(row)[-1]["content"]),
        scores=tuple(result.score for _, result in sampled),
        greedy=greedy[0][1].score if greedy else None,
        tokens=tuple(len(reply.token_ids) for reply, _ in sampled),
        terse=tuple(int(not reply.reasoning.strip()) for reply, _ in sampled),
        truncated=tuple(int(reply.finish == "length") for reply, _ in sampled),
        response=response.text,
        status=status,
        reason=reason,
        answers=tuple(reply.answer for reply, _ in sampled),
    )


def _deciding_verdict(scored: Scored) -> tuple[str, str]:
    """Status and reason of what decided the score: a failed gate, else a fault, else the lowest score."""
    failed = [gate for gate, holds in scored.gates.items() if not holds]
    if failed:
        return "gate", f"the gate {failed[0]} does not hold"
    verdicts = sorted(scored.verdicts.values(), key=lambda verdict: (verdict.score is not None, verdict.score))
    return verdicts[0].status, verdicts[0].reason


def _agreement(folder: Path | None, rows: Sequence[Row], records: Sequence[PromptRecord]) -> dict[str, Any] | None:
    """How far the reward model agrees with the rule on open rows; None without a reward model or open rows."""
    open_rows = [(row, record) for row, record in zip(rows, records, strict=True) if not checks_of(row)]
    if folder is None or not open_rows:
        return None
    from qwq_rl.rewards.reward_model import load_reward_model, score_answers

    answers = [(row, answer) for row, record in open_rows for answer in record.answers]
    scores = score_answers(*load_reward_model(folder), answers)
    verdicts = [(record.id, score) for _, record in open_rows for score in record.scores]
    return agreement((prompt, score, value) for (prompt, score), value in zip(verdicts, scores, strict=True))


def _is_current(path: Path, checkpoint: EvaluatedModel, settings: Settings) -> bool:
    """Whether `path` has the estimates of this checkpoint with these settings."""
    estimates = read_json(path)
    return (
        estimates is not None
        and estimates["update"] == checkpoint.update
        and estimates["checkpoint"] == checkpoint.name
        and estimates["settings"] == asdict(settings)
        and estimates["time"] >= checkpoint.since
    )


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    """A progress bar on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with RichProgress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title)
        yield lambda what, done, total: bar.update(task, description=f"{title}: {what}", completed=done, total=total)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("qwq-rl evaluate", description="Evaluate a checkpoint on held-out sets.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, help="a run folder; with --stage")
    what.add_argument("--model", type=Path, help="any Hugging Face folder; with --out")
    parser.add_argument("--stage", help="a finished stage of the run")
    parser.add_argument("--out", type=Path, help="where the results on --model go")
    parser.add_argument(
        "--sets", required=True, help="comma-separated: tiny/final, a .jsonl or .parquet file, a Hub id"
    )
    parser.add_argument("--samples", type=int, default=8, help="responses a prompt at temperature 1 (default 8)")
    parser.add_argument("--max-tokens", type=int, default=48, help="longest response, in tokens (default 48)")
    parser.add_argument("--greedy", action=argparse.BooleanOptionalAction, default=True, help="one greedy response too")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default 0)")
    parser.add_argument("--again", action="store_true", help="also where the results are there already")
    arguments = parser.parse_args(argv)
    if (arguments.run is None) != (arguments.stage is None) or (arguments.model is None) != (arguments.out is None):
        parser.error("give --run with --stage, or --model with --out")
    if arguments.samples < 1 or arguments.max_tokens < 1:
        parser.error("--samples and --max-tokens must be at least 1")
    return arguments


def _run(arguments: argparse.Namespace) -> None:
    names = [name for name in arguments.sets.split(",") if name]
    if arguments.run:
        checkpoint = stage_checkpoint(arguments.run, arguments.stage)
        sets = [(name, RunFolder(arguments.run).evaluation(arguments.stage, name)) for name in names]
    else:
        model = arguments.model.resolve()
        checkpoint = EvaluatedModel(model, str(model), model.name)
        sets = [(name, arguments.out / (name.replace("/", "-").lstrip(".-") + ".json")) for name in names]
    settings = Settings(arguments.samples, arguments.max_tokens, arguments.greedy, arguments.seed)
    with _bar(checkpoint.stage) as progress:
        lines = evaluate_checkpoint(checkpoint, sets, settings, again=arguments.again, progress=progress)
    for line, (_, path) in zip(lines, sets, strict=True):
        for domain, score in line["domains"].items():
            print(f"{checkpoint.stage} on {line['set']}: {domain} {_shown(score)}")
        print(f"  {path}")


def _shown(score: dict[str, Any]) -> str:
    words = []
    for name, key in (("pass@1", "sampled"), ("greedy", "greedy"), (f"pass@{score['samples']}", "pass_at_k")):
        if score[key]:
            words.append("{} {mean:.3f} [{low:.3f}, {high:.3f}]".format(name, **score[key]))
    return ", ".join(words) or "could not be judged"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    try:
        _run(_arguments(argv))
    except UserError as error:
        print(f"qwq_rl.evals.evaluate: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("qwq_rl.evals.evaluate: stopped; the sets that were finished are kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
