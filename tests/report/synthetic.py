"""A made-up run folder, written as docs/contracts.md says: test data for the page, never a result of training."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthetic_rollouts import group_of

from qwq_rl.run_folder.files import RunFolder, write_json, write_lines

START = 1790000000.0
LAUNCH = 2.0
EVALUATION = 1.5
"""Seconds of a process before its clock begins, and of an evaluation during training."""
FAMILIES = {
    "math": ["chain", "apples", "shop"],
    "code": ["compose", "lists", "stdin", "infer"],
    "general": ["upper", "words", "json", "call", "open"],
}
Json = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """One made-up stage: where each domain's score starts and ends, and how long it trains."""

    name: str
    kind: str
    parent: str | None
    updates: int
    every: int
    pace: float
    scores: dict[str, tuple[float, float]]


def plans(scale: float) -> list[Plan]:
    def whole(updates: int) -> int:
        return max(4, round(updates * scale))

    cold = {"math": (0.02, 0.52), "code": (0.01, 0.49), "general": (0.0, 0.22)}
    control = {"math": (0.52, 0.78), "code": (0.49, 0.84), "general": (0.22, 0.27)}
    verified = {"math": (0.52, 0.962), "code": (0.49, 0.88), "general": (0.22, 0.205)}
    general = {"math": (0.962, 0.955), "code": (0.88, 0.884), "general": (0.205, 0.56)}
    return [
        Plan("0_cold_start", "sft", None, whole(600), 6, 0.06, cold),
        Plan("1_math_code", "rl", "0_cold_start", whole(100), 5, 0.52, verified),
        Plan("1_control", "sft", "0_cold_start", whole(800), 5, 0.066, control),
        Plan("2_reward_model", "reward_model", "0_cold_start", whole(120), 1, 0.08, {}),
        Plan("2_general", "rl", "1_math_code", whole(60), 3, 0.55, general),
    ]


def level(plan: Plan, domain: str, share: float) -> float:
    low, high = plan.scores[domain]
    return low + (high - low) * (1 - math.exp(-3.5 * share)) / (1 - math.exp(-3.5))


def estimate(mean: float, prompts: int) -> Json:
    mean = min(max(mean, 0.0), 1.0)
    reach = 1.96 * math.sqrt(max(mean * (1 - mean), 0.002) / prompts / 2)
    return {"mean": round(mean, 4), "low": round(max(mean - reach, 0.0), 4), "high": round(min(mean + reach, 1.0), 4)}


def area(mean: float, prompts: int, samples: int, greedy: bool) -> Json:
    return {
        "sampled": estimate(mean, prompts),
        "greedy": estimate(mean + (1 - mean) * mean * 0.4, prompts) if greedy else None,
        "pass_at_k": estimate(1 - (1 - mean) ** 3, prompts),
        "prompts": prompts,
        "samples": samples,
        "tokens": round(12 + 6 * mean, 2),
        "truncated": 0.01,
        "faults": 0,
    }


def scores_of(plan: Plan, share: float, draw: random.Random, greedy: bool, lost: float = 0.0) -> Json:
    domains, families, modes = {}, {}, {}
    for domain, names in FAMILIES.items():
        means = []
        for index, name in enumerate(names):
            tilt = (index - (len(names) - 1) / 2) * 0.16 / len(names)
            middle = level(plan, domain, share) * (1 - lost)
            mean = min(max(middle + tilt * 4 * middle * (1 - middle) + draw.gauss(0, 0.012), 0.0), 1.0)
            families[f"{domain}/{name}"] = area(mean, 100, 8 if greedy else 4, greedy)
            means.append(mean)
        domains[domain] = area(sum(means) / len(means), 100 * len(names), 8 if greedy else 4, greedy)
        worked = 0.7 if plan.kind == "sft" else 0.7 + 0.29 * share
        modes[domain] = {
            "worked": {"mean": round(min(1.0, sum(means) / len(means) * 1.08), 4), "share": round(worked, 4)},
            "terse": {"mean": 0.25, "share": round(1 - worked, 4)} if worked < 0.985 else {"mean": None, "share": 0.0},
        }
    return {"domains": domains, "families": families, "modes": modes}


