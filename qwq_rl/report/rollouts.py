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
"""Updates shown of a stage at most."""
ROLLOUTS = 24
"""Rollouts shown of an update at most; a single larger group is cut to it."""
TEXT = 4000
"""Characters shown of a prompt or a segment at most: its beginning and its end."""


def clipped(text: str, most: int = TEXT) -> str:
    """The text, or its beginning and end with a note between them of how much is left out."""
    if len(text) <= most:
        return text
    left_out = f"\n[… {len(text) - most} characters left out …]\n"
    return text[: most * 2 // 3] + left_out + text[len(text) - most // 3 :]


def outcome(rollout: Mapping[str, Any]) -> str:
    """correct, wrong, fault, or open (judged by a reward model alone)."""
    scores = [finite(at(verdict, "score")) for verdict in fields(rollout, "verdicts").values()]
    if finite(rollout.get("reward")) is None or None in scores:
        return "fault"
    gates = all(fields(rollout, "gates").values())
    if not scores:
        return "open" if gates else "wrong"
    return "correct" if gates and all(score is not None and score >= 1 for score in scores) else "wrong"


def encode(rollout: Mapping[str, Any]) -> dict[str, Any]:
    """What page.js shows of one rollout, under short keys."""
    segments = entries(rollout, "segments")
    verdicts = fields(rollout, "verdicts").items()
    return {
        "s": rollout.get("sample"),
        "t": [[str(at(part, "role") or "model"), clipped(str(at(part, "text") or ""))] for part in segments],
        "v": outcome(rollout),
        "w": [
            [name, at(v, "status"), finite(at(v, "score")), clipped(str(at(v, "reason") or ""), 400)]
            for name, v in verdicts
        ],
        "x": [name for name, passed in fields(rollout, "gates").items() if not passed],
        "f": rollout.get("finish"),
        "n": sum(whole(value) for part in segments for value in entries(part, "loss_mask")),
        "r": finite(rollout.get("reward")),
        "a": finite(rollout.get("advantage")),
        "q": finite(rollout.get("preference")),
    }


def choose_groups(groups: Mapping[tuple[str, int], Sequence[Any]], update: int, most: int) -> list[tuple[str, int]]:
    """Whole groups up to `most` rollouts, at least one, taking turns over domains in an order fixed by a hash."""

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
    """The shown groups of one update's file."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    rows = read_lines(path)
    for row in rows:
        groups.setdefault((str(row.get("domain") or "?"), whole(row.get("group"))), []).append(row)
    update = int(path.stem.rsplit("-", 1)[-1])
    shown = []
    for key in choose_groups(groups, update, most):
        members = sorted(groups[key], key=lambda row: finite(row.get("sample")) or 0.0)
        first = members[0]
        shown.append(
            {
                "g": key[1],
                "d": key[0],
                "y": str(first.get("family") or key[0]),
                "row": str(first.get("row") or ""),
                "p": clipped(str(first.get("prompt") or "")),
                "of": len(members),
                "m": [encode(member) for member in members[:most]],
            }
        )
    return {"u": update, "groups": shown, "of": len(rows)}


def sample_stage(stage: Stage, budget: int) -> dict[str, Any]:
    """Evenly spread updates of a stage within `budget` bytes of the page, and how many there are of everything."""
    steps = STEPS
    samples = {index: sample_update(stage.rollouts[index]) for index in thinned(len(stage.rollouts), steps)}
    sizes = {index: len(data_block(sample).encode()) for index, sample in samples.items()}
    kept = sorted(samples)
    while len(kept) > 2 and sum(sizes[index] for index in kept) > budget:
        steps = max(2, len(kept) * 3 // 4)
        kept = [kept[position] for position in thinned(len(kept), steps)]
    by_domain = [fields(line, "domains") for line in stage.metrics]
    total = sum(whole(at(area, "rollouts")) for line in by_domain for area in line.values())
    shown = sum(len(group["m"]) for index in kept for group in samples[index]["groups"])
    return {
        "stage": stage.name,
        "updates": [samples[index] for index in kept],
        "shown": shown,
        "total": max(total, sum(samples[index]["of"] for index in kept)),
        "files": len(stage.rollouts),
    }


def browser(runs: Sequence[Run], prefix: str, budget: int) -> str:
    """The browser's place in the page and its data; `budget` bounds its bytes."""
    stages = [(run, stage) for run in runs for stage in run.stages if stage.rollouts]
    if not stages:
        return '<p class="note">No rollouts yet: an RL stage writes them with its first update.</p>'
    samples = []
    for run, stage in stages:
        sample = sample_stage(stage, budget // len(stages))
        label = stage.name if len(runs) == 1 else f"{run.name}: {stage.name}"
        samples.append({**sample, "label": label})
    counts = "; ".join(
        f"{s['label']}: {s['shown']} of {s['total']} rollouts, from {len(s['updates'])} of {s['files']} updates"
        for s in samples
    )
    return (
        f'<p class="note">Whole groups, chosen by a hash and not by what they say. Shown: {esc(counts)}.</p>'
        f'<div class="browser" data-source="{prefix}rollout-data" data-anchor="{prefix}rollouts">'
        "<noscript><p>The browser of rollouts needs JavaScript; the rollouts lie in the run folder.</p></noscript>"
        f"</div>{data_block(samples, prefix + 'rollout-data')}"
    )
