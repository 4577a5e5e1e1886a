"""Whole updates of an `rl` stage - sampling, scoring, update - by ours and by stock `trl.GRPOTrainer`.

Both start from the same checkpoint and take the same prompts, as many samples, the same scorer, learning rate and clip.
An update is measured from the beginning of one step to the beginning of the next; the first is left out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from qwq_rl.config.recipe import load_stage, resolved_yaml
from qwq_rl.config.stages import RlRecipe
from qwq_rl.data.chat import read_response, render_prompt
from qwq_rl.data.prompt_source import PromptSource
from qwq_rl.rewards.scorer import Scorer
from qwq_rl.run_folder.files import RunFolder, read_lines
from qwq_rl.stages.callbacks import StopRequest
from qwq_rl.stages.context import StageContext, load_sources
from qwq_rl.stages.rl import build_rl
from qwq_rl.training.clock import Clock
from qwq_rl.verifiers import Problem, Response, Verdict, load, run_as


@dataclass(frozen=True)
class Spent:
    """What updates took."""

    cpu: float
    """Seconds, processes below included."""
    wall: float
    updates: int
    tokens: int
    """Sampled tokens."""


class Marks(TrainerCallback):
    """Reads the clocks whenever a step begins."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def on_step_begin(self, *arguments: Any, **named: Any) -> None:
        """Note both clocks, once the GPU has done what was asked of it."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.cpu.append(cpu_seconds())
        self.wall.append(time.perf_counter())

    def spent(self, tokens: Sequence[int]) -> Spent:
        """`tokens`: sampled in each update, the first and the last included, which are left out here."""
        of = tokens[1 : len(self.cpu) - 1]
        return Spent(self.cpu[-1] - self.cpu[1], self.wall[-1] - self.wall[1], len(of), sum(of))


def cpu_seconds() -> float:
    """Of this process, of its children that have ended, and of all processes below that live."""
    own = psutil.Process()
    used = sum(own.cpu_times()[:4])
    for child in own.children(recursive=True):
        try:
            used += sum(child.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue  # its seconds are now among those of its parent's ended children
    return used


def recipe_of(path: Path, checkpoint: Path, updates: int, overrides: Sequence[str]) -> RlRecipe:
    """The recipe for `updates` measured updates, with one before them and one after, without checkpoints between."""
    steps = updates + 2
    fixed = [
        f"--model.from={checkpoint}", f"--steps={steps}", f"--evaluate.every={steps}", "--evaluate.at_start=false",
        f"--checkpoint.every={steps}",
    ]  # fmt: skip
    recipe = load_stage(path, [*fixed, *overrides])
    assert isinstance(recipe, RlRecipe)
    return recipe


def run_ours(recipe: RlRecipe, recipe_folder: Path, folder: Path) -> Spent:
    """The stage's own trainer, in a new run folder."""
    run = RunFolder(folder)
    stage = run.stage("1_math_code")
    stage.path.mkdir(parents=True)
    stage.resolved.write_text(resolved_yaml(recipe))
    marks = Marks()
    trainer = build_rl(
        recipe, StageContext(run, stage, recipe_folder, 1, None, Clock(), StopRequest()), lambda evaluate, update: []
    )
    trainer.add_callback(marks)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    tokens = [
        sum(len(part["token_ids"]) for line in read_lines(stage.rollouts(update)) for part in line["segments"])
        for update in range(1, recipe.steps + 1)
    ]
    return marks.spent(tokens)


def run_stock(recipe: RlRecipe, checkpoint: Path, folder: Path, rows: int) -> Spent:
    """TRL's trainer on the same prompts, in micro-batches of `rows`, which are given to it as text."""
    on_gpu = torch.cuda.is_available()
    rollout, update = recipe.rollout, recipe.update
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    config = GRPOConfig(
        output_dir=str(folder), report_to="none", save_strategy="no", max_steps=recipe.steps, seed=recipe.seed,
        per_device_train_batch_size=rows, gradient_accumulation_steps=rollout.prompts * rollout.generations // rows,
        num_generations=rollout.generations, max_completion_length=rollout.max_tokens, temperature=rollout.temperature,
        loss_type="grpo", epsilon=update.clip[0], epsilon_high=update.clip[1], beta=update.kl, learning_rate=update.lr,
        lr_scheduler_type="constant_with_warmup", warmup_steps=update.warmup, max_grad_norm=update.gradient_clip,
        weight_decay=0.0, logging_steps=1, shuffle_dataset=False, remove_unused_columns=False, disable_tqdm=True,
        bf16=on_gpu, use_cpu=not on_gpu, gradient_checkpointing=False, log_level="error", dataloader_pin_memory=on_gpu,
    )  # fmt: skip
    tokens: list[int] = []
    marks = Marks()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto"),
        reward_funcs=_scored(recipe, tokenizer, tokens),
        args=config,
        train_dataset=_prompts(recipe, tokenizer),
        processing_class=tokenizer,
        callbacks=[marks],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return marks.spent(tokens)


def _prompts(recipe: RlRecipe, tokenizer: Any) -> Dataset:
    """Those that ours draws, in its order."""
    source = PromptSource(load_sources(recipe.data, recipe.seed), recipe.seed, "uniform")
    drawn = [one.row for update in range(1, recipe.steps + 1) for one in source.draw(update, recipe.rollout.prompts)]
    return Dataset.from_list([{"prompt": render_prompt(tokenizer, row), "row": json.dumps(row)} for row in drawn])


def _scored(recipe: RlRecipe, tokenizer: Any, tokens: list[int]) -> Callable[..., list[float | None]]:
    """Our scorer as a reward function of TRL's; adds to `tokens` how many were sampled, one number a call."""
    scorer = Scorer(recipe.domains, recipe.gates)

    def reward(
        prompts: list[str], completion_ids: list[list[int]], row: list[str], **others: Any
    ) -> list[float | None]:
        tokens.append(sum(map(len, completion_ids)))
        items = [
            (json.loads(text), read_response(tokenizer, prompt, ids, _finish(ids, tokenizer.eos_token_id)))
            for text, prompt, ids in zip(row, prompts, completion_ids, strict=True)
        ]
        return [one.reward for one in scorer.score(items)]

    return reward


def _finish(ids: Sequence[int], end: int) -> Any:
    return "stop" if ids[-1] == end else "length"


@run_as("inline")
def even(problem: Problem, response: Response) -> Verdict | float:
    """A reward for models without a skill: whether they wrote an even number of tokens.

    Nearly each of their responses has a token that the small tokenizer cannot write; what has none, such as the answers
    of the audit before training, is for the checker of math.
    """
    if max(response.token_ids, default=0) > 10_000:
        return float(len(response.token_ids) % 2 == 0)
    judged: Verdict = load("math", {})(problem, response)
    return judged