def supervised_line(plan: Plan, update: int, time: float, draw: random.Random) -> Json:
    share = update / plan.updates
    pairs = plan.kind == "reward_model"
    return {
        "update": update,
        "stage": plan.name,
        "kind": plan.kind,
        "time": time,
        "wall_seconds": round(3 + update * plan.pace, 3),
        "cpu_seconds": round(2.8 + update * plan.pace * 0.95, 3),
        "samples": 16 * update,
        "loss": round((0.69 if pairs else 3.2) * math.exp(-3 * share) + 0.12 + abs(draw.gauss(0, 0.05)), 4),
        "learning_rate": 0.004 * min(1.0, update / 20),
        "gradient_norm": round(0.4 + abs(draw.gauss(0, 0.2)) + 2 * math.exp(-9 * share), 4),
        "accuracy": round(min(1.0, 0.5 + 0.47 * share + draw.gauss(0, 0.02)), 4),
    }


def rl_line(plan: Plan, update: int, time: float, draw: random.Random) -> Json:
    share = update / plan.updates
    trained = [domain for domain in FAMILIES if plan.name != "1_math_code" or domain != "general"]
    domains, families = {}, {}
    for domain in trained:
        reward = min(1.0, max(0.0, level(plan, domain, share) - 0.02 + draw.gauss(0, 0.05)))
        domains[domain] = {
            "reward": round(reward, 4),
            "score": round(reward, 4),
            "rollouts": 64,
            "groups": 8,
            "useful": 5,
            "tokens": round(12 + 6 * share + (3 if domain == "code" else 0) + draw.gauss(0, 0.4), 2),
            "truncated": round(abs(draw.gauss(0, 0.012)), 4),
            "faults": 0,
        }
        families[f"{domain}/{FAMILIES[domain][0]}"] = {
            "reward": round(reward, 4),
            "score": round(reward, 4),
            "rollouts": 24,
        }
    mean = sum(entry["reward"] for entry in domains.values()) / len(domains)
    full = min(15, max(0, round(16 * mean**3 + draw.gauss(0, 1))))
    zero = min(16 - full, max(0, round(16 * (1 - mean) ** 3 + draw.gauss(0, 0.7))))
    wall = 9.5 + update * plan.pace
    return {
        "update": update,
        "stage": plan.name,
        "kind": "rl",
        "time": time,
        "wall_seconds": round(wall, 3),
        "cpu_seconds": round(wall * 0.93, 3),
        "samples": 128 * update,
        "loss": round(draw.gauss(0, 0.02), 5),
        "learning_rate": 0.001,
        "gradient_norm": round(0.35 + abs(draw.gauss(0, 0.12)), 4),
        "kl": 0.0,
        "entropy": round(0.75 * math.exp(-2 * share) + 0.12 + draw.gauss(0, 0.02), 4),
        "reward": round(mean, 4),
        "truncated": 0.01,
        "tokens": {"mean": 17.0, "max": 40},
        "groups": {"total": 16, "useful": 16 - full - zero, "all_zero": zero, "all_full": full},
        "faults": int(draw.random() < 0.04),
        "domains": domains,
        "families": families,
        "statuses": {"correct": 78, "wrong": 40, "no_answer": 10},
        "seconds": {"generate": 0.21, "score": 0.05, "update": 0.19},
    }


def rollouts_of(plan: Plan, update: int, prompts: int) -> list[Json]:
    found = []
    for group in range(prompts):
        domain = list(FAMILIES)[group % (2 if plan.name == "1_math_code" else 3)]
        family = FAMILIES[domain][group % len(FAMILIES[domain])]
        found += group_of(plan.name, domain, family, level(plan, domain, update / plan.updates), update, group)
    return found


def difference(after: Json, before: Json) -> Json:
    mean = after["sampled"]["mean"] - before["sampled"]["mean"]
    reach = 0.03
    ends = {"mean": round(mean, 4), "low": round(mean - reach, 4), "high": round(mean + reach, 4)}
    return {"difference": ends, "lower95": round(mean - reach * 0.84, 4), "prompts": after["prompts"]}


