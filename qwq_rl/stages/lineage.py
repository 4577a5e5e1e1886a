"""The stage contract: what a stage took for granted, carried by its checkpoints, and compared by whatever goes on.

Hashes of tokenizer, chat template and end of sequence, of the models it comes from, of its verifiers and its reward
model. A stage that is resumed, or that starts from another stage's result, refuses to go on from what has changed
unless its recipe accepts that by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import cached_file

from qwq_rl.config.blocks import ModelSource
from qwq_rl.config.stages import VERIFIERS, RlRecipe, Stage, accepts
from qwq_rl.data.tiny.model import build_tokenizer
from qwq_rl.errors import RunStateError
from qwq_rl.rewards.scorer import entries_of
from qwq_rl.rewards.versions import digest, verifier_source, verifier_versions
from qwq_rl.run_folder.files import read_json, write_json
from qwq_rl.stages.context import StageContext, load_pretrained

CONTRACT = "contract.json"
"""Its name in `checkpoint-N` and `final`, where it also has the digest of the weights beside it."""

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin", "config.json", "adapter_config.json")
_PIECES, _PIECE = 256, 2**14
Contract = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """One item that is not what it was."""

    item: str
    then: str
    now: str
    what: str
    """In words, with the place to look at."""

    def __str__(self) -> str:
        """As it stands in a refusal."""
        return f"  {self.item}: {self.what}: then {self.then}, now {self.now}"


def agreed_contract(recipe: Stage, context: StageContext) -> Contract:
    """The contract under which the stage goes on, or begins; says in it what it was compared with, and what accepted.

    Raises RunStateError, naming each item that differs, where one is not among the recipe's `accept_changes`.
    """
    place = context.locate(str(recipe.model.from_)) if recipe.model.from_ else None
    now = stage_contract(recipe, context)
    before = context.resume or (Path(place) if place and Path(place).is_dir() else None)
    then = read_json(before / CONTRACT) if before else None
    now["accepted"] = list(then["accepted"]) if then and context.resume else []
    if then is None:
        now["compared_with"] = f"nothing: {_without(recipe, context, before)}"
        return now
    if context.resume:
        changes = [*_resumed(recipe, then, now), *_swapped(context.resume, then)]
        now["compared_with"] = context.resume.name
    else:
        changes = [*_started(recipe, then, now), *_swapped(Path(str(place)), then), *_ancestors(then, context, recipe)]
        now["compared_with"] = str(recipe.model.from_)
    refused = [change for change in changes if not accepts(recipe.accept_changes, change.item)]
    if refused:
        raise RunStateError(_refusal(refused, context, now["compared_with"]))
    for change in changes:
        print(f"{context.folder.name}: accepted by its recipe: {change.item} changed ({change.then} -> {change.now})")
    now["accepted"] += [
        {"item": one.item, "then": one.then, "now": one.now, "since": now["compared_with"]} for one in changes
    ]
    return now


def stage_contract(recipe: Stage, context: StageContext) -> Contract:
    """The contract of a stage as it would run now. UserError where what it starts from is not there."""
    source = recipe.model
    rl = recipe if isinstance(recipe, RlRecipe) else None
    scorer = rl.reward_model if rl else None
    return {
        **tokenizer_items(load_pretrained(AutoTokenizer, source, context) if source.from_ else build_tokenizer()),
        "base": source.from_ or source.new,
        "lineage": _lineage(source, context),
        "verifiers": verifier_versions(rl.domains) if rl else {},
        "reward_model": weights_version(Path(context.locate(scorer.from_))) if scorer else None,
    }


def _lineage(source: ModelSource, context: StageContext) -> list[dict[str, str | None]]:
    """The models that a stage comes from, the one that it starts from first."""
    if source.from_ is None:
        return [{"name": source.new, "weights": None}]
    folder = Path(context.locate(source.from_))
    if folder.is_dir():
        of_base = read_json(folder / CONTRACT) or {"lineage": []}
        return [{"name": source.from_, "weights": weights_version(folder)}, *of_base["lineage"]]
    snapshot = Path(str(cached_file(source.from_, "config.json"))).parent  # the Hub's client names it by its commit
    return [{"name": source.from_, "weights": f"commit:{snapshot.name}"}]


def tokenizer_items(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The items that a tokenizer says. How it was last asked to cut and pad is none: that changes with every call."""
    whole = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}  # type: ignore[attr-defined]
    return {
        "tokenizer": digest(json.dumps(whole, sort_keys=True)),
        "chat_template": digest(str(tokenizer.chat_template)),
        "eos": str(tokenizer.eos_token),
    }


def weights_version(folder: Path) -> str | None:
    """A digest that tells the weights in `folder` from others; None where there are none.

    Of each file's name and size, and of 256 pieces of 16 KiB, evenly spread over its content: all of it up to 4 MiB.
    Training changes weights everywhere, so that other weights differ in some piece; a few numbers changed by hand in a
    large file may go unseen.
    """
    files = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    if not any(path.suffix != ".json" for path in files):
        return None
    found = hashlib.sha256()
    for path in files:
        found.update(f"{path.name} {path.stat().st_size}\n".encode())
        for piece in _pieces(path):
            found.update(piece)
    return f"sha256:{found.hexdigest()[:16]}"


