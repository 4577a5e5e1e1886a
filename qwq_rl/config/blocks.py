"""The blocks of stage recipes. docs/recipes.md is made from their docstrings and help sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qwq_rl.config.loader import Contradictions, about

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter (LoRA, arXiv 2106.09685)."""

    rank: int = field(metadata=about("Rank of the update of each matrix.", least=1))
    alpha: float = field(metadata=about("The update counts by alpha / rank.", above=0))
    targets: tuple[str, ...] = field(
        default=("all-linear",),
        metadata=about(
            "Names of the matrices that are adapted; `all-linear`: all but the embeddings and the head.",
            some="nothing would be trained",
        ),
    )

    def contradictions(self) -> Contradictions:
        """`all-linear` cannot be combined with other names."""
        if "all-linear" in self.targets and len(self.targets) > 1:
            yield "targets", "`all-linear` names all of them already: leave the others out, or `all-linear` itself"


@dataclass(frozen=True)
class ModelSource:
    """What a stage starts from: exactly one of the two."""

    from_: str | None = field(
        default=None, metadata=about("An earlier stage of the pipeline, a model folder, or a Hub id `org/name`.")
    )
    new: Literal["tiny"] | None = field(
        default=None, metadata=about("A model built from scratch: `tiny`, 0.1-0.5 M parameters with its own tokenizer.")
    )
    lora: Lora | None = field(
        default=None, metadata=about("Train a LoRA adapter instead of the weights themselves; the result is merged.")
    )

    def contradictions(self) -> Contradictions:
        """Exactly one of `from` and `new` is given; a new model gets no adapter."""
        if (self.from_ is None) == (self.new is None):
            yield "", "needs exactly one of `from` (a stage, folder or Hub id) and `new` (tiny)"
        if self.new and self.lora:
            yield "lora", "adapts a model that has learned something, and a new one has not"


@dataclass(frozen=True)
class DataSource:
    """One source of rows and its share of them."""

    source: str = field(metadata=about("`tiny/NAME` (generated), a `.jsonl` or `.parquet` file, or a Hub id."))
    weight: float = field(default=1.0, metadata=about("Its share of the rows, relative to the other sources.", above=0))
    mapper: str | None = field(
        default=None,
        metadata=about(
            "Turns a published row into one of ours: `gsm8k`, `humaneval`, `module:function` or `file.py:function`."
        ),
    )
    limit: int | None = field(default=None, metadata=about("Use only the first so many rows.", least=1))


_SCORE = "a score is what a row asks for: name it in the row"


@dataclass(frozen=True)
class DomainCheck:
    """A rule that holds for every row of a domain, whether the row names it or not."""

    verifier: str = field(
        metadata=about(
            "The rule: a name under the domain's `verifiers`, which gives its parameters, or any verifier that needs "
            "none."
        )
    )
    role: Literal["gate", "penalty"] = field(
        metadata=about(
            "`gate`: where the rule is broken there is no reward; `penalty`: it takes from the reward.",
            later={"score": _SCORE},
        )
    )
    reference: Any = field(default=None, metadata=about("What the rule compares with, the same for all rows."))


@dataclass(frozen=True)
class Domain:
    """How the responses to the rows of one domain are rewarded."""

    verifiers: Mapping[str, str | Mapping[str, Any]] = field(
        metadata=about(
            "The verifiers by the name that rows use: parameters (`{}`: none), a specification that takes its place, "
            "or both, as `{use: SPEC, ...}`; empty where all rows are open, rewarded by the reward model alone."
        )
    )
    weight: float = field(
        default=1.0, metadata=about("The weight of the domain's loss, relative to the other domains.", above=0)
    )
    reward_model: float = field(
        default=0.0,
        metadata=about(
            "w of `R = gate * v * ((1 - w) + w * q)` on rows with a `score` check; open rows have `R = gate * q`. "
            "`1 - w`, less the largest penalties, must be above the largest score that a failing response can get "
            "(`largest_failing_score` of the verifier, 0 where it has none).",
            least=0,
            most=1,
        ),
    )
    checks: tuple[DomainCheck, ...] = field(
        default=(),
        metadata=about(
            "Rules for all rows of the domain in training, open ones too, such as on format and language. A row that "
            "names the same verifier in the same role is asked its own instead."
        ),
    )

    def contradictions(self) -> Contradictions:
        """A rule is named at most once in each role."""
        seen: set[tuple[str, str]] = set()
        for index, check in enumerate(self.checks):
            if (check.verifier, check.role) in seen:
                yield f"checks.{index}", f"{check.verifier} is asked as a {check.role} before"
            seen.add((check.verifier, check.role))


