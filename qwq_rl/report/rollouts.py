"""A bounded, deterministic sample of a run's rollouts, as the data that page.js browses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwq_rl.report.load import Run, Stage
from qwq_rl.report.markup import at, data_block, entries, esc, fields, finite, whole
from qwq_rl.report.training import thinned
from qwq_rl.run_folder.files import read_lines

STEPS = 40
"""The most updates shown of a stage."""
ROLLOUTS = 24
"""The most rollouts shown of an update. A single larger group is cut to this size."""
TEXT = 4000
"""The most characters shown of a prompt or a segment: its beginning and its end."""


def clipped(text: str, most: int = TEXT) -> str:
    """Return the text, or its beginning and end with a note between them that says how much is left out."""
    if len(text) <= most:
        return text
    left_out = f"\n[… {len(text) - most} characters left out …]\n"
    return text[: most * 2 // 3] + left_out + text[len(text) - most // 3 :]


def outcome(rollout: Mapping[str, Any]) -> str:
    """Return correct, wrong, fault, or open (only a reward model judged it)."""
    scores = [finite(at(verdict, "score")) for verdict in fields(rollout, "verdicts").values()]
    if finite(rollout.get("reward")) is None or None in scores:
        return "fault"
    gates_passed = all(fields(rollout, "gates").values())
    if not scores:
        return "open" if gates_passed else "wrong"
    return "correct" if gates_passed and all(score is not None and score >= 1 for score in scores) else "wrong"


def encode(rollout: Mapping[str, Any]) -> dict[str, Any]:
    """Return what page.js shows of one rollout, under short keys that save bytes of the page.

    s sample, t segments as [role, text], v outcome, w verdicts as [verifier, status, score, reason], x gates that did
    not pass, f finish, n tokens under the loss, r reward, a advantage, q preference.
    """
    segments = entries(rollout, "segments")
    verdicts = fields(rollout, "verdicts").items()
    return {
        "s": rollout.get("sample"),
        "t": [[str(at(segment, "role") or "model"), clipped(str(at(segment, "text") or ""))] for segment in segments],
        "v": outcome(rollout),
        "w": [
            [name, at(verdict, "status"), finite(at(verdict, "score")), clipped(str(at(verdict, "reason") or ""), 400)]
            for name, verdict in verdicts
        ],
        "x": [name for name, passed in fields(rollout, "gates").items() if not passed],
        "f": rollout.get("finish"),
        "n": sum(whole(value) for segment in segments for value in entries(segment, "loss_mask")),
        "r": finite(rollout.get("reward")),
        "a": finite(rollout.get("advantage")),
        "q": finite(rollout.get("preference")),
    }


def choose_groups(groups: Mapping[tuple[str, int], Sequence[Any]], update: int, most: int) -> list[tuple[str, int]]:
    """Choose whole groups with at most `most` rollouts together, but at least one group.

    The domains take turns, and a hash fixes the order within each, so that the same run always shows the same groups.
    """

    def order(key: tuple[str, int]) -> str:
        return hashlib.sha256(f"{update}/{key[0]}/{key[1]}".encode()).hexdigest()

    queues: dict[str, list[tuple[str, int]]] = {}
    for key in sorted(groups, key=order):
        queues.setdefault(key[0], []).append(key)
    chosen: list[tuple[str, int]] = []
    shown = 0
    while any(queues.values()):
        for queue in queues.values():
            if queue:
                key = queue.pop(0)
                if not chosen or shown + len(groups[key]) <= most:
                    chosen.append(key)
                    shown += len(groups[key])
    return sorted(chosen, key=lambda key: key[1])


def sample_update(path: Path, most: int = ROLLOUTS) -> dict[str, Any]:
    """Read the rollout file of one update and return the groups to show, under the short keys of page.js.

    Of the update: u its number, of the count of rollouts. Of a group: g its number, d domain, y family, row, p prompt,
    of the count of its rollouts, m the rollouts shown (see `encode`).
    """
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    rows = read_lines(path)
    for row in rows:
        groups.setdefault((str(row.get("domain") or "?"), whole(row.get("group"))), []).append(row)
    update = int(path.stem.rsplit("-", 1)[-1])
    shown = []
    for key in choose_groups(groups, update, most):
        group_rollouts = sorted(groups[key], key=lambda row: finite(row.get("sample")) or 0.0)
        first = group_rollouts[0]
        shown.append(
            {
                "g": key[1],
                "d": key[0],
                "y": str(first.get("family") or key[0]),
                "row": str(first.get("row") or ""),
                "p": clipped(str(first.get("prompt") or "")),
                "of": len(group_rollouts),
                "m": [encode(rollout) for rollout in group_rollouts[:most]],
            }
        )
    return {"u": update, "groups": shown, "of": len(rows)}


def sample_stage(stage: Stage, budget: int) -> dict[str, Any]:
    """Return evenly spread updates of a stage within `budget` bytes of the page, and the counts of all there is."""
    update_count = STEPS
    samples = {index: sample_update(stage.rollouts[index]) for index in thinned(len(stage.rollouts), update_count)}
    sizes = {index: len(data_block(sample).encode()) for index, sample in samples.items()}
    kept = sorted(samples)
    # Thin by a quarter at a time, but always keep the first and the last update.
    while len(kept) > 2 and sum(sizes[index] for index in kept) > budget:
        update_count = max(2, len(kept) * 3 // 4)
        kept = [kept[position] for position in thinned(len(kept), update_count)]
    figures_by_domain = [fields(metrics_line, "domains") for metrics_line in stage.metrics]
    total = sum(
        whole(at(figures, "rollouts")) for metrics_line in figures_by_domain for figures in metrics_line.values()
    )
    shown = sum(len(group["m"]) for index in kept for group in samples[index]["groups"])
    return {
        "stage": stage.name,
        "updates": [samples[index] for index in kept],
        "shown": shown,
        # Metrics may lack the counts; the rollouts that were read are then the least that there are.
        "total": max(total, sum(samples[index]["of"] for index in kept)),
        "files": len(stage.rollouts),
    }


def browser(runs: Sequence[Run], prefix: str, budget: int) -> str:
    """Return the element that page.js fills and its data, in at most about `budget` bytes."""
    stages = [(run, stage) for run in runs for stage in run.stages if stage.rollouts]
    if not stages:
        return '<p class="note">No rollouts yet: an RL stage writes them with its first update.</p>'
    samples = []
    for run, stage in stages:
        sample = sample_stage(stage, budget // len(stages))
        label = stage.name if len(runs) == 1 else f"{run.name}: {stage.name}"
        samples.append({**sample, "label": label})
    counts = "; ".join(
        f"{entry['label']}: {entry['shown']} of {entry['total']} rollouts, "
        f"from {len(entry['updates'])} of {entry['files']} updates"
        for entry in samples
    )
    return (
        f'<p class="note">Whole groups, chosen by a hash and not by what they say. Shown: {esc(counts)}.</p>'
        f'<div class="browser" data-source="{prefix}rollout-data" data-anchor="{prefix}rollouts">'
        "<noscript><p>The browser of rollouts needs JavaScript; the rollouts lie in the run folder.</p></noscript>"
        f"</div>{data_block(samples, prefix + 'rollout-data')}"
    )
