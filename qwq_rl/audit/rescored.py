"""Reads the recorded rollouts of a run and their rows, and scores them again with another verifier."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwq_rl.config.recipe import RlRecipe, load_stage
from qwq_rl.data.chat import opens_thinking, split_thinking
from qwq_rl.data.row import Row
from qwq_rl.data.sources import load_rows
from qwq_rl.errors import RunStateError, UserError, did_you_mean
from qwq_rl.rewards.reward import Scored
from qwq_rl.rewards.scorer import Scorer
from qwq_rl.run_folder.files import RunFolder, StageFolder, read_json, read_lines
from qwq_rl.verifiers import Response

BATCH = 256
Line = Mapping[str, Any]
"""A rollout as it is recorded (docs/contracts.md, a line of `rollouts/`)."""


@dataclass(frozen=True)
class Again:
    """A recorded rollout, and its score and reward with the other verifier."""

    stage: str
    rollout: Line
    row: Row
    name: str
    """The name of the verdict that was judged again."""
    scored: Scored
    reference: Any
    """The reference that the verdict compares with."""


@dataclass(frozen=True)
class Wanted:
    """Which rollouts are judged again, and with which verifier."""

    spec: str
    params: Mapping[str, Any]
    domain: str | None = None
    check: str | None = None
    updates: range | None = None


def rl_stages(run: Path, stage: str | None) -> list[StageFolder]:
    """The rl stages of a run that have rollouts, or the one named `stage`. Raises RunStateError if there is none."""
    folder = RunFolder(run)
    if not run.is_dir():
        raise RunStateError(f"{run}: no such folder")
    names = [path.parent.name for path in sorted(run.glob("*/rollouts")) if ".old-" not in path.parent.name]
    if stage is not None and stage not in names:
        raise RunStateError(
            f"{run}: stage {stage} has no rollouts{did_you_mean(stage, names)} (there are {_listed(names)})"
        )
    if not names:
        seeds = [path.name for path in sorted(run.glob("seed-*"))]
        hint = f"; name one of its seeds, as {run / seeds[0]}" if seeds else ""
        raise RunStateError(f"{run}: no stage has rollouts; rl stages record them{hint}")
    return [folder.stage(name) for name in ([stage] if stage else names)]


def recorded(stage: StageFolder, updates: range | None) -> Iterator[Line]:
    """Yield the rollouts of a stage in order of update; `updates` selects some."""
    for path in sorted((stage.path / "rollouts").glob("update-*.jsonl")):
        if updates is None or int(path.stem.removeprefix("update-")) in updates:
            for line in read_lines(path):
                for segment in line["segments"]:  # drop what is long and not needed here
                    segment.pop("logprobs", None)
                    segment.pop("loss_mask", None)
                yield line


def recipe_of(stage: StageFolder) -> RlRecipe:
    """The recipe that a stage was trained with. Raises RunStateError if it is missing or not of kind rl."""
    if not stage.resolved.exists():
        raise RunStateError(f"{stage.path}: there is no {stage.resolved.name}, so nobody knows the rows it trained on")
    recipe = load_stage(stage.resolved)
    if not isinstance(recipe, RlRecipe):
        raise RunStateError(f"{stage.path}: its recipe is of kind {recipe.kind}, which has no verifiers")
    return recipe


def rows_of(recipe: RlRecipe) -> tuple[dict[str, Row], list[str]]:
    """Return the rows that a recipe trains on, by id, and a message for each source that cannot be read."""
    rows_by_id: dict[str, Row] = {}
    missing = []
    for source in recipe.data:
        try:
            rows = load_rows(source.source, mapper=source.mapper, limit=source.limit, seed=recipe.seed, kind="rl")
            rows_by_id |= {row["id"]: row for row in rows if row["id"] not in rows_by_id}
        except UserError as error:
            missing.append(str(error).splitlines()[0])
    return rows_by_id, missing


def replaced(lines: Sequence[Line], wanted: Wanted) -> str | None:
    """Return the name of the verdicts that the other verifier replaces. None: the first verdict of each rollout.

    Raises UserError if that is not clear.
    """
    domains = sorted({line["domain"] for line in lines})
    if wanted.domain is not None and wanted.domain not in domains:
        suggestion = did_you_mean(wanted.domain, domains)
        raise UserError(f"no rollout is of the domain `{wanted.domain}`{suggestion} ({_listed(domains)})")
    lines_of_domain = [line for line in lines if wanted.domain in (None, line["domain"])]
    names = sorted({name for line in lines_of_domain for name in line["verdicts"]})
    if wanted.check is not None and wanted.check not in names:
        raise UserError(
            f"no rollout has a verdict of `{wanted.check}`{did_you_mean(wanted.check, names)} ({_listed(names)})"
        )
    if wanted.check is not None:
        return wanted.check
    if wanted.spec in names:
        return wanted.spec
    if wanted.domain is not None or len(names) == 1:
        return None
    raise UserError(
        f"it is not clear which verdicts `{wanted.spec}` is to stand for: name them with --check ({_listed(names)}) or "
        f"--domain ({_listed(domains)})"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def judge_again(
    stage: StageFolder,
    recipe: RlRecipe,
    lines: Sequence[Line],
    rows: Mapping[str, Row],
    wanted: Wanted,
    name: str | None,
    on_rollouts: Callable[[int], None],
) -> tuple[list[Again], int]:
    """Score the wanted rollouts again with the other verifier. Also return how many could not be judged.

    Those are rollouts whose row is not found, or whose row no longer asks for the verdict. Everything else is as
    before: the gates, the recorded preference, the other checks of the row.
    """
    chosen = [(line, verdict_name) for line in lines if (verdict_name := _verdict_of(line, wanted, name)) is not None]
    with_row = [(line, verdict_name) for line, verdict_name in chosen if line["row"] in rows]
    eos, decode = _eos(stage), _LazyTokenizer(stage)
    scorers: dict[tuple[str, str], Scorer] = {}
    judged: list[Again] = []
    for start in range(0, len(with_row), BATCH):
        # One scorer per domain and verifier; a second check of the same verifier is named `NAME#2`.
        by_scorer: dict[tuple[str, str], list[tuple[Line, str]]] = {}
        for line, verdict_name in with_row[start : start + BATCH]:
            by_scorer.setdefault((line["domain"], verdict_name.partition("#")[0]), []).append((line, verdict_name))
        for key, members in by_scorer.items():
            if key not in scorers:
                scorers[key] = _scorer(recipe, *key, wanted)
            items = [(rows[line["row"]], response_of(line, eos, decode)) for line, _ in members]
            scored = scorers[key].score(items, [line["preference"] for line, _ in members])
            judged += [
                Again(stage.name, line, row, verdict_name, result, _reference_of(scorers[key], row, verdict_name))
                for (line, verdict_name), (row, _), result in zip(members, items, scored, strict=True)
                if verdict_name in result.verdicts  # the row may have fewer checks now
            ]
        on_rollouts(len(judged))
    return judged, len(chosen) - len(judged)


def _verdict_of(line: Line, wanted: Wanted, name: str | None) -> str | None:
    """The name of the verdict of this rollout that is judged again; None if none is."""
    if wanted.domain not in (None, line["domain"]):
        return None
    if name is None:
        return next(iter(line["verdicts"]), None)
    return name if name in line["verdicts"] else None


def _scorer(recipe: RlRecipe, domain: str, name: str, wanted: Wanted) -> Scorer:
    """The scorer of a domain, with the other verifier in place of the one called `name`."""
    if domain not in recipe.domains:
        raise UserError(f"the recipe has no domain `{domain}`, of which there are rollouts")
    old = recipe.domains[domain]
    verifiers = {**old.verifiers, name: {"use": wanted.spec, **wanted.params}}
    return Scorer({domain: replace(old, verifiers=verifiers)}, recipe.gates)


def response_of(line: Line, eos: str | None, decode: Callable[[Sequence[int]], str]) -> Response:
    """The response of a recorded rollout: all that the model wrote, and thinking and answer of its last turn."""
    turns = [segment for segment in line["segments"] if segment["role"] == "model"]
    texts = [segment["text"] if segment.get("text") is not None else decode(segment["token_ids"]) for segment in turns]
    last = texts[-1] if texts else ""
    body = last.removesuffix(eos) if eos else last
    reasoning, answer = split_thinking(body, opens_thinking(line["prompt"]))
    token_ids = tuple(token for segment in turns for token in segment["token_ids"])
    messages = ({"role": "assistant", "content": body},)
    return Response("".join(texts), answer.strip(), reasoning.strip(), line["finish"], messages, token_ids)


def _eos(stage: StageFolder) -> str | None:
    """The end-of-text token that the stage trained with, from its contract; None if it is not recorded."""
    provenance = read_json(stage.provenance) or {}
    return (provenance.get("contract") or {}).get("eos")


class _LazyTokenizer:
    """Decodes with the stage's tokenizer. It is loaded at the first call: only rollouts without a text need it."""

    def __init__(self, stage: StageFolder) -> None:
        self._stage = stage
        self._tokenizer: Any = None

    def __call__(self, token_ids: Sequence[int]) -> str:
        if self._tokenizer is None:
            self._tokenizer = self._load()
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def _load(self) -> Any:
        from transformers import AutoTokenizer

        places = [self._stage.final, *sorted(self._stage.checkpoints.glob("checkpoint-*"))]
        place = next((place for place in places if (place / "tokenizer_config.json").exists()), None)
        if place is None:
            raise RunStateError(f"{self._stage.path}: rollouts without text, and no checkpoint with a tokenizer")
        return AutoTokenizer.from_pretrained(place)


def disagreement(again: Again) -> dict[str, Any]:
    """Both verdicts on a rollout and both rewards, as one line of the output (docs/contracts.md)."""
    line, verdict = again.rollout, again.scored.verdicts[again.name]
    return {
        "id": line["id"],
        "stage": again.stage,
        "update": line["update"],
        "group": line["group"],
        "row": line["row"],
        "domain": line["domain"],
        "family": line["family"],
        "check": again.name,
        "reference": json.loads(json.dumps(again.reference, default=str)),
        "text": "".join(str(segment["text"]) for segment in line["segments"]),
        "old": {**line["verdicts"][again.name]},
        "new": {**vars(verdict), "metrics": dict(verdict.metrics)},
        "reward": {"old": line["reward"], "new": again.scored.reward},
    }


def _reference_of(scorer: Scorer, row: Row, verdict_name: str) -> Any:
    """The reference of the verdict of this name; None if the row no longer has that check."""
    name, _, number = verdict_name.partition("#")
    checks = [check for check, _ in scorer.checks(row) if check.verifier == name]
    index = int(number or 1) - 1
    return checks[index].reference if index < len(checks) else None