@dataclass(frozen=True)
class RewardModelSource:
    """The reward model of a stage."""

    from_: str = field(metadata=about("The stage of kind `reward_model` whose result scores the answers."))


@dataclass(frozen=True)
class Lengthen:
    """A curriculum over length: responses may be longer as training goes on."""

    start: int = field(metadata=about("Longest response in the first update, in tokens.", least=1))
    over: int = field(metadata=about("Updates over which that grows to `max_tokens`.", least=1))


@dataclass(frozen=True)
class ServerBlock:
    """vLLM servers that sample in place of our own decoder; each new policy reaches them as files."""

    urls: tuple[str, ...] = field(
        metadata=about(
            "Addresses of the servers, `http://HOST:PORT` each; every process of the stage asks all of them.",
            some="nobody would sample",
        )
    )
    weights: str | None = field(
        default=None,
        metadata=about(
            "Folder that the policy is written into, which the servers must see under the same path; within the run "
            "folder by default. `/dev/shm` is fastest where all are on one machine."
        ),
    )
    timeout_s: float = field(
        default=300.0,
        metadata=about(
            "Seconds without progress after which a server counts as lost: while it samples, while it loads weights, "
            "and while it is waited for at a start. One that refuses connections is lost after 10.",
            above=0,
        ),
    )

    def contradictions(self) -> Contradictions:
        """Every entry is the address of a server, and none is there twice."""
        for index, url in enumerate(self.urls):
            if not re.fullmatch(r"https?://[^/\s?#@]+/*", url):
                yield f"urls.{index}", f"{url!r} is no address of a server: give http://HOST:PORT"
            if url.rstrip("/") in (earlier_url.rstrip("/") for earlier_url in self.urls[:index]):
                yield f"urls.{index}", f"{url} is there before"


@dataclass(frozen=True)
class RolloutBlock:
    """What is sampled before each round of updates."""

    prompts: int = field(metadata=about("Distinct prompts a round.", least=1))
    generations: int = field(
        metadata=about("Responses to each prompt: the group an advantage compares within.", least=2)
    )
    max_tokens: int = field(metadata=about("Longest response, in tokens; a longer one is cut off.", least=1))
    temperature: float = field(default=1.0, metadata=about("Sampling temperature.", above=0))
    sampling: Literal["uniform", "adaptive"] = field(
        default="uniform",
        metadata=about(
            "`adaptive` prefers prompts that the policy solves about half of the time, which teach most; `uniform` "
            "takes them as they come."
        ),
    )
    refill: int = field(
        default=0,
        metadata=about(
            "How often at most a round samples more prompts in place of those whose responses all earn the same, "
            "which teach nothing.",
            least=0,
        ),
    )
    overlong: Literal["keep", "mask"] = field(
        default="keep",
        metadata=about(
            "A response that `max_tokens` cut off: `keep` trains on it, `mask` does not (its reward still counts in "
            "its group). For a soft punishment before the limit, ask the rule `overlong` as a penalty."
        ),
    )
    lengthen: Lengthen | None = field(default=None, metadata=about("Begin with shorter responses."))
    server: ServerBlock | None = field(
        default=None,
        metadata=about("vLLM servers that sample, fed with files over HTTP; by default our own decoder does."),
    )

    def contradictions(self) -> Contradictions:
        """The first length is below the last one."""
        if self.lengthen is not None and self.lengthen.start >= self.max_tokens:
            yield "lengthen.start", f"{self.lengthen.start} is not below max_tokens, {self.max_tokens}: nothing grows"


