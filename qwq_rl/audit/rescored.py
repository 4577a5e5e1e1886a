"""Recorded rollouts judged again: those of a run, their rows, and what they are worth with another verifier."""

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
"""A rollout as it was recorded (docs/contracts.md)."""


@dataclass(frozen=True)
class Again:
    """A rollout, and what it would have been worth."""

    stage: str
    rollout: Line
    row: Row
    name: str
    """The verdict that was judged again."""
    scored: Scored
    reference: Any
    """What the verdict was about."""


@dataclass(frozen=True)
class Wanted:
    """Which rollouts are judged again, and by what."""

    spec: str
    params: Mapping[str, Any]
    domain: str | None = None
    check: str | None = None
    updates: range | None = None


def rl_stages(run: Path, stage: str | None) -> list[StageFolder]:
    """The rl stages of a run that have rollouts, or the one named. Raises RunStateError where there is none."""
    folder = RunFolder(run)
    if not run.is_dir():
        raise RunStateError(f"{run}: no such folder")
    found = [path.parent.name for path in sorted(run.glob("*/rollouts")) if ".old-" not in path.parent.name]
    if stage is not None and stage not in found:
        raise RunStateError(
            f"{run}: stage {stage} has no rollouts{did_you_mean(stage, found)} (there are {_or(found)})"
        )
    if not found:
        seeds = [path.name for path in sorted(run.glob("seed-*"))]
        hint = f"; name one of its seeds, as {run / seeds[0]}" if seeds else ""
        raise RunStateError(f"{run}: no stage has rollouts; rl stages record them{hint}")
    return [folder.stage(name) for name in ([stage] if stage else found)]


def recorded(stage: StageFolder, updates: range | None) -> Iterator[Line]:
    """The rollouts of a stage in order of update."""
    for path in sorted((stage.path / "rollouts").glob("update-*.jsonl")):
        if updates is None or int(path.stem.removeprefix("update-")) in updates:
            for line in read_lines(path):
                for part in line["segments"]:  # long, and nothing here needs them
                    part.pop("logprobs", None)
                    part.pop("loss_mask", None)
                yield line


def recipe_of(stage: StageFolder) -> RlRecipe:
    """The recipe that a stage was trained by. Raises RunStateError where it is not there or another kind."""
    if not stage.resolved.exists():
        raise RunStateError(f"{stage.path}: there is no {stage.resolved.name}, so nobody knows the rows it trained on")
    recipe = load_stage(stage.resolved)
    if not isinstance(recipe, RlRecipe):
        raise RunStateError(f"{stage.path}: its recipe is of kind {recipe.kind}, which has no verifiers")
    return recipe


def rows_of(recipe: RlRecipe) -> tuple[dict[str, Row], list[str]]:
    """The rows that a recipe trains on, by id, and why some of its sources could not be read."""
    found: dict[str, Row] = {}
    missing = []
    for one in recipe.data:
        try:
            rows = load_rows(one.source, mapper=one.mapper, limit=one.limit, seed=recipe.seed, kind="rl")
            found |= {row["id"]: row for row in rows if row["id"] not in found}
        except UserError as error:
            missing.append(str(error).splitlines()[0])
    return found, missing


def replaced(lines: Sequence[Line], wanted: Wanted) -> str | None:
    """The name of the verdicts that the verifier stands for; None: the first one of each rollout (of the domain).

    Raises UserError where that is not clear.
    """
    domains = sorted({line["domain"] for line in lines})
    if wanted.domain is not None and wanted.domain not in domains:
        near = did_you_mean(wanted.domain, domains)
        raise UserError(f"no rollout is of the domain `{wanted.domain}`{near} ({_or(domains)})")
    of = [line for line in lines if wanted.domain in (None, line["domain"])]
    names = sorted({name for line in of for name in line["verdicts"]})
    if wanted.check is not None and wanted.check not in names:
        raise UserError(
            f"no rollout has a verdict of `{wanted.check}`{did_you_mean(wanted.check, names)} ({_or(names)})"
        )
    if wanted.check is not None:
        return wanted.check
    if wanted.spec in names:
        return wanted.spec
    if wanted.domain is not None or len(names) == 1:
        return None
    raise UserError(
        f"it is not clear which verdicts `{wanted.spec}` is to stand for: name them with --check ({_or(names)}) or "
        f"--domain ({_or(domains)})"
    )


