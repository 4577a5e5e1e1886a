"""The schema of every record of a run folder (docs/contracts.md); tests/conforms.py compares values with it."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

Status = Literal["waiting", "running", "done", "failed"]


class EstimateRecord(TypedDict):
    """A mean and its two-sided 95 % interval, clustered by prompt."""

    mean: float
    low: float
    high: float


class Score(TypedDict):
    """The score of an area (a domain or a family). An estimate is null if it was not requested or is not computable."""

    sampled: EstimateRecord | None
    greedy: EstimateRecord | None
    pass_at_k: EstimateRecord | None
    prompts: int
    samples: int
    tokens: float | None
    truncated: float | None
    faults: int


class Mode(TypedDict):
    """The responses with reasoning (worked), or without (terse)."""

    mean: float | None
    share: float


class EvaluationLine(TypedDict):
    """One line of `STAGE/evaluations.jsonl`."""

    update: int
    stage: str
    set: str
    time: float
    cpu_seconds: float
    samples: int
    domains: dict[str, Score]
    families: dict[str, Score]
    modes: dict[str, dict[str, Mode]]


class Agreement(TypedDict):
    """How far the reward model agrees with the rule that grades open rows."""

    reward_model_pairs: float | None
    reward_model_auc: float | None
    pairs: int
    prompts: int


class EvaluationSettings(TypedDict):
    """How an evaluation sampled."""

    samples: int
    max_tokens: int
    greedy: bool
    seed: int


class Evaluation(EvaluationLine):
    """`evaluations/STAGE/SET.json`."""

    checkpoint: str
    settings: EvaluationSettings
    agreement: Agreement | None


class EvaluationPrompt(TypedDict):
    """One line of `evaluations/STAGE/SET.jsonl`. A score is null if it could not be judged (a fault)."""

    id: str
    domain: str
    family: str
    prompt: str
    scores: list[float | None]
    greedy: float | None
    tokens: list[int]
    terse: list[int]
    truncated: list[int]
    response: str
    status: str
    reason: str


class Update(TypedDict):
    """The metrics that every kind of stage has. Seconds and samples count from the start of the stage."""

    update: int
    stage: str
    time: float
    wall_seconds: float
    cpu_seconds: float
    samples: int
    loss: float
    learning_rate: float | None
    gradient_norm: float | None


class SupervisedMetrics(Update):
    """One line of `metrics.jsonl` of an sft or reward_model stage."""

    kind: Literal["sft", "reward_model"]
    accuracy: float | None
    entropy: NotRequired[float | None]
    margin: NotRequired[float | None]


class Tokens(TypedDict):
    """Lengths of the responses of an update."""

    mean: float
    max: int


class GroupsRecord(TypedDict):
    """How many groups of an update are useful. A group is useful if it has two different rewards."""

    total: int
    useful: int
    all_zero: int
    all_full: int
    sampled: NotRequired[int]
    """Groups that were sampled, with refills; the update trains on `total` of them."""


class DomainMetrics(TypedDict):
    """One domain's part in an update."""

    reward: float | None
    score: float | None
    rollouts: int
    groups: int
    useful: int
    tokens: float
    truncated: float
    faults: int


class FamilyMetrics(TypedDict):
    """One family's part in an update."""

    reward: float | None
    score: float | None
    rollouts: int


class RlMetrics(Update):
    """One line of `metrics.jsonl` of an rl stage."""

    kind: Literal["rl"]
    kl: float | None
    clipped: NotRequired[float | None]
    entropy: float
    reward: float | None
    truncated: float
    tokens: Tokens
    groups: GroupsRecord
    faults: int
    domains: dict[str, DomainMetrics]
    families: dict[str, FamilyMetrics]
    scores: NotRequired[dict[str, float | None]]
    statuses: dict[str, int]
    attempts: NotRequired[int]
    """Rollouts whose program tried to escape from the sandbox."""
    verifiers: NotRequired[dict[str, dict[str, int]]]
    gap: NotRequired[Gap]
    critic: NotRequired[dict[str, float | None]]
    """With a critic: value_loss, explained_variance, gradient_norm, value, target, updates."""
    skipped: NotRequired[int]
    """Updates of the stage that were not applied, up to this one."""
    events: NotRequired[list[EventRecord]]
    seconds: dict[str, float]


class Gap(TypedDict):
    """Difference of the log-probabilities of sampler and trainer on the same weights, in nats per token."""

    mean: float
    max: float


class EventRecord(TypedDict):
    """An alarm of the safeguards that did not stop the stage."""

    update: int
    kind: Literal["zero_rewards", "skipped", "gap"]
    text: str
    figures: dict[str, float]


