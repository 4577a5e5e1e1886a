"""Safeguards: rules that stop a stage, skip an update or report an event when a round or an update looks wrong.

Every rule uses only figures that are the same in all processes, so all of them stop or skip together. The state of the
rules (`Safeguards.state_dict`) must be saved in a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qwq_rl.errors import GateFailed
from qwq_rl.training.zero_reward_diagnosis import explain_zero_rewards

if TYPE_CHECKING:
    from qwq_rl.config.blocks import LimitsBlock
    from qwq_rl.data.row import Row

Line = Mapping[str, Any]
"""A line of `rollouts/update-NNNNNN.jsonl`, or of `metrics.jsonl`."""

WINDOW = 10
"""Number of rounds in the mean of the entropy."""
ALARM = 0.1
"""A mean gap above this share of `limits.gap` is reported."""

_ALL = ""
"""Key for all domains together where rounds without a reward are counted."""


class LimitReached(GateFailed):
    """A stage stopped because it reached a limit of its recipe. It can go on from its last checkpoint."""


@dataclass(frozen=True)
class Event:
    """Something to report that does not stop a stage."""

    update: int
    kind: Literal["zero_rewards", "skipped", "gap"]
    text: str
    figures: Mapping[str, float]

    def line(self) -> dict[str, Any]:
        """The event as a JSON object. Figures that JSON cannot hold (NaN, infinite) are left out."""
        finite = {name: value for name, value in self.figures.items() if math.isfinite(value)}
        return {"update": self.update, "kind": self.kind, "text": self.text, "figures": finite}


class Safeguards:
    """The safeguards of one stage."""

    def __init__(self, limits: LimitsBlock) -> None:
        """`limits`: the recipe's."""
        self._limits = limits
        self._zero_rounds: dict[str, int] = {}
        """Domain (`_ALL` for all) -> rounds without a reward since the start; -1 after the first reward."""
        self._entropies: list[tuple[int, float]] = []
        """(update, entropy) of the last rounds, at most `WINDOW`."""
        self._skips: list[int] = []
        """The updates skipped since the last one that was applied."""
        self._gap_alarm = False
        """Whether the gap was too large in the last update: an alarm is reported once, not at every update."""
        self._pending_events: list[Event] = []
        self.skipped = 0
        """Number of skipped updates of this stage."""

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed stage needs to go on exactly as before. It can be written as JSON."""
        return {
            "zero": dict(self._zero_rounds),
            "entropies": [list(update_entropy) for update_entropy in self._entropies],
            "skips": list(self._skips),
            "gap_alarm": self._gap_alarm,
            "news": [event.line() for event in self._pending_events],
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._zero_rounds = dict(state["zero"])
        self._entropies = [(update, entropy) for update, entropy in state["entropies"]]
        self._skips, self._gap_alarm, self.skipped = list(state["skips"]), state["gap_alarm"], state["skipped"]
        self._pending_events = [Event(**event) for event in state["news"]]

    def after_round(self, summary: Line, lines: Sequence[Line], rows: Mapping[str, Row] | None = None) -> list[Event]:
        """Check a round before training on it: the `summary` of `summarise_round` and all its `lines`.

        `rows` by id are optional; with them a diagnosis can show references. Raises LimitReached for too many faults,
        too many first rounds without a reward, and an entropy that is too low.
        """
        update = int(lines[0]["update"])
        _check_faults(update, lines, self._limits.fault_share)
        events = self._check_rewards(update, lines, rows or {})
        self._check_entropy(update, summary, lines)
        return events

    def before_step(self, update: int, gradient_norm: float, loss: float) -> Literal["step", "skip"]:
        """Whether the optimiser may take this step. `gradient_norm` is the norm before clipping.

        Both figures are for the whole update and the same in all processes. Raises LimitReached where too many updates
        in a row were skipped.
        """
        limit = self._limits.gradient_norm
        if not math.isfinite(loss):
            reason = f"its loss is {loss}"
        elif not math.isfinite(gradient_norm):
            reason = f"the norm of its gradient is {gradient_norm}"
        elif limit is not None and gradient_norm > limit:
            reason = f"the norm of its gradient is {gradient_norm:.4g}, above limits.gradient_norm {limit:g}"
        else:
            self._skips = []
            return "step"
        self._skips.append(update)
        self.skipped += 1
        text = f"update {update} is skipped: {reason}"
        if len(self._skips) > self._limits.skipped_updates:
            raise LimitReached(
                f"{text}. Since update {self._skips[0]} none was applied, {len(self._skips)} in a row, more than "
                f"limits.skipped_updates {self._limits.skipped_updates}. {_advice_for_gradient(gradient_norm, loss)}"
            )
        self._pending_events.append(Event(update, "skipped", text, {"gradient_norm": gradient_norm, "loss": loss}))
        return "skip"

    def after_update(self, figures: Line) -> list[Event]:
        """Check an update's figures as in `metrics.jsonl`: `update`, `kl`, and `gap` with its `mean` and `max`.

        A figure that is None or missing was not measured. Returns the events since the last call. Raises LimitReached
        for a KL divergence or a gap that is too large.
        """
        update, limits = int(figures["update"]), self._limits
        kl = figures.get("kl")
        # `not <=` instead of `>`, so that NaN stops the stage too.
        if limits.kl is not None and kl is not None and not kl <= limits.kl:
            raise LimitReached(
                f"update {update}: the KL divergence to the reference is {kl:.4g} nats a token, above limits.kl "
                f"{limits.kl:g}: the policy has run away from the model that the stage started from. Look at the "
                "rewards of the updates before it for a reward that is being exploited; try a larger update.kl or a "
                "smaller update.lr"
            )
        self._check_gap(update, figures.get("gap") or {})
        events, self._pending_events = self._pending_events, []
        return events

    def _check_rewards(self, update: int, lines: Sequence[Line], rows: Mapping[str, Row]) -> list[Event]:
        """Count the first rounds without a reward, of all domains together and of each domain."""
        limit = self._limits.zero_rounds
        domains = sorted({str(line["domain"]) for line in lines})
        events = []
        for domain in (_ALL, *domains):
            judged = [line for line in lines if line["reward"] is not None and domain in (_ALL, line["domain"])]
            rounds = self._zero_rounds.get(domain, 0)
            if not judged or rounds < 0:
                continue
            rounds = self._zero_rounds[domain] = rounds + 1 if all(line["reward"] == 0 for line in judged) else -1
            if limit is None or rounds < limit:
                continue
            if domain == _ALL:
                raise LimitReached(
                    f"update {update}: every reward has been 0 since the stage began, in {rounds} rounds; "
                    f"limits.zero_rounds is {limit}: there is nothing to learn from.\n"
                    f"{explain_zero_rewards(judged, rows)}"
                )
            if rounds > limit:  # reported in an earlier round
                continue
            text = f"every reward of the domain {domain} has been 0 in its first {limit} rounds."
            text = f"{text}\n{explain_zero_rewards(judged, rows)}"
            events.append(Event(update, "zero_rewards", text, {"rounds": limit, "responses": len(judged)}))
        return events

    def _check_entropy(self, update: int, summary: Line, lines: Sequence[Line]) -> None:
        limit = self._limits.entropy
        if limit is None:
            return
        if not any(segment["logprobs"] for line in lines for segment in line["segments"]):
            raise LimitReached(
                f"update {update}: limits.entropy is {limit:g}, and the sampler gives no log-probabilities that the "
                "entropy could be told from: leave the limit out, or choose another sampler"
            )
        self._entropies = [*self._entropies, (update, float(summary["entropy"]))][-WINDOW:]
        mean = math.fsum(entropy for _, entropy in self._entropies) / len(self._entropies)
        if len(self._entropies) == WINDOW and not mean >= limit:
            since, initial = self._entropies[0]
            raise LimitReached(
                f"update {update}: the policy's entropy is {mean:.4g} nats a token over the {WINDOW} rounds since "
                f"update {since}, where it was {initial:.4g}: below limits.entropy {limit:g}. It says nearly the same "
                "whatever is drawn, and groups stop to teach. Try a wider upper update.clip, a smaller update.lr, or "
                "rows that are harder for it"
            )

    def _check_gap(self, update: int, gap: Mapping[str, float]) -> None:
        limit, mean = self._limits.gap, gap.get("mean")
        if limit is None or mean is None:
            return
        intro = (
            f"the log-probabilities of sampler and trainer differ by {mean:.4g} nats a token in the mean "
            f"(at most {gap.get('max', math.nan):.4g})"
        )
        if not mean <= limit:
            raise LimitReached(
                f"update {update}: {intro}, above limits.gap {limit:g}: the sampler is another model than the one that "
                f"is trained, so nothing that is learned holds. {_ADVICE_FOR_GAP}"
            )
        alarm = mean > ALARM * limit
        if alarm and not self._gap_alarm:
            text = f"{intro}; above limits.gap {limit:g} the stage stops. {_ADVICE_FOR_GAP}"
            self._pending_events.append(Event(update, "gap", text, dict(gap)))
        self._gap_alarm = alarm


_ADVICE_FOR_GAP = (
    "The usual causes: the sampler did not get the newest weights; it samples at another temperature, or with top-k or "
    "top-p; its precision is lower than the trainer's; its tokens are decoded and encoded again."
)


def _check_faults(update: int, lines: Sequence[Line], limit: float) -> None:
    """Stop instead of training on a round in which too many responses could not be judged."""
    unjudged = [line for line in lines if line["reward"] is None]
    if len(unjudged) > limit * len(lines):
        reasons = {
            verdict["reason"] for line in unjudged for verdict in line["verdicts"].values() if verdict["score"] is None
        }
        raise LimitReached(
            f"update {update}: {len(unjudged)} of {len(lines)} responses could not be judged, more than "
            f"limits.fault_share {limit}. The verifiers say: {'; '.join(sorted(reasons)[:3])}"
        )


def _advice_for_gradient(gradient_norm: float, loss: float) -> str:
    if math.isfinite(loss) and math.isfinite(gradient_norm):
        return (
            "Try a smaller update.lr or a longer update.warmup; or a higher limits.gradient_norm, if `gradient_norm` "
            "in metrics.jsonl has been near it in healthy updates"
        )
    return (
        "The weights or the activations are no numbers any more: try a smaller update.lr or a longer update.warmup, "
        "and bf16 in place of fp16"
    )
