"""The recipes of the three kinds of stage: rl, sft and reward_model. docs/recipes.md is made from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from qwq_rl.config.blocks import (
    CheckpointBlock,
    CriticBlock,
    DataSource,
    Domain,
    Evaluate,
    LimitsBlock,
    ModelSource,
    RewardModelSource,
    RlUpdate,
    RolloutBlock,
    SupervisedUpdate,
)
from qwq_rl.config.loader import Contradictions, about, key_meant
from qwq_rl.config.trl_block import inert_in_rl, trl_mistakes

OF_EVERY_STAGE = ("tokenizer", "chat_template", "eos", "base")
VERIFIERS = "verifiers"


def items_of_rl(domains: Mapping[str, Domain], with_reward_model: bool) -> list[str]:
    """What `accept_changes` of an rl stage may name.

    In addition to what every stage has: the reward model, all verifiers, those of a domain, or a single one.
    """
    items = [*OF_EVERY_STAGE, *["reward_model"] * with_reward_model, VERIFIERS]
    for name, domain in domains.items():
        verifier_names = dict.fromkeys([*domain.verifiers, *(check.verifier for check in domain.checks)])
        items += [f"{VERIFIERS}.{name}", *(f"{VERIFIERS}.{name}.{verifier}" for verifier in verifier_names)]
    return items


def accepts(names: Iterable[str], item: str) -> bool:
    """Whether `names` holds `item` itself or something that `item` is a part of (`verifiers` for `verifiers.math`)."""
    return any(item == name or item.startswith(f"{name}.") for name in names)


def accept_mistakes(names: Sequence[str], known: Sequence[str]) -> Contradictions:
    """Yield a mistake for each of `names` that is not in `known`, the things that a stage can find changed."""
    for index, name in enumerate(names):
        if name not in known:
            hint = key_meant(name, known) or f"; there is {', '.join(known)}"
            yield f"accept_changes.{index}", f"there is no {name} in this stage's contract{hint}"


Tracker = Literal["wandb", "tensorboard", "trackio"]
ResponseGate = Literal["think_closed", "finished", "answered"]

Algorithm = Literal[
    "grpo", "dr_grpo", "dapo", "bnpo", "gspo", "luspo", "cispo", "sapo", "vespo",
    "rloo", "reinforce_pp", "reinforce_pp_baseline", "ppo",
]  # fmt: skip

_KIND = about("What the stage does.")
_MODEL = about("What the stage starts from.")
_DATA = about("The rows it trains on.", some="there is nothing to train on")
_STEPS = about("Updates of the model in all.", least=1)
_SEED = about("Seed of everything random; `--seeds` replaces it.", least=0)
_CHECKPOINT = about("When to save.")
_EVALUATE = about("When and on what to evaluate while training.")
_TRACK = about("Where metrics go besides the run folder.")
_BATCH = about("Rows in each update, over all processes.", least=1)
_LENGTH = about("Longest row, in tokens.", least=1)
_ACCEPT = about(
    "What may have changed since a checkpoint that the stage goes on or starts from, which otherwise stops it: "
    "`tokenizer`, `chat_template`, `eos`, `base`; in an rl stage `reward_model`, `verifiers`, `verifiers.DOMAIN` or "
    "`verifiers.DOMAIN.NAME` too. What was accepted is in provenance.json."
)


def _trl(kind: str, config: str) -> dict[str, Any]:
    sentence = f"Whatever else TRL's `{config}` knows; what the recipe itself says is refused here."
    return about(sentence, check=partial(trl_mistakes, kind))


def _timing(steps: int, warmup: int, **intervals: int) -> Contradictions:
    """Yield a mistake for each interval, and for a warm-up, that is longer than the stage."""
    for block, interval in intervals.items():
        if interval > steps:
            yield f"{block}.every", f"{interval} is more than the stage's {steps} steps: it would never happen"
    if warmup > steps:
        yield (
            "update.warmup",
            f"{warmup} is more than the stage's {steps} steps: the learning rate would never reach lr",
        )


def _whole_matrices(model: ModelSource, update: SupervisedUpdate) -> Contradictions:
    """Yield a mistake for muon with LoRA.

    Muon orthogonalises the update of a whole matrix; LoRA trains two low-rank factors of it instead.
    """
    if model.lora is not None and update.optimizer == "muon":
        yield "update.optimizer", "muon is for whole matrices: train the adapter of model.lora with adamw"


@dataclass(frozen=True, kw_only=True)
class RlRecipe:
    """Reinforcement learning from verified rewards, on TRL's GRPOTrainer."""

    kind: Literal["rl"] = field(metadata=_KIND)
    model: ModelSource = field(metadata=_MODEL)
    algorithm: Algorithm = field(
        metadata=about("The objective; docs/training.md says what each is. All but `ppo` do without a critic.")
    )
    seed: int = field(default=0, metadata=_SEED)
    data: tuple[DataSource, ...] = field(metadata=_DATA)
    domains: Mapping[str, Domain] = field(
        metadata=about("How the rows of each domain are rewarded, by domain.", some="no row would be rewarded")
    )
    reward_model: RewardModelSource | None = field(
        default=None, metadata=about("The reward model, where a domain gives it weight or has open rows.")
    )
    gates: tuple[ResponseGate, ...] = field(
        default=("think_closed", "finished", "answered"),
        metadata=about(
            "What a response must do to be rewarded at all: close its thinking, end before `max_tokens`, answer."
        ),
    )
    rollout: RolloutBlock = field(metadata=about("What is sampled before each round of updates."))
    update: RlUpdate = field(metadata=about("How the policy is updated."))
    critic: CriticBlock | None = field(default=None, metadata=about("The critic; `ppo` needs one."))
    steps: int = field(metadata=_STEPS)
    evaluate: Evaluate = field(metadata=_EVALUATE)
    checkpoint: CheckpointBlock = field(metadata=_CHECKPOINT)
    limits: LimitsBlock = field(default=LimitsBlock(), metadata=about("When to stop rather than learn noise."))
    accept_changes: tuple[str, ...] = field(default=(), metadata=_ACCEPT)
    track: tuple[Tracker, ...] = field(default=(), metadata=_TRACK)
    trl: Mapping[str, Any] = field(default_factory=dict, metadata=_trl("rl", "GRPOConfig"))

    def contradictions(self) -> Contradictions:
        """What of this stage does not go together."""
        samples, parts = self.rollout.prompts * self.rollout.generations, self.update.updates_per_rollout
        if samples % parts:
            size = f"rollout.prompts * rollout.generations = {samples} responses"
            yield "update.updates_per_rollout", f"{size} cannot be split into {parts} equal updates"
        yield from _timing(
            self.steps, self.update.warmup, evaluate=self.evaluate.every, checkpoint=self.checkpoint.every
        )
        if self.update.kl and self.model.new:
            yield "update.kl", "needs the model that the stage started from, which a new model is nowhere kept as"
        if len(set(self.gates)) < len(self.gates):
            yield "gates", "names a gate twice"
        if (self.algorithm == "ppo") != (self.critic is not None):
            yield "critic", "belongs to algorithm ppo, and only there"
        if self.limits.kl is not None and not self.update.kl:
            yield "limits.kl", "is measured only where update.kl is above 0"
        if self.critic is not None and self.model.new:
            yield "critic", "begins as the policy's weights, and a new model has learned nothing: use model.from"
        if self.update.delta is not None and self.update.delta <= 1 + self.update.clip[1]:
            yield "update.delta", f"must be above 1 + the upper clip, {1 + self.update.clip[1]:g}: it would clip first"
        yield from inert_in_rl(self.trl, self.rollout.server is not None)
        yield from accept_mistakes(self.accept_changes, items_of_rl(self.domains, self.reward_model is not None))