class VerdictRecord(TypedDict):
    """`qwq_rl.verifiers.Verdict` as a record."""

    score: float | None
    status: str
    reason: str
    answer: str | None
    metrics: dict[str, float]
    seconds: float


class SegmentRecord(TypedDict):
    """One turn of a rollout. `loss_mask` and `logprobs` have one entry per token."""

    role: Literal["model", "environment"]
    text: str
    token_ids: list[int]
    loss_mask: list[int]
    logprobs: list[float] | None
    policy_version: int


class RolloutRecord(TypedDict):
    """One line of `rollouts/update-NNNNNN.jsonl`."""

    id: str
    row: str
    domain: str
    family: str
    group: int
    sample: int
    update: int
    prompt: str
    segments: list[SegmentRecord]
    finish: Literal["stop", "length", "tool_limit", "parse_error", "environment_error"]
    gates: dict[str, bool]
    verdicts: dict[str, VerdictRecord]
    preference: float | None
    score: float | None
    reward: float | None
    advantage: float


class GateRecord(TypedDict):
    """The result of one requirement of a gate. `value` is null if it could not be measured."""

    measure: str
    scope: str
    value: float | None
    above: float
    passed: bool
    note: NotRequired[str]


class StageState(TypedDict):
    """A stage in `pipeline.json`."""

    status: Status
    recipe_hash: str | None
    started: float | None
    finished: float | None
    wall_seconds: float
    cpu_seconds: float
    checkpoint: str | None
    extended: int
    attempts: int
    gates: list[GateRecord]


class JobState(TypedDict):
    """A process of the run that has ended."""

    name: str
    started: float
    finished: float
    cpu_seconds: float
    status: int


class PipelineState(TypedDict):
    """`pipeline.json`."""

    recipe: str
    seed: int
    started: float
    release: str
    restart: str | None
    stages: dict[str, StageState]
    jobs: list[JobState]


class Done(TypedDict):
    """`STAGE/done.json`, written last."""

    update: int
    cpu_seconds: float
    wall_seconds: float
    checkpoint: str
    recipe_hash: str


class DifferenceRecord(TypedDict):
    """A paired difference of pass@1, and its one-sided 95 % lower bound `lower95`."""

    difference: EstimateRecord
    lower95: float
    prompts: int


class Compared(TypedDict):
    """Two checkpoints compared on one set."""

    domains: dict[str, DifferenceRecord]
    families: dict[str, DifferenceRecord]


class SetSummary(TypedDict):
    """A stage's scores on one set."""

    domains: dict[str, Score]
    families: dict[str, Score]


class Against(TypedDict):
    """Differences: a stage minus the stage that it starts from."""

    stage: str
    sets: dict[str, Compared]


class StageSummary(TypedDict):
    """A stage in `summary.json`."""

    cpu_seconds: float
    wall_seconds: float
    updates: int
    sets: dict[str, SetSummary]
    against: NotRequired[Against]


class ControlSummary(TypedDict):
    """Differences: the stage `of` minus its control. `cpu_seconds`: of the control, then of the stage."""

    stage: str
    of: str
    cpu_seconds: list[float]
    sets: dict[str, Compared]


class Summary(TypedDict):
    """`summary.json` of one run."""

    run: str
    recipe: str | None
    seed: int | None
    release: str | None
    stages: dict[str, StageSummary]
    control: ControlSummary | None
    agreement: Agreement | None
    seconds: dict[str, float]


class Ancestor(TypedDict):
    """A model that a stage descends from. `weights`: their digest, or the commit on the Hub; null for a new model."""

    name: str
    weights: str | None


class AcceptedChange(TypedDict):
    """A change that the recipe accepts, so that the stage continues. `since`: the stage or checkpoint before it."""

    item: str
    then: str
    now: str
    since: str


class StageContract(TypedDict):
    """What a stage relies on. Hashes are `sha256:...`. Only contract.json has the digest of the weights."""

    tokenizer: str
    chat_template: str
    eos: str
    base: str | None
    lineage: list[Ancestor]
    verifiers: dict[str, str]
    reward_model: str | None
    compared_with: str
    accepted: list[AcceptedChange]
    weights: NotRequired[str | None]


class Provenance(TypedDict):
    """`STAGE/provenance.json`."""

    stage: str
    recipe: str
    recipe_hash: str
    seed: int
    git_commit: str | None
    git_dirty: bool | None
    python: str
    platform: str
    versions: dict[str, str]
    world_size: int
    command: list[str]
    contract: StageContract
