"""The stage contract: what a stage depends on, saved with its checkpoints, and compared before a stage continues.

It has hashes of tokenizer, chat template and end of sequence, of the models that the stage comes from, of its verifiers
and its reward model. If one has changed, a stage that resumes, or that starts from another stage's result, stops,
unless its recipe accepts the change by name. Read `agreed_contract` first.
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
"""The file's name in `checkpoint-N` and `final`. There it also has the digest of the weights in the same folder."""

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin", "config.json", "adapter_config.json")
_PIECES, _PIECE = 256, 2**14
Contract = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """One item of the contract that changed."""

    item: str
    then: str
    now: str
    what: str
    """What changed, in words, and where it is."""

    def __str__(self) -> str:
        """Return the line for the message of a refusal."""
        return f"  {self.item}: {self.what}: then {self.then}, now {self.now}"


def agreed_contract(recipe: Stage, context: StageContext) -> Contract:
    """Return the contract under which the stage begins or continues.

    It also says what it was compared with, and which changes were accepted. Raises RunStateError, which names each
    item, if items differ that are not among the recipe's `accept_changes`.
    """
    place = context.locate(str(recipe.model.from_)) if recipe.model.from_ else None
    now = stage_contract(recipe, context)
    base_folder = context.resume or (Path(place) if place and Path(place).is_dir() else None)
    then = read_json(base_folder / CONTRACT) if base_folder else None
    # What was accepted at an earlier start of this stage stays on record.
    now["accepted"] = list(then["accepted"]) if then and context.resume else []
    if then is None:
        now["compared_with"] = f"nothing: {_why_no_contract(recipe, context, base_folder)}"
        return now
    if context.resume:
        changes = [*_changes_at_resume(recipe, then, now), *_replaced_weights(context.resume, then)]
        now["compared_with"] = context.resume.name
    else:
        changes = [
            *_changes_at_start(recipe, then, now),
            *_replaced_weights(Path(str(place)), then),
            *_changed_ancestors(then, context, recipe),
        ]
        now["compared_with"] = str(recipe.model.from_)
    refused = [change for change in changes if not accepts(recipe.accept_changes, change.item)]
    if refused:
        raise RunStateError(_refusal(refused, context, now["compared_with"]))
    for change in changes:
        print(f"{context.folder.name}: accepted by its recipe: {change.item} changed ({change.then} -> {change.now})")
    now["accepted"] += [
        {"item": accepted.item, "then": accepted.then, "now": accepted.now, "since": now["compared_with"]}
        for accepted in changes
    ]
    return now


def stage_contract(recipe: Stage, context: StageContext) -> Contract:
    """Return the contract of a stage as it would run now. Raises UserError if what it starts from does not exist."""
    source = recipe.model
    rl = recipe if isinstance(recipe, RlRecipe) else None
    reward_model = rl.reward_model if rl else None
    return {
        **tokenizer_items(load_pretrained(AutoTokenizer, source, context) if source.from_ else build_tokenizer()),
        "base": source.from_ or source.new,
        "lineage": _lineage(source, context),
        "verifiers": verifier_versions(rl.domains) if rl else {},
        "reward_model": weights_version(Path(context.locate(reward_model.from_))) if reward_model else None,
    }


def _lineage(source: ModelSource, context: StageContext) -> list[dict[str, str | None]]:
    """Return the models that a stage comes from; the one that it starts from is first."""
    if source.from_ is None:
        return [{"name": source.new, "weights": None}]
    folder = Path(context.locate(source.from_))
    if folder.is_dir():
        base_contract = read_json(folder / CONTRACT) or {"lineage": []}
        return [{"name": source.from_, "weights": weights_version(folder)}, *base_contract["lineage"]]
    # The Hub's client names the folder by the commit.
    snapshot = Path(str(cached_file(source.from_, "config.json"))).parent
    return [{"name": source.from_, "weights": f"commit:{snapshot.name}"}]


def tokenizer_items(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the contract's items of a tokenizer.

    Truncation and padding are left out: each call of the tokenizer may change them.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}  # type: ignore[attr-defined]
    return {
        "tokenizer": digest(json.dumps(content, sort_keys=True)),
        "chat_template": digest(str(tokenizer.chat_template)),
        "eos": str(tokenizer.eos_token),
    }