def _or(names: Sequence[str]) -> str:
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
    """Score the wanted rollouts again with the verifier in its new place, and count those whose row is not found.

    Everything else is as it was: gates, the preference as recorded, the other checks of the row.
    """
    chosen = [(line, own) for line in lines if (own := _own(line, wanted, name)) is not None]
    known = [(line, own) for line, own in chosen if line["row"] in rows]
    ends, decode = _eos(stage), _LazyTokenizer(stage)
    scorers: dict[tuple[str, str], Scorer] = {}
    found: list[Again] = []
    for start in range(0, len(known), BATCH):
        parts: dict[tuple[str, str], list[tuple[Line, str]]] = {}
        for line, own in known[start : start + BATCH]:
            parts.setdefault((line["domain"], own.partition("#")[0]), []).append((line, own))
        for key, of in parts.items():
            if key not in scorers:
                scorers[key] = _scorer(recipe, *key, wanted)
            items = [(rows[line["row"]], response_of(line, ends, decode)) for line, _ in of]
            scored = scorers[key].score(items, [line["preference"] for line, _ in of])
            found += [
                Again(stage.name, line, row, own, one, _reference(scorers[key], row, own))
                for (line, own), (row, _), one in zip(of, items, scored, strict=True)
                if own in one.verdicts  # the row may ask for less by now
            ]
        on_rollouts(len(found))
    return found, len(chosen) - len(found)


def _own(line: Line, wanted: Wanted, name: str | None) -> str | None:
    """The verdict of this rollout that is judged again, None where none is."""
    if wanted.domain not in (None, line["domain"]):
        return None
    if name is None:
        return next(iter(line["verdicts"]), None)
    return name if name in line["verdicts"] else None


def _scorer(recipe: RlRecipe, domain: str, name: str, wanted: Wanted) -> Scorer:
    """The domain's scorer, with the verifier in the place of the one of this name."""
    if domain not in recipe.domains:
        raise UserError(f"the recipe has no domain `{domain}`, of which there are rollouts")
    old = recipe.domains[domain]
    verifiers = {**old.verifiers, name: {"use": wanted.spec, **wanted.params}}
    return Scorer({domain: replace(old, verifiers=verifiers)}, recipe.gates)


def response_of(line: Line, eos: str | None, decode: Callable[[Sequence[int]], str]) -> Response:
    """The response of a recorded rollout: what the model wrote, and of its last turn thinking and answer."""
    turns = [part for part in line["segments"] if part["role"] == "model"]
    texts = [part["text"] if part.get("text") is not None else decode(part["token_ids"]) for part in turns]
    last = texts[-1] if texts else ""
    body = last.removesuffix(eos) if eos else last
    reasoning, answer = split_thinking(body, opens_thinking(line["prompt"]))
    ids = tuple(token for part in turns for token in part["token_ids"])
    messages = ({"role": "assistant", "content": body},)
    return Response("".join(texts), answer.strip(), reasoning.strip(), line["finish"], messages, ids)


def _eos(stage: StageFolder) -> str | None:
    provenance = read_json(stage.provenance) or {}
    return (provenance.get("contract") or {}).get("eos")


class _LazyTokenizer:
    """The stage's tokenizer, loaded when the first text is missing."""

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
    """Both verdicts on one rollout, and both rewards, as a line of the output (docs/contracts.md)."""
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
        "text": "".join(str(part["text"]) for part in line["segments"]),
        "old": {**line["verdicts"][again.name]},
        "new": {**vars(verdict), "metrics": dict(verdict.metrics)},
        "reward": {"old": line["reward"], "new": again.scored.reward},
    }


def _reference(scorer: Scorer, row: Row, own: str) -> Any:
    """What the verdict of this name is about; None where nobody asks for it any more."""
    name, _, number = own.partition("#")
    checks = [check for check, _ in scorer.checks(row) if check.verifier == name]
    place = int(number or 1) - 1
    return checks[place].reference if place < len(checks) else None
