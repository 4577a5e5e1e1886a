"""Evaluate a checkpoint on held-out sets: `python -m qwq_rl.evals.evaluate --run RUN --stage STAGE --sets tiny/final`.

Sampled at temperature 1, and greedily beside it. The noise of a sample depends on (seed, row, sample) alone, so that
two checkpoints evaluated with the same seed are compared like for like.
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
"""Called with what is being done, how many of it are done, and how many there are."""

SMALL = 10_000_000
"""Below so many parameters one thread is faster than several."""


@dataclass(frozen=True)
class Settings:
    """How a checkpoint is evaluated."""

    samples: int
    max_tokens: int
    greedy: bool = True
    seed: int = 0


@dataclass(frozen=True)
class EvaluatedModel:
    """What is evaluated."""

    folder: Path
    """A Hugging Face folder."""
    name: str
    """What results call it: its path within the run, or the folder's own."""
    stage: str
    update: int = 0
    cpu_seconds: float = 0.0
    """What the stage had spent at `update`."""
    since: float = 0.0
    """When it was finished, in seconds since the epoch: an older evaluation is of another checkpoint."""
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

    `verifiers` are those that recipes name (`named_verifiers`). Returns one record a row, in order. The model keeps the
    mode (training or not) it is in.
    Raises RowError for a row that nothing can grade.
    """
    from qwq_rl.data.chat import render_prompt
    from qwq_rl.inference.local import generate

    texts = [render_prompt(tokenizer, row) for row in rows]
    prompt_ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
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
        for several, likeliest in zip(completions, sampled(1, 0.0, "greedy"), strict=True):
            several += likeliest
    judged = _judge(tokenizer, rows, texts, completions, verifiers, report)
    return [_record(row, of, samples) for row, of in zip(rows, judged, strict=True)]


def evaluate_checkpoint(
    checkpoint: EvaluatedModel,
    sets: Sequence[tuple[str, Path]],
    settings: Settings,
    *,
    again: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Evaluate on every set, each a source of rows and the `.json` its estimates go to (its lines go beside it).

    What is there already, of the same checkpoint and settings, stays as it is unless `again`. Returns the estimates.
    """
    missing = [(name, path) for name, path in sets if again or not _is_there(path, checkpoint, settings)]
    if missing:
        rows = {name: load_rows(name, kind="rl") for name, _ in missing}
        require_verifiers((row for some in rows.values() for row in some), checkpoint.verifiers)
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
            # The estimates are written last: where they are, the evaluation is whole.
            write_lines(path.with_suffix(".jsonl"), (record.line() for record in records))
            write_json(path, line)
    return [read_json(path) or {} for _, path in sets]


def named_verifiers(files: Iterable[Path]) -> dict[str, Any]:
    """What recipes say under `domains.X.verifiers`, by the name that rows use; the first to say a name counts."""
    named: dict[str, Any] = {}
    for file in files:
        try:
            recipe = yaml.safe_load(file.read_text())
        except (OSError, ValueError, yaml.YAMLError):  # no recipe of this stage: its own check speaks of it
            continue
        domains = recipe.get("domains") if isinstance(recipe, dict) else None
        for domain in domains.values() if isinstance(domains, dict) else ():
            named = dict((domain or {}).get("verifiers") or {}) | named
    return named


def require_verifiers(rows: Iterable[Row], named: Mapping[str, Any]) -> None:
    """Say that a verifier by which rows are graded does not exist, by UserError, before anything is sampled."""
    from qwq_rl.rewards.scorer import grader

    of_names = grader(named)
    for name in sorted({check.verifier for row in rows for check in grading_checks_of(row)}):
        of_names.verifier(name)


