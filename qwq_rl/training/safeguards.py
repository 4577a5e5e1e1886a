"""Safeguards: what a round or an update must not look like, and what happens if it does.

Every rule is a function of figures that all processes hold alike, so that all of them stop, or skip, together. What the
rules remember (`Safeguards.state_dict`) belongs into a checkpoint.
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
"""Rounds that the mean entropy is taken over."""
ALARM = 0.1
"""Share of `limits.gap` above which there is an alarm."""

_ALL = ""
"""Stands for all domains together where rounds without a reward are counted."""


class LimitReached(GateFailed):
    """A stage stopped because a limit of its recipe was reached; it can go on from its last checkpoint."""


@dataclass(frozen=True)
class Event:
    """Something to be told that does not stop a stage."""

    update: int
    kind: Literal["zero_rewards", "skipped", "gap"]
    text: str
    figures: Mapping[str, float]

    def line(self) -> dict[str, Any]:
        """As a JSON object; figures that JSON has no number for are left out."""
        known = {name: value for name, value in self.figures.items() if math.isfinite(value)}
        return {"update": self.update, "kind": self.kind, "text": self.text, "figures": known}


class Safeguards:
    """The safeguards of one stage."""

    def __init__(self, limits: LimitsBlock) -> None:
        """`limits`: the recipe's."""
        self._limits = limits
        self._zero: dict[str, int] = {}
        """Domain (`_ALL` for all) -> rounds without a reward so far; -1 once there was one."""
        self._entropies: list[tuple[int, float]] = []
        """(update, entropy) of the last rounds, at most WINDOW."""
        self._skips: list[int] = []
        """The updates that were skipped in a row, up to now."""
        self._gap_alarm = False
        self._news: list[Event] = []
        self.skipped = 0
        """Updates of this stage that were skipped."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed stage needs to go on exactly; it can be written as JSON."""
        return {
            "zero": dict(self._zero),
            "entropies": [list(one) for one in self._entropies],
            "skips": list(self._skips),
            "gap_alarm": self._gap_alarm,
            "news": [event.line() for event in self._news],
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._zero = dict(state["zero"])
        self._entropies = [(update, entropy) for update, entropy in state["entropies"]]
        self._skips, self._gap_alarm, self.skipped = list(state["skips"]), state["gap_alarm"], state["skipped"]
        self._news = [Event(**event) for event in state["news"]]

    def after_round(self, summary: Line, lines: Sequence[Line], rows: Mapping[str, Row] | None = None) -> list[Event]:
        """Look at a round before anything is learned from it: `summary` of `summarise_round` and all its `lines`.

        `rows` by id, where they are at hand, let a diagnosis show references. Raises LimitReached for too many faults,
        too many first rounds without a reward, and an entropy that is too low.
        """
        update = int(lines[0]["update"])
        _check_faults(update, lines, self._limits.fault_share)
        events = self._look_for_rewards(update, lines, rows or {})
        self._look_at_entropy(update, summary, lines)
        return events

    def before_step(self, update: int, gradient_norm: float, loss: float) -> Literal["step", "skip"]:
        """Whether the optimiser may take this step; `gradient_norm` is that before clipping.

        Both figures are those of the whole update, the same in all processes. Raises LimitReached where too many were
        skipped in a row.
        """
        limit = self._limits.gradient_norm
        if not math.isfinite(loss):
            why = f"its loss is {loss}"
        elif not math.isfinite(gradient_norm):
            why = f"the norm of its gradient is {gradient_norm}"
        elif limit is not None and gradient_norm > limit:
            why = f"the norm of its gradient is {gradient_norm:.4g}, above limits.gradient_norm {limit:g}"
        else:
            self._skips = []
            return "step"
        self._skips.append(update)
        self.skipped += 1
        text = f"update {update} is skipped: {why}"
        if len(self._skips) > self._limits.skipped_updates:
            raise LimitReached(
                f"{text}. Since update {self._skips[0]} none was applied, {len(self._skips)} in a row, more than "
                f"limits.skipped_updates {self._limits.skipped_updates}. {_try_for_gradient(gradient_norm, loss)}"
            )
        self._news.append(Event(update, "skipped", text, {"gradient_norm": gradient_norm, "loss": loss}))
        return "skip"

    def after_update(self, figures: Line) -> list[Event]:
        """Look at an update's figures as `metrics.jsonl` has them: `update`, `kl`, and `gap` with its `mean` and `max`.

        What is None or not there could not be measured. Returns the news since the last call. Raises LimitReached for
        a KL divergence or a gap that is too large.
        """
        update, limits = int(figures["update"]), self._limits
        kl = figures.get("kl")
        if limits.kl is not None and kl is not None and not kl <= limits.kl:
            raise LimitReached(
                f"update {update}: the KL divergence to the reference is {kl:.4g} nats a token, above limits.kl "
                f"{limits.kl:g}: the policy has run away from the model that the stage started from. Look at the "
                "rewards of the updates before it for a reward that is being exploited; try a larger update.kl or a "
                "smaller update.lr"
            )
        self._look_at_gap(update, figures.get("gap") or {})
        news, self._news = self._news, []
        return news

    def _look_for_rewards(self, update: int, lines: Sequence[Line], rows: Mapping[str, Row]) -> list[Event]:
        """Count the first rounds without a reward, of the stage and of each domain that is not all of it."""
        limit = self._limits.zero_rounds
        domains = sorted({str(line["domain"]) for line in lines})
        events = []
        for domain in (_ALL, *domains):
            judged = [line for line in lines if line["reward"] is not None and domain in (_ALL, line["domain"])]
            zero = self._zero.get(domain, 0)
            if not judged or zero < 0:
                continue
            zero = self._zero[domain] = zero + 1 if all(line["reward"] == 0 for line in judged) else -1
            if limit is None or zero < limit:
                continue
            if domain == _ALL:
                raise LimitReached(
                    f"update {update}: every reward has been 0 since the stage began, in {zero} rounds; "
                    f"limits.zero_rounds is {limit}: there is nothing to learn from.\n"
                    f"{explain_zero_rewards(judged, rows)}"
                )
            if zero > limit:
                continue
            text = f"every reward of the domain {domain} has been 0 in its first {limit} rounds."
            text = f"{text}\n{explain_zero_rewards(judged, rows)}"
            events.append(Event(update, "zero_rewards", text, {"rounds": limit, "responses": len(judged)}))
        return events

    def _look_at_entropy(self, update: int, summary: Line, lines: Sequence[Line]) -> None:
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
            first, before = self._entropies[0]
            raise LimitReached(
                f"update {update}: the policy's entropy is {mean:.4g} nats a token over the {WINDOW} rounds since "
                f"update {first}, where it was {before:.4g}: below limits.entropy {limit:g}. It says nearly the same "
                "whatever is drawn, and groups stop to teach. Try a wider upper update.clip, a smaller update.lr, or "
                "rows that are harder for it"
            )

    def _look_at_gap(self, update: int, gap: Mapping[str, float]) -> None:
        limit, mean = self._limits.gap, gap.get("mean")
        if limit is None or mean is None:
            return
        said = (
            f"the log-probabilities of sampler and trainer differ by {mean:.4g} nats a token in the mean "
            f"(at most {gap.get('max', math.nan):.4g})"
        )
        if not mean <= limit:
            raise LimitReached(
                f"update {update}: {said}, above limits.gap {limit:g}: the sampler is another model than the one that "
                f"is trained, so nothing that is learned holds. {_TRY_FOR_GAP}"
            )
        alarm = mean > ALARM * limit
        if alarm and not self._gap_alarm:
            text = f"{said}; above limits.gap {limit:g} the stage stops. {_TRY_FOR_GAP}"
            self._news.append(Event(update, "gap", text, dict(gap)))
        self._gap_alarm = alarm


_TRY_FOR_GAP = (
    "The usual causes: the sampler did not get the newest weights; it samples at another temperature, or with top-k or "
    "top-p; its precision is lower than the trainer's; its tokens are decoded and encoded again."
)


def _check_faults(update: int, lines: Sequence[Line], limit: float) -> None:
    """Stop rather than learn from a round in which too many responses could not be judged."""
    unjudged = [line for line in lines if line["reward"] is None]
    if len(unjudged) > limit * len(lines):
        reasons = {one["reason"] for line in unjudged for one in line["verdicts"].values() if one["score"] is None}
        raise LimitReached(
            f"update {update}: {len(unjudged)} of {len(lines)} responses could not be judged, more than "
            f"limits.fault_share {limit}. The verifiers say: {'; '.join(sorted(reasons)[:3])}"
        )


def _try_for_gradient(gradient_norm: float, loss: float) -> str:
    if math.isfinite(loss) and math.isfinite(gradient_norm):
        return (
            "Try a smaller update.lr or a longer update.warmup; or a higher limits.gradient_norm, if `gradient_norm` "
            "in metrics.jsonl has been near it in healthy updates"
        )
    return (
        "The weights or the activations are no numbers any more: try a smaller update.lr or a longer update.warmup, "
        "and bf16 in place of fp16"
    )
