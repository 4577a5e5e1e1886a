"""A run folder with recorded rollouts of two updates, as `rescore` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwq_rl.run_folder.files import RunFolder, write_json, write_lines

RECIPE = """\
kind: rl
model: {{from: 0_cold_start}}
algorithm: grpo
data: [{{source: {rows}}}]
domains:
  math: {{verifiers: {{math: {{}}}}}}
  general: {{verifiers: {{exact: {{}}}}, reward_model: 0.5}}
reward_model: {{from: 2_reward_model}}
rollout: {{prompts: 2, generations: 2, max_tokens: 8}}
update: {{lr: 1.0e-3, clip: [0.2, 0.28]}}
steps: 2
evaluate: {{every: 2, sets: [tiny/tuning], samples: 2}}
checkpoint: {{every: 2, keep: 1}}
"""

ROWS = [
    {"id": "m1", "domain": "math", "prompt": "2+2", "verifier": "math", "reference": "4"},
    {"id": "m2", "domain": "math", "prompt": "1+2", "verifier": "math", "reference": "3"},
    {"id": "g1", "domain": "general", "prompt": "say hi", "verifier": "exact", "reference": "hi"},
]


def rollout(update: int, group: int, sample: int, row: str, text: str, score: float, **other: Any) -> dict[str, Any]:
    domain, name = ("math", "math") if row.startswith("m") else ("general", "exact")
    verdict = {"score": score, "status": "correct" if score else "wrong", "reason": "", "answer": text, "seconds": 0.0}
    line = {
        "id": f"u{update}-g{group}-s{sample}",
        "row": row,
        "domain": domain,
        "family": domain,
        "group": group,
        "sample": sample,
        "update": update,
        "prompt": "<|im_start|>assistant\n<think>\n",
        "segments": [
            {
                "role": "model",
                "text": f"{text}<|im_end|>",
                "token_ids": [1, 2],
                "loss_mask": [1, 1],
                "logprobs": None,
                "policy_version": update - 1,
            }
        ],
        "finish": "stop",
        "gates": {"think_closed": True, "finished": True, "answered": True},
        "verdicts": {name: {**verdict, "metrics": {}}},
        "preference": None if domain == "math" else 0.5,
        "score": score,
        "reward": score if domain == "math" else score * 0.75,
        "advantage": 0.0,
    }
    return line | other


def recorded_run(run: Path, rows: Path) -> Path:
    """A run of one rl stage on `rows`: two updates of two math groups and one general group each."""
    write_lines(rows, ROWS)
    stage = RunFolder(run).stage("1_math_code")
    for update in (1, 2):
        lines = [
            rollout(update, 0, 0, "m1", r"2+2=4 </think> \boxed{4}", 1.0),
            rollout(update, 0, 1, "m1", r"2+2=4 </think> \boxed{5}", 0.0),
            rollout(update, 1, 0, "m2", r"3 </think> \boxed{2}", 0.0),
            rollout(update, 1, 1, "m2", r"1+1=2 </think> \boxed{2}", 0.0),
            rollout(update, 2, 0, "g1", "</think> hi", 1.0),
            rollout(update, 2, 1, "g1", "</think> nay", 0.0),
        ]
        write_lines(stage.rollouts(update), lines)
    stage.resolved.write_text(RECIPE.format(rows=rows))
    write_json(stage.provenance, {"contract": {"eos": "<|im_end|>"}})
    return run