def load_model(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a Hugging Face folder for inference, on the GPU where there is one.

    Raises UserError where the folder holds no model.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: there is no model in this folder (no config.json)")
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
    """The final checkpoint of a stage of a run. Raises RunStateError where the stage is not finished."""
    folder = RunFolder(run).stage(stage)
    done = read_json(folder.done)
    if done is None or not folder.final.is_dir():
        known = sorted(path.parent.name for path in run.glob("*/done.json"))
        raise RunStateError(f"{run}: stage {stage} is not finished; finished are: {', '.join(known) or 'none'}")
    recipe = yaml.safe_load(folder.resolved.read_text()) if folder.resolved.exists() else {}
    source = (recipe.get("reward_model") or {}).get("from")
    reward_model = RunFolder(run).stage(source).final if source and RunFolder(run).stage(source).done.exists() else None
    state = read_json(RunFolder(run).state) or {}
    resolved = (path for path in sorted(run.glob("*/resolved.yaml")) if ".old-" not in path.parent.name)
    recipes = sorted(Path(state["recipe"]).glob("*.yaml")) if state.get("recipe") else []
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
    """Read and grade every completion of every row. Equal completions of a row share a verdict: most are, late on."""
    from qwq_rl.data.chat import read_response
    from qwq_rl.rewards.scorer import grader

    distinct = dict.fromkeys((at, c.token_ids, c.finish) for at, several in enumerate(completions) for c in several)
    items = [(rows[at], read_response(tokenizer, texts[at], ids, finish)) for at, ids, finish in distinct]
    report("judging", 0, len(items))
    said = zip((item[1] for item in items), grader(verifiers).score(items), strict=True)
    scored = dict(zip(distinct, said, strict=True))
    report("judging", len(items), len(items))
    return [[scored[at, c.token_ids, c.finish] for c in several] for at, several in enumerate(completions)]


def _record(row: Row, judged: Sequence[tuple[Response, Scored]], samples: int) -> PromptRecord:
    """One row's record; what comes after its `samples` is its greedy response."""
    sampled, likeliest = judged[:samples], judged[samples:]
    response, scored = sampled[0]
    status, reason = _said(scored)
    return PromptRecord(
        id=str(row["id"]),
        domain=row["domain"],
        family=row.get("family") or row["domain"],
        prompt=str(prompt_messages(row)[-1]["content"]),
        scores=tuple(one.score for _, one in sampled),
        greedy=likeliest[0][1].score if likeliest else None,
        tokens=tuple(len(one.token_ids) for one, _ in sampled),
        terse=tuple(int(not one.reasoning.strip()) for one, _ in sampled),
        truncated=tuple(int(one.finish == "length") for one, _ in sampled),
        response=response.text,
        status=status,
        reason=reason,
        answers=tuple(one.answer for one, _ in sampled),
    )


def _said(scored: Scored) -> tuple[str, str]:
    """Status and reason of the verdict that decided."""
    failed = [gate for gate, holds in scored.gates.items() if not holds]
    if failed:
        return "gate", f"the gate {failed[0]} does not hold"
    verdicts = sorted(scored.verdicts.values(), key=lambda verdict: (verdict.score is not None, verdict.score))
    return verdicts[0].status, verdicts[0].reason


def _agreement(folder: Path | None, rows: Sequence[Row], records: Sequence[PromptRecord]) -> dict[str, Any] | None:
    """How far the reward model agrees with the rule on the open rows; None without either."""
    open_rows = [(row, record) for row, record in zip(rows, records, strict=True) if not checks_of(row)]
    if folder is None or not open_rows:
        return None
    from qwq_rl.rewards.reward_model import load_reward_model, score_answers

    answers = [(row, answer) for row, record in open_rows for answer in record.answers]
    scores = score_answers(*load_reward_model(folder), answers)
    verdicts = [(record.id, score) for _, record in open_rows for score in record.scores]
    return agreement((prompt, score, value) for (prompt, score), value in zip(verdicts, scores, strict=True))


def _is_there(path: Path, checkpoint: EvaluatedModel, settings: Settings) -> bool:
    found = read_json(path)
    return (
        found is not None
        and found["update"] == checkpoint.update
        and found["checkpoint"] == checkpoint.name
        and found["settings"] == asdict(settings)
        and found["time"] >= checkpoint.since
    )


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    """A progress bar on stderr, where a person looks at it."""
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
