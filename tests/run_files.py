"""Write a small run folder as a pipeline leaves it, for tests that read one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qwq_rl.evals.estimates import PromptRecord, evaluation_line
from qwq_rl.run_folder.files import RunFolder, write_json, write_lines

PIPELINE = """\
stages: [0_cold_start, 1_math_code, 1_control]
evaluate: {sets: [tiny/final], samples: 2, max_tokens: 48}
control: {stage: 1_control, of: 1_math_code}
release: 1_math_code
"""

RECIPES = {
    "0_cold_start": "kind: sft\nmodel: {new: tiny}\nseed: 0\ndata: [{source: tiny/math_demonstrations}]\n",
    "1_math_code": (
        "kind: rl\nmodel: {from: 0_cold_start}\nalgorithm: grpo\nseed: 0\ndata: [{source: org/problems}]\n"
        "rollout: {prompts: 16, generations: 8, max_tokens: 40, temperature: 0.9}\n"
    ),
    "1_control": "kind: sft\nmodel: {from: 0_cold_start}\nseed: 0\ndata: [{source: tiny/math_demonstrations}]\n",
}


def write_run(folder: Path, scores: dict[str, Sequence[Sequence[float | None]]], release: str = "1_math_code") -> Path:
    """A run under `folder/runs/tiny` with these stages done, each with the scores of its prompts on tiny/final."""
    recipe, run = folder / "recipes" / "tiny", RunFolder(folder / "runs" / "tiny")
    recipe.mkdir(parents=True, exist_ok=True)
    (recipe / "pipeline.yaml").write_text(PIPELINE)
    for number, (stage, of_prompts) in enumerate(scores.items()):
        path = run.stage(stage)
        done = {"update": 10, "cpu_seconds": 20.0 + number, "wall_seconds": 30.0, "recipe_hash": "9f3c"}
        write_json(path.done, done)
        path.resolved.write_text(RECIPES[stage])
        write_json(path.provenance, {"stage": stage, "git_commit": "abc123", "versions": {"torch": "2.13.0"}})
        write_evaluation(run, stage, of_prompts)
    jobs = [{"name": stage, "started": 10.0 * at, "finished": 10.0 * at + 15.0, "cpu_seconds": 8.0} for at, stage in
            enumerate(scores)]  # fmt: skip
    write_json(
        run.state,
        {"recipe": str(recipe), "seed": 0, "release": release, "stages": {name: {} for name in RECIPES}, "jobs": jobs},
    )
    return run.path


def write_evaluation(run: RunFolder, stage: str, scores: Sequence[Sequence[float | None]], update: int = 10) -> None:
    """What `qwq_rl.evals.evaluate` leaves of a stage: half the prompts of one family, half of another."""
    zeros = (0,) * len(scores[0])
    records = [
        PromptRecord(
            f"p{at}",
            "math",
            ("chain", "story")[at % 2],
            f"{at} + 1 = ?",
            tuple(of),
            of[0],
            zeros,
            zeros,
            zeros,
            f"{at + 1}",
            "",
            "",
        )
        for at, of in enumerate(scores)
    ]
    line = evaluation_line(
        records, update=update, stage=stage, data_set="tiny/final", time=1.0, cpu_seconds=20.0, greedy=True
    )
    write_lines(run.evaluation(stage, "tiny/final").with_suffix(".jsonl"), (record.line() for record in records))
    write_json(run.evaluation(stage, "tiny/final"), line | {"settings": {"max_tokens": 48}, "agreement": None})