@dataclass(frozen=True, kw_only=True)
class SftRecipe:
    """Supervised fine-tuning on whole conversations, on TRL's SFTTrainer."""

    kind: Literal["sft"] = field(metadata=_KIND)
    model: ModelSource = field(metadata=_MODEL)
    seed: int = field(default=0, metadata=_SEED)
    data: tuple[DataSource, ...] = field(metadata=_DATA)
    batch: int = field(metadata=_BATCH)
    max_length: int = field(metadata=_LENGTH)
    update: SupervisedUpdate = field(metadata=about("How the model is updated."))
    steps: int = field(metadata=_STEPS)
    evaluate: Evaluate = field(metadata=_EVALUATE)
    checkpoint: CheckpointBlock = field(metadata=_CHECKPOINT)
    accept_changes: tuple[str, ...] = field(default=(), metadata=_ACCEPT)
    track: tuple[Tracker, ...] = field(default=(), metadata=_TRACK)
    trl: Mapping[str, Any] = field(default_factory=dict, metadata=_trl("sft", "SFTConfig"))

    def contradictions(self) -> Contradictions:
        """What of this stage does not go together."""
        yield from _timing(
            self.steps, self.update.warmup, evaluate=self.evaluate.every, checkpoint=self.checkpoint.every
        )
        yield from _whole_matrices(self.model, self.update)
        yield from accept_mistakes(self.accept_changes, OF_EVERY_STAGE)


@dataclass(frozen=True, kw_only=True)
class RewardModelRecipe:
    """A reward model from preference pairs, on TRL's RewardTrainer."""

    kind: Literal["reward_model"] = field(metadata=_KIND)
    model: ModelSource = field(metadata=_MODEL)
    seed: int = field(default=0, metadata=_SEED)
    data: tuple[DataSource, ...] = field(metadata=_DATA)
    batch: int = field(metadata=_BATCH)
    max_length: int = field(metadata=_LENGTH)
    update: SupervisedUpdate = field(metadata=about("How the model is updated."))
    steps: int = field(metadata=_STEPS)
    checkpoint: CheckpointBlock = field(metadata=_CHECKPOINT)
    accept_changes: tuple[str, ...] = field(default=(), metadata=_ACCEPT)
    track: tuple[Tracker, ...] = field(default=(), metadata=_TRACK)
    trl: Mapping[str, Any] = field(default_factory=dict, metadata=_trl("reward_model", "RewardConfig"))

    def contradictions(self) -> Contradictions:
        """What of this stage does not go together."""
        yield from _timing(self.steps, self.update.warmup, checkpoint=self.checkpoint.every)
        yield from _whole_matrices(self.model, self.update)
        yield from accept_mistakes(self.accept_changes, OF_EVERY_STAGE)


Stage = RlRecipe | SftRecipe | RewardModelRecipe
KINDS: dict[str, type[RlRecipe] | type[SftRecipe] | type[RewardModelRecipe]] = {
    "rl": RlRecipe,
    "sft": SftRecipe,
    "reward_model": RewardModelRecipe,
}


def by_another(recipe: RlRecipe) -> bool:
    """Whether an engine other than our own decoder samples. Its log-probabilities differ slightly from ours."""
    engines = ("use_vllm", "use_transformers_continuous_batching")
    return recipe.rollout.server is not None or any(recipe.trl.get(name) for name in engines)