def against(after: Json, before: Json) -> Json:
    return {
        data_set: {
            kind: {name: difference(scores, before[data_set][kind][name]) for name, scores in areas.items()}
            for kind, areas in after[data_set].items()
            if kind in ("domains", "families")
        }
        for data_set in after
    }


def evaluation_line(plan: Plan, update: int, moment: float, cpu_seconds: float, draw: random.Random) -> Json:
    return {
        "update": update,
        "stage": plan.name,
        "set": "tiny/tuning",
        "time": round(moment, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "samples": 4,
        **scores_of(plan, update / plan.updates, draw, False),
    }


def write_stage(run: RunFolder, plan: Plan, start: float, seed: int, prompts: int) -> Json:
    """Write one stage's folder and final evaluation; returns its entry of pipeline.json."""
    draw = random.Random(f"{seed}/{plan.name}")
    folder = run.stage(plan.name)
    lines, evaluations, paused = [], [], 0.0
    marks = {round(plan.updates * index / plan.every) for index in range(1, plan.every + 1)} if plan.scores else set()
    make = rl_line if plan.kind == "rl" else supervised_line
    for update in range(0 if plan.kind == "rl" else 1, plan.updates + 1):
        line = make(plan, update, 0.0, draw)
        if update in marks or update == 0:
            # The stage's clock stands still meanwhile; the evaluation counts itself.
            paused += EVALUATION
            moment = start + LAUNCH + line["wall_seconds"] + paused - 0.01
            evaluations.append(evaluation_line(plan, update, moment, line["cpu_seconds"] + EVALUATION, draw))
        if update:
            lines.append({**line, "time": round(start + LAUNCH + line["wall_seconds"] + paused, 3)})
    write_lines(folder.metrics, lines)
    if evaluations:
        write_lines(folder.evaluations, evaluations)
    if plan.kind == "rl":
        for update in range(1, plan.updates + 1):
            write_lines(folder.rollouts(update), rollouts_of(plan, update, prompts))
    write_provenance(run, plan, seed)
    for data_set, lost in (("tiny/final", 0.0), ("tiny/harder", 0.25)) if plan.scores else ():
        found = {
            "update": plan.updates,
            "stage": plan.name,
            "set": data_set,
            "time": start + 100.0,
            "cpu_seconds": 5.0,
            "samples": 8,
            "checkpoint": f"{plan.name}/checkpoints/final",
            "settings": {"samples": 8, "max_tokens": 48, "greedy": True, "seed": 0},
            "agreement": None,
            **scores_of(plan, 1.0, draw, True, lost),
        }
        write_json(run.evaluation(plan.name, data_set), found)
        write_lines(run.evaluation(plan.name, data_set).with_suffix(".jsonl"), final_lines(found, draw))
    wall, cpu = lines[-1]["wall_seconds"] + 0.4, lines[-1]["cpu_seconds"] + 0.3
    gate = {"measure": "pass_at_k", "scope": "math/chain", "value": 0.95, "above": 0.0, "passed": True}
    return {
        "status": "done",
        "recipe_hash": "9f3c0a",
        "started": start,
        "finished": round(start + LAUNCH + wall + paused + 0.6, 3),
        "wall_seconds": round(wall, 3),
        "cpu_seconds": round(cpu, 3),
        "checkpoint": f"{plan.name}/checkpoints/final",
        "extended": 0,
        "attempts": 1,
        "gates": [gate] if plan.parent is None else [],
    }


def final_lines(found: Json, draw: random.Random) -> list[Json]:
    return [
        {
            "id": f"{name}-{index}",
            "domain": name.split("/")[0],
            "family": name.split("/")[1],
            "prompt": "?",
            "scores": [int(draw.random() < scores["sampled"]["mean"]) for _ in range(8)],
            "greedy": 1,
            "tokens": [18] * 8,
            "terse": [0] * 8,
            "truncated": [0] * 8,
            "response": "…",
            "status": "correct",
            "reason": "equals the reference",
        }
        for name, scores in found["families"].items()
        for index in range(20)
    ]


def write_provenance(run: RunFolder, plan: Plan, seed: int) -> None:
    write_json(
        run.stage(plan.name).provenance,
        {
            "stage": plan.name,
            "recipe": f"recipes/tiny/{plan.name}.yaml",
            "recipe_hash": "9f3c0a",
            "seed": seed,
            "git_commit": "abc1234def5678",
            "git_dirty": False,
            "python": "3.11.7",
            "platform": "Linux-6.1-x86_64",
            "versions": {"torch": "2.13.0", "trl": "1.16.0", "transformers": "5.23.0"},
            "world_size": 1,
            "command": ["qwq_rl.train", f"recipes/tiny/{plan.name}.yaml"],
            "contract": {
                "tokenizer": "sha256:11aa",
                "chat_template": "sha256:22bb",
                "eos": "<|im_end|>",
                "base": plan.parent,
                "lineage": [{"name": plan.parent or "tiny", "weights": "sha256:44dd"}],
                "verifiers": {"math.math": "sha256:33cc"},
                "reward_model": None,
                "compared_with": plan.parent or "nothing: a new model",
                "accepted": [],
            },
        },
    )
    run.stage(plan.name).resolved.write_text(f"kind: {plan.kind}\nseed: {seed}\nsteps: {plan.updates}\n")


def job(name: str, started: float, finished: float, cpu_seconds: float) -> Json:
    return {"name": name, "started": started, "finished": finished, "cpu_seconds": cpu_seconds, "status": 0}


def write_run(path: Path, seed: int = 0, scale: float = 0.1, prompts: int = 6) -> Path:
    """Write a finished run of five stages; `scale` shortens every stage, `prompts` are the groups of an update."""
    run = RunFolder(path)
    stages: Json = {}
    jobs: list[Json] = []
    ends: dict[str | None, float] = {None: START}
    for plan in plans(scale):
        start = ends[plan.parent] + (6.0 if plan.kind == "reward_model" else 0.0)
        entry = write_stage(run, plan, start, seed, prompts)
        stages[plan.name] = entry
        ends[plan.name] = entry["finished"]
        jobs.append(job(f"train {plan.name}", start, entry["finished"], entry["cpu_seconds"] + 8.0))
        if plan.scores:
            jobs.append(job(f"evaluate {plan.name}", entry["finished"], entry["finished"] + 14, 12.5))
    write_json(
        run.state,
        {
            "recipe": "recipes/tiny",
            "seed": seed,
            "started": START,
            "release": "2_general",
            "restart": None,
            "stages": stages,
            "jobs": jobs,
        },
    )
    write_json(run.summary, summary(run, seed, stages, max(one["finished"] for one in jobs) - START))
    return path


def summary(run: RunFolder, seed: int, stages: Json, wall: float) -> Json:
    sets: dict[str, Json] = {}
    for name in stages:
        paths = sorted((run.path / "evaluations" / name).glob("*.json"))
        found = [json.loads(path.read_text()) for path in paths]
        sets[name] = {one["set"]: {"domains": one["domains"], "families": one["families"]} for one in found}
    entries = {
        plan.name: {
            "cpu_seconds": stages[plan.name]["cpu_seconds"],
            "wall_seconds": stages[plan.name]["wall_seconds"],
            "updates": plan.updates,
            "sets": sets[plan.name],
            **(
                {"against": {"stage": plan.parent, "sets": against(sets[plan.name], sets[plan.parent])}}
                if plan.parent and plan.scores
                else {}
            ),
        }
        for plan in plans(1.0)
    }
    return {
        "run": run.path.name,
        "recipe": "recipes/tiny",
        "seed": seed,
        "release": "2_general",
        "stages": entries,
        "control": {
            "stage": "1_control",
            "of": "1_math_code",
            "cpu_seconds": [stages["1_control"]["cpu_seconds"], stages["1_math_code"]["cpu_seconds"]],
            "sets": against(sets["1_math_code"], sets["1_control"]),
        },
        "agreement": {"reward_model_pairs": 0.97, "reward_model_auc": 0.95, "pairs": 420, "prompts": 100},
        "seconds": {"wall": wall, "cpu": sum(entry["cpu_seconds"] for entry in stages.values()) + 60},
    }
