"""The form of a rollout: in memory, as a line of the round's file, and summed up in the metrics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qwq_rl.rewards.reward import Scored, verdict_lines

if TYPE_CHECKING:
    from qwq_rl.data.row import Row
    from qwq_rl.verifiers import Response

Line = dict[str, Any]
"""A JSON object: a line of `rollouts/update-NNNNNN.jsonl`, or a part of one of `metrics.jsonl`."""


@dataclass(frozen=True)
class Segment:
    """One turn of a completion, written by the model or by an environment."""

    role: Literal["model", "environment"]
    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[float]
    """One per token, under the policy that sampled it; NaN where the sampler gave none."""


@dataclass(frozen=True)
class Sampled:
    """One sampled completion."""

    row: Row
    prompt: str
    prompt_ids: Sequence[int]
    segments: Sequence[Segment]
    """The completion, turn by turn. Only the model's turns are trained on."""
    response: Response
    group: int
    sample: int
    update: int


@dataclass(frozen=True)
class Rollout(Sampled):
    """One sampled and scored completion."""

    scored: Scored


def rollout_line(rollout: Rollout, advantage: float) -> Line:
    """The rollout as a line of `rollouts/update-NNNNNN.jsonl`. `advantage`: its mean over the trained tokens."""
    response, scored = rollout.response, rollout.scored
    return {
        "id": f"u{rollout.update}-g{rollout.group}-s{rollout.sample}",
        "row": rollout.row["id"],
        "domain": rollout.row["domain"],
        "family": rollout.row.get("family") or rollout.row["domain"],
        "group": rollout.group,
        "sample": rollout.sample,
        "update": rollout.update,
        "prompt": rollout.prompt,
        # Update 1 is sampled by policy 0, the one that the stage starts from.
        "segments": [_segment_line(segment, rollout.update - 1) for segment in rollout.segments],
        "finish": response.finish,
        "gates": dict(scored.gates),
        "verdicts": verdict_lines(scored.verdicts),
        "preference": scored.preference,
        "score": scored.score,
        "reward": scored.reward,
        "advantage": round(advantage, 6),
    }


def _segment_line(segment: Segment, policy_version: int) -> Line:
    has_logprobs = not any(map(math.isnan, segment.logprobs))
    return {
        "role": segment.role,
        "text": segment.text,
        "token_ids": list(segment.token_ids),
        "loss_mask": [int(segment.role == "model")] * len(segment.token_ids),
        "logprobs": [round(value, 4) for value in segment.logprobs] if has_logprobs else None,
        "policy_version": policy_version,
    }


def summarise_round(lines: Sequence[Line]) -> Line:
    """The summary of one round's rollouts for `metrics.jsonl`."""
    tokens = [_tokens(line) for line in lines]
    logprobs = [value for line in lines for segment in _model_segments(line) for value in segment["logprobs"] or ()]
    return {
        "reward": _mean([line["reward"] for line in lines]),
        # The mean of -log p over sampled tokens is an unbiased estimate of the policy's entropy.
        "entropy": -math.fsum(logprobs) / max(1, len(logprobs)),
        "truncated": _mean([line["finish"] == "length" for line in lines]),
        "tokens": {"mean": _mean(tokens), "max": max(tokens)},
        "groups": _groups(lines),
        "faults": sum(line["reward"] is None for line in lines),
        "domains": {
            name: _domain(domain_lines) for name, domain_lines in _grouped_by(lines, lambda line: str(line["domain"]))
        },
        "families": {
            name: {
                "reward": _mean([rollout["reward"] for rollout in family_lines]),
                "score": _score(family_lines),
                "rollouts": len(family_lines),
            }
            for name, family_lines in _grouped_by(lines, lambda line: f"{line['domain']}/{line['family']}")
        },
        "scores": {name: _mean(scores) for name, scores in sorted(_scores(lines).items())},
        "statuses": dict(Counter(verdict["status"] for line in lines for verdict in line["verdicts"].values())),
        "attempts": sum(_tried_to_break_out(line) for line in lines),
    }


def _model_segments(line: Line) -> list[Line]:
    """The segments that the model wrote."""
    return [segment for segment in line["segments"] if segment["role"] == "model"]


def _tokens(line: Line) -> int:
    return sum(len(segment["token_ids"]) for segment in _model_segments(line))


def _tried_to_break_out(line: Line) -> bool:
    """Whether a program of this rollout did something in the sandbox that only an attempt to break out does."""
    return any(verdict["metrics"].get("attempts", 0) > 0 for verdict in line["verdicts"].values())


def _scores(lines: Sequence[Line]) -> dict[str, list[float | None]]:
    """All scores by the name of their check, whatever its role."""
    scores_by_name: dict[str, list[float | None]] = {}
    for line in lines:
        for name, verdict in line["verdicts"].items():
            scores_by_name.setdefault(name, []).append(verdict["score"])
    return scores_by_name


def added(counts: Sequence[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """The counts of all verifier calls, added up by verifier name."""
    total: dict[str, Counter[str]] = {}
    for call_counts in counts:
        for name, count in call_counts.items():
            total.setdefault(name, Counter()).update(count)
    return {name: dict(count) for name, count in sorted(total.items())}


def _domain(lines: Sequence[Line]) -> Line:
    groups = _groups(lines)
    return {
        "reward": _mean([line["reward"] for line in lines]),
        "score": _score(lines),
        "rollouts": len(lines),
        "groups": groups["total"],
        "useful": groups["useful"],
        "tokens": _mean([_tokens(line) for line in lines]),
        "truncated": _mean([line["finish"] == "length" for line in lines]),
        "faults": sum(line["reward"] is None for line in lines),
    }


def _groups(lines: Sequence[Line]) -> Line:
    """Counts of groups. A `useful` group has two different rewards, so its advantages are not all 0."""
    rewards = [
        [line["reward"] for line in group_lines if line["reward"] is not None]
        for _, group_lines in _grouped_by(lines, lambda line: line["group"])
    ]
    return {
        "total": len(rewards),
        "useful": sum(len(set(group)) > 1 for group in rewards),
        "all_zero": sum(set(group) == {0.0} for group in rewards),
        "all_full": sum(set(group) == {1.0} for group in rewards),
    }


def _grouped_by(lines: Sequence[Line], key: Callable[[Line], Any]) -> list[tuple[Any, list[Line]]]:
    parts: dict[Any, list[Line]] = {}
    for line in lines:
        parts.setdefault(key(line), []).append(line)
    return sorted(parts.items())


def _score(lines: Sequence[Mapping[str, Any]]) -> float | None:
    return _mean([line["score"] for line in lines])


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [float(value) for value in values if value is not None]
    return math.fsum(numbers) / len(numbers) if numbers else None