@dataclass(frozen=True)
class Correction:
    """Importance weights for a sampler whose log-probabilities are not quite the trainer's, as with vLLM."""

    level: Literal["token", "sequence"] = field(
        default="token", metadata=about("One weight for each token, or one for the whole response.")
    )
    mode: Literal["truncate", "mask"] = field(
        default="truncate", metadata=about("Beyond the bounds: hold the weight there, or leave the token out.")
    )
    low: float | None = field(default=None, metadata=about("Least weight; none by default.", above=0))
    high: float | None = field(default=2.0, metadata=about("Largest weight.", above=0))


@dataclass(frozen=True)
class RlUpdate:
    """How the policy is updated from rollouts."""

    lr: float = field(metadata=about("Learning rate.", above=0))
    clip: tuple[float, float] = field(
        default=(0.2, 0.2),
        metadata=about(
            "How far the probability ratio may fall below 1 and rise above it before it is clipped.", above=0
        ),
    )
    kl: float = field(
        default=0.0,
        metadata=about("Weight of the KL divergence to the model the stage started from; 0: none.", least=0),
    )
    delta: float | None = field(
        default=None,
        metadata=about(
            "Bound of the probability ratio where the advantage is negative, above 1 + the upper clip; default: none.",
            above=1,
        ),
    )
    entropy: float = field(default=0.0, metadata=about("Weight of a bonus for the entropy of the policy.", least=0))
    correction: Correction | None = field(
        default=None, metadata=about("Make up for a sampler that is not quite the policy in training.")
    )
    gradient_clip: float = field(default=1.0, metadata=about("Largest norm of the gradient.", above=0))
    schedule: Schedule = field(
        default="constant", metadata=about("How the learning rate goes on after the warm-up, over the stage's steps.")
    )
    warmup: int = field(default=0, metadata=about("Steps over which the learning rate rises from 0.", least=0))
    updates_per_rollout: int = field(
        default=1, metadata=about("Updates that each pass over a round of rollouts is split into.", least=1)
    )
    epochs: int = field(default=1, metadata=about("Passes over each round of rollouts.", least=1))
    micro_tokens: int | None = field(
        default=None,
        metadata=about(
            "Tokens, padding included, that a process holds in one forward and backward pass; by default 2048 on a CPU "
            "and 32768 on a GPU. It changes memory and speed, not the update.",
            least=1,
        ),
    )

    @property
    def of_a_round(self) -> int:
        """Number of updates made from one round of rollouts."""
        return self.updates_per_rollout * self.epochs


@dataclass(frozen=True)
class SupervisedUpdate:
    """How a supervised stage updates the model."""

    lr: float = field(metadata=about("Learning rate; with muon, that of everything but the matrices.", above=0))
    schedule: Schedule = field(
        default="constant", metadata=about("How the learning rate goes on after the warm-up, over the stage's steps.")
    )
    warmup: int = field(default=0, metadata=about("Steps over which the learning rate rises from 0.", least=0))
    gradient_clip: float = field(default=1.0, metadata=about("Largest norm of the gradient.", above=0))
    optimizer: Literal["adamw", "muon"] = field(
        default="adamw", metadata=about("muon orthogonalises the updates of the hidden matrices; the rest is adamw's.")
    )
    matrix_lr: float | None = field(
        default=None, metadata=about("Learning rate of the matrices; muon needs it, adamw has none.", above=0)
    )
    weight_decay: float = field(default=0.0, metadata=about("Decoupled weight decay.", least=0))
    micro_batch: int | None = field(
        default=None,
        metadata=about(
            "Rows that a process holds in one forward and backward pass, where its share of an update does not fit "
            "into memory; all of its share by default.",
            least=1,
        ),
    )

    def contradictions(self) -> Contradictions:
        """`matrix_lr` is given with muon, and only then."""
        if self.optimizer == "muon" and self.matrix_lr is None:
            yield "matrix_lr", "is missing: muon needs the learning rate of the matrices"
        if self.optimizer != "muon" and self.matrix_lr is not None:
            yield "matrix_lr", f"does nothing with optimizer {self.optimizer}: leave it out, or choose muon"