def _pieces(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _PIECES * _PIECE:
            yield file.read()
            return
        for number in range(_PIECES):
            file.seek((size - _PIECE) * number // (_PIECES - 1))
            yield file.read(_PIECE)


def carry(contract: Mapping[str, Any], folder: Path, items: Mapping[str, str] | None = None) -> None:
    """Write the contract beside the weights in `folder`; `items` are the tokenizer's there, where it is another."""
    write_json(folder / CONTRACT, {**contract, **(items or {}), "weights": weights_version(folder)})


def carry_to_result(contract: Mapping[str, Any], folder: Path) -> None:
    """As `carry`, for a stage's result: the tokenizer is hashed as whoever starts from it will load it."""
    carry(contract, folder, tokenizer_items(AutoTokenizer.from_pretrained(folder)))


class ContractWriter(TrainerCallback):
    """Puts the contract into every checkpoint, before the recorder declares that whole."""

    def __init__(self, contract: Mapping[str, Any]) -> None:
        self._contract = contract

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The main process writes."""
        if state.is_world_process_zero:
            carry(self._contract, Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")


def _resumed(recipe: Stage, then: Contract, now: Contract) -> Iterator[Change]:
    """What a stage that goes on from its own checkpoint finds changed."""
    yield from _tokenizer_changes(then, now)
    for old, new in zip(then["lineage"], now["lineage"], strict=False):
        if old != new:
            yield Change("base", _version(old), _version(new), f"the weights of {old['name']}, which it was begun from")
            break
    yield from _verifier_changes(recipe, then, now, "its code")
    if then["reward_model"] != now["reward_model"]:
        name = recipe.reward_model.from_ if isinstance(recipe, RlRecipe) and recipe.reward_model else None
        yield Change("reward_model", str(then["reward_model"]), str(now["reward_model"]), f"the weights of {name}")


def _started(recipe: Stage, then: Contract, now: Contract) -> Iterator[Change]:
    """What a stage finds changed since the one that it starts from; verifiers that only one of them has are none."""
    yield from _tokenizer_changes(then, now)
    yield from _verifier_changes(recipe, then, now, "its code or its parameters")


def _tokenizer_changes(then: Contract, now: Contract) -> Iterator[Change]:
    words = {"tokenizer": "the tokenizer", "chat_template": "the chat template", "eos": "the end of sequence"}
    for item, what in words.items():
        if then[item] != now[item]:
            yield Change(item, then[item], now[item], f"{what} of {now['base']}")


def _verifier_changes(recipe: Stage, then: Contract, now: Contract, what: str) -> Iterator[Change]:
    domains = recipe.domains if isinstance(recipe, RlRecipe) else {}
    for domain, block in domains.items():
        for name, entry in entries_of(block).items():
            old, new = (contract["verifiers"].get(f"{domain}.{name}") for contract in (then, now))
            if old is not None and old != new:
                place = verifier_source(name, entry)
                yield Change(f"{VERIFIERS}.{domain}.{name}", old, str(new), f"{what} ({place})")


def _swapped(folder: Path, then: Contract) -> Iterator[Change]:
    """Weights that are not those which were saved there."""
    found = weights_version(folder)
    if then["weights"] is not None and found != then["weights"]:
        yield Change("base", then["weights"], str(found), f"the weights in {folder}, since they were saved")


def _ancestors(then: Contract, context: StageContext, recipe: Stage) -> Iterator[Change]:
    """Stages of this run from which the base came, and which hold other weights by now."""
    if not context.run.stage(str(recipe.model.from_)).final.is_dir():
        return
    for one in then["lineage"]:
        final = context.run.stage(one["name"]).final
        if not final.is_dir():
            return
        found = weights_version(final)
        if found != one["weights"]:
            what = f"the weights of {one['name']}, which {recipe.model.from_} was trained from"
            yield Change("base", _version(one), str(found), what)


def _version(ancestor: Mapping[str, Any]) -> str:
    return f"{ancestor['name']} {ancestor['weights']}"


def _without(recipe: Stage, context: StageContext, before: Path | None) -> str:
    """Why there is no contract to compare with."""
    if context.resume:
        return f"{context.resume.name} was saved before checkpoints carried a contract"
    if before is None:
        return f"{recipe.model.from_} comes from the Hub, without a contract" if recipe.model.from_ else "a new model"
    return f"there is no {CONTRACT} in {before}"


def _refusal(changes: Sequence[Change], context: StageContext, since: str) -> str:
    names = ", ".join(dict.fromkeys(change.item for change in changes))
    doing = "go on from its" if context.resume else "start from"
    return (
        f"{context.folder.path} would {doing} {since}, and since that was trained this has changed:\n"
        + "\n".join(map(str, changes))
        + "\nPut back what was there; or, if the change is meant, say so in the recipe, and provenance.json will tell: "
        + f"accept_changes: [{names}]\n(`--accept_changes=[{names}]` behind `qwq_rl.train`, "
        + f"`--{context.folder.name}.accept_changes=[{names}]` behind `qwq-rl run`)"
    )