def weights_version(folder: Path) -> str | None:
    """Return a digest of the weights in `folder`, or None if there are none.

    It covers each file's name and size, and 256 pieces of 16 KiB, evenly spread over its content; files up to 4 MiB are
    read in full. Training changes weights everywhere, so other weights differ in some piece. If a few numbers in a
    large file were changed by hand, the digest may stay the same.
    """
    files = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    # Configurations alone are not weights.
    if not any(path.suffix != ".json" for path in files):
        return None
    checksum = hashlib.sha256()
    for path in files:
        checksum.update(f"{path.name} {path.stat().st_size}\n".encode())
        for piece in _pieces(path):
            checksum.update(piece)
    return f"sha256:{checksum.hexdigest()[:16]}"


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
    """Write the contract beside the weights in `folder`. `items` are the tokenizer's items there, if they differ."""
    write_json(folder / CONTRACT, {**contract, **(items or {}), "weights": weights_version(folder)})


def carry_to_result(contract: Mapping[str, Any], folder: Path) -> None:
    """Write the contract into a stage's result. The tokenizer is loaded from there, as the next stage will load it."""
    carry(contract, folder, tokenizer_items(AutoTokenizer.from_pretrained(folder)))


class ContractWriter(TrainerCallback):
    """Writes the contract into every checkpoint, before the recorder marks the checkpoint complete."""

    def __init__(self, contract: Mapping[str, Any]) -> None:
        self._contract = contract

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write it in the main process only."""
        if state.is_world_process_zero:
            carry(self._contract, Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")


def _changes_at_resume(recipe: Stage, then: Contract, now: Contract) -> Iterator[Change]:
    """Yield the changes since the checkpoint from which the stage resumes."""
    yield from _tokenizer_changes(then, now)
    for old, new in zip(then["lineage"], now["lineage"], strict=False):
        if old != new:
            yield Change("base", _version(old), _version(new), f"the weights of {old['name']}, which it was begun from")
            break
    yield from _verifier_changes(recipe, then, now, "its code")
    if then["reward_model"] != now["reward_model"]:
        name = recipe.reward_model.from_ if isinstance(recipe, RlRecipe) and recipe.reward_model else None
        yield Change("reward_model", str(then["reward_model"]), str(now["reward_model"]), f"the weights of {name}")


def _changes_at_start(recipe: Stage, then: Contract, now: Contract) -> Iterator[Change]:
    """Yield the changes since the stage that this one starts from. A verifier that only one has is not a change."""
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
                source_file = verifier_source(name, entry)
                yield Change(f"{VERIFIERS}.{domain}.{name}", old, str(new), f"{what} ({source_file})")


def _replaced_weights(folder: Path, then: Contract) -> Iterator[Change]:
    """Yield a change if the weights in `folder` are not those that were saved there."""
    weights_now = weights_version(folder)
    if then["weights"] is not None and weights_now != then["weights"]:
        yield Change("base", then["weights"], str(weights_now), f"the weights in {folder}, since they were saved")


def _changed_ancestors(then: Contract, context: StageContext, recipe: Stage) -> Iterator[Change]:
    """Yield the stages of this run that the base was trained from and that have other weights now."""
    if not context.run.stage(str(recipe.model.from_)).final.is_dir():
        return
    for ancestor in then["lineage"]:
        final = context.run.stage(ancestor["name"]).final
        # From here on, the models come from outside this run.
        if not final.is_dir():
            return
        weights_now = weights_version(final)
        if weights_now != ancestor["weights"]:
            what = f"the weights of {ancestor['name']}, which {recipe.model.from_} was trained from"
            yield Change("base", _version(ancestor), str(weights_now), what)


def _version(ancestor: Mapping[str, Any]) -> str:
    return f"{ancestor['name']} {ancestor['weights']}"


def _why_no_contract(recipe: Stage, context: StageContext, base_folder: Path | None) -> str:
    """Return why there is no contract to compare with."""
    if context.resume:
        return f"{context.resume.name} was saved before checkpoints carried a contract"
    if base_folder is None:
        return f"{recipe.model.from_} comes from the Hub, without a contract" if recipe.model.from_ else "a new model"
    return f"there is no {CONTRACT} in {base_folder}"


def _refusal(changes: Sequence[Change], context: StageContext, since: str) -> str:
    names = ", ".join(dict.fromkeys(change.item for change in changes))
    action = "go on from its" if context.resume else "start from"
    return (
        f"{context.folder.path} would {action} {since}, and since that was trained this has changed:\n"
        + "\n".join(map(str, changes))
        + "\nPut back what was there; or, if the change is meant, say so in the recipe, and provenance.json will tell: "
        + f"accept_changes: [{names}]\n(`--accept_changes=[{names}]` behind `qwq_rl.train`, "
        + f"`--{context.folder.name}.accept_changes=[{names}]` behind `qwq-rl run`)"
    )