@dataclass(frozen=True)
class CriticBlock:
    """The critic of `algorithm: ppo`, a model of its own that says what a response is going to be worth."""

    lr: float = field(metadata=about("Learning rate.", above=0))
    from_: str | None = field(
        default=None, metadata=about("Where its weights come from, as of `model.from`; the policy's by default.")
    )
    warmup: int = field(default=0, metadata=about("First rounds in which it alone learns.", least=0))
    epochs: int = field(default=1, metadata=about("Passes over each round.", least=1))
    minibatches: int = field(default=4, metadata=about("Updates of the critic that each pass is split into.", least=1))
    clip: float | None = field(
        default=None,
        metadata=about("How far a value may move from what it was in one round; none by default.", above=0),
    )
    gamma: float = field(default=1.0, metadata=about("Discount of later rewards.", above=0, most=1))
    lam: float = field(default=1.0, metadata=about("lambda of the critic's returns.", least=0, most=1))
    policy_lam: float | None = field(
        default=1.0,
        metadata=about(
            "lambda of the policy's advantages (VAPO keeps the two apart); null: by the response's length, "
            "1 - 1 / (0.05 * tokens).",
            least=0,
            most=1,
        ),
    )
    whiten: bool = field(default=True, metadata=about("Whether advantages are scaled to mean 0 and deviation 1."))


@dataclass(frozen=True)
class Evaluate:
    """Evaluation while a stage trains."""

    every: int = field(metadata=about("Steps between two evaluations.", least=1))
    sets: tuple[str, ...] = field(
        metadata=about(
            "Evaluation sets: `tiny/tuning`, or files or Hub ids of rows.", some="there is nothing to evaluate on"
        )
    )
    samples: int = field(metadata=about("Sampled responses to each prompt, at temperature 1.", least=1))
    limit: int = field(default=0, metadata=about("Prompts of each domain; 0: all.", least=0))
    at_start: bool = field(default=False, metadata=about("Evaluate before the first step too."))


@dataclass(frozen=True)
class CheckpointBlock:
    """What is saved while a stage trains."""

    every: int = field(metadata=about("Steps between two checkpoints; the last step always leaves one.", least=1))
    keep: int = field(metadata=about("How many of the newest are kept.", least=1))


@dataclass(frozen=True)
class LimitsBlock:
    """When a stage stops rather than learn noise."""

    fault_share: float = field(
        default=0.05,
        metadata=about(
            "Largest share of a round's responses that may go unjudged by a fault of ours.", least=0, most=1
        ),
    )
    broken_share: float = field(
        default=0.05,
        metadata=about(
            "Largest share of a domain's rows of which the audit before training may find that a right answer is not, "
            "or not always, rewarded.",
            least=0,
            most=1,
        ),
    )
    zero_rounds: int | None = field(
        default=5,
        metadata=about(
            "So many first rounds in which every reward is 0 stop the stage, with a diagnosis; null: none do.", least=1
        ),
    )
    gradient_norm: float | None = field(
        default=None,
        metadata=about("Largest norm of the gradient before it is clipped: an update above it is skipped.", above=0),
    )
    skipped_updates: int = field(
        default=5,
        metadata=about(
            "So many updates in a row may be skipped, for `gradient_norm` or because the loss or the gradient is no "
            "number; one more stops the stage.",
            least=0,
        ),
    )
    entropy: float | None = field(
        default=None,
        metadata=about(
            "Lowest entropy of the policy, in nats a token, as the mean of 10 rounds; below it the stage stops.",
            above=0,
        ),
    )
    kl: float | None = field(
        default=None,
        metadata=about(
            "Largest KL divergence to the reference, in nats a token, as the mean of an update; needs `update.kl`.",
            above=0,
        ),
    )
    gap: float | None = field(
        default=0.5,
        metadata=about(
            "Largest difference between the log-probabilities of sampler and trainer, in nats, as the mean over an "
            "update's tokens; above a tenth of it is an alarm.",
            above=0,
        ),
    )
