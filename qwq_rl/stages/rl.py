"""Outcome RL on verified rewards: TRL's GRPOTrainer with our rollouts, our rewards and our record of them.

What differs from TRL's trainer, and why:
- `rollout_func` samples with `qwq_rl.generation`: prompts of a group are read once, finished rows leave the batch,
  and the noise is keyed by (seed, update, group, sample), so that a resumed run samples what the first one would have.
- The one reward function gets token ids and decodes them keeping special tokens: a `</think>` that is a special token
  would otherwise vanish and every reward silently be 0. A row that cannot be judged gets None, and TRL leaves it out.
- `_compute_loss` sees only rows that have an advantage (`objective.live_rows`), where no KL or entropy term
  needs the others; with a KL term it sees all, in parts of like length (`objective.by_length`).
- Advantages are weighted by the domain, and every rollout is written down.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import unwrap_model_for_generation

from qwq_rl.errors import UserError
from qwq_rl.generation import generate
from qwq_rl.objective import PARTS, by_length, live_rows
from qwq_rl.prompts import read_response, render_prompt
from qwq_rl.recipes_stages import RlRecipe
from qwq_rl.rows import Row
from qwq_rl.runfolder import write_lines
from qwq_rl.scoring import Scorer
from qwq_rl.stages.audit import audit_stage
from qwq_rl.trainer.compact_head import use_compact_head
from qwq_rl.trainer.preference import Preference
from qwq_rl.stages.recorder import Evaluator, Line, Recorder
from qwq_rl.trainer.rollouts import Rollout, added, rollout_line, summarise_round
from qwq_rl.stages.setting import Setting, batch_arguments, load_model, ordered_rows, shared_arguments

ALGORITHMS: Mapping[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo", "scale_rewards": "group"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo", "scale_rewards": "group"},
    "gspo": {"loss_type": "grpo", "scale_rewards": "group", "importance_sampling_level": "sequence"},
    "cispo": {"loss_type": "cispo", "scale_rewards": "group"},
}
"""Algorithm -> TRL's names for it."""


def build_rl(recipe: RlRecipe, setting: Setting, evaluator: Evaluator) -> VerifiedGRPOTrainer:
    """The trainer of an `rl` stage, ready to train."""
    rounds = -(-recipe.steps // (recipe.update.updates_per_rollout * recipe.update.epochs))
    rows = ordered_rows(recipe.data, recipe.seed, recipe.rollout.prompts, rounds)
    scorer = Scorer(recipe.domains, recipe.gates)
    if PartialState().is_main_process:
        audit_stage(rows, scorer, recipe, setting.folder)
    model, tokenizer = load_model(recipe.model, setting, recipe.seed)
    preference = None
    if recipe.reward_model is not None:
        place = setting.locate(recipe.reward_model.from_)
        preference = Preference(place, setting.folder.path / "preference.json")
    trainer = VerifiedGRPOTrainer(recipe, rows, scorer, preference, setting, model, tokenizer)
    trainer.add_callback(
        Recorder(
            setting.folder,
            recipe.kind,
            setting.clock,
            setting.stop,
            recipe.rollout.prompts * recipe.rollout.generations // recipe.update.updates_per_rollout,
            trainer.details,
            recipe.evaluate,
            evaluator,
            recipe.checkpoint.keep,
        )
    )
    if not torch.cuda.is_available():
        use_compact_head(trainer.accelerator.unwrap_model(trainer.model), recipe.rollout.temperature)
        if trainer.ref_model is not None:
            use_compact_head(trainer.ref_model, recipe.rollout.temperature)
    return trainer


def grpo_config(recipe: RlRecipe, setting: Setting) -> GRPOConfig:
    """TRL's arguments for a recipe: `rollout.prompts` x `generations` responses a round, over all processes."""
    rollout, update = recipe.rollout, recipe.update
    if rollout.prompts % setting.world_size:
        raise UserError(
            f"rollout.prompts is {rollout.prompts}, which {setting.world_size} processes cannot share evenly: "
            "every group is sampled by one process"
        )
    responses = rollout.prompts * rollout.generations // update.updates_per_rollout
    batches = batch_arguments(responses, update.micro_batch, setting, "responses of an update")
    arguments: dict[str, Any] = {
        **shared_arguments(recipe, setting),
        **batches,
        **ALGORITHMS[recipe.algorithm],
        "steps_per_generation": update.updates_per_rollout * batches["gradient_accumulation_steps"],
        "num_iterations": update.epochs,
        "num_generations": rollout.generations,
        "max_completion_length": rollout.max_tokens,
        "temperature": rollout.temperature,
        "epsilon": update.clip[0],
        "epsilon_high": update.clip[1],
        "beta": update.kl,
        "shuffle_dataset": False,
        "remove_unused_columns": False,
        "weight_decay": 0.0,
        "log_completions": False,
    }
    return GRPOConfig(**arguments | dict(recipe.trl))


class VerifiedGRPOTrainer(GRPOTrainer):
    """See the module's docstring."""

    def __init__(
        self,
        recipe: RlRecipe,
        rows: Sequence[Row],
        scorer: Scorer,
        preference: Preference | None,
        setting: Setting,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.recipe, self.rows, self.scorer, self.preference, self.setting = recipe, rows, scorer, preference, setting
        self.text_tokenizer = tokenizer
        self.round: list[Rollout] = []
        self.round_summary: Line = {}
        self.seconds: dict[str, float] = {}
        # The stage's clock stands still while it evaluates, which is no part of an update.
        self._step_started = setting.clock.wall_seconds()
        self.grpo = grpo_config(recipe, setting)
        super().__init__(
            model=model,
            reward_funcs=self._verified_reward,
            args=self.grpo,
            train_dataset=Dataset.from_list(
                [{"prompt": render_prompt(tokenizer, row), "row": place} for place, row in enumerate(rows)]
            ),
            processing_class=tokenizer,
            rollout_func=lambda prompts, trainer: self._sample(prompts),
        )

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """As TRL's, ended with the last update: resumed there, within a round, the trainer would take another."""
        taken = self.grpo.max_steps * self.grpo.gradient_accumulation_steps * int(self.grpo.generation_batch_size or 0)
        return list(islice(super()._get_train_sampler(dataset), taken))

    def _sample(self, prompts: list[str]) -> dict[str, Any]:
        """TRL's rollout function: `prompts` are rendered, each standing `generations` times in a row."""
        started = time.monotonic()
        generations = self.recipe.rollout.generations
        distinct = prompts[::generations]
        ids = [list(self.text_tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in distinct]
        first = self.accelerator.process_index * len(distinct)
        with unwrap_model_for_generation(
            self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.grpo.ds3_gather_for_generation
        ) as model:
            groups = generate(
                model,
                ids,
                samples=generations,
                max_tokens=self.recipe.rollout.max_tokens,
                temperature=self.recipe.rollout.temperature,
                eos_token_id=int(self.text_tokenizer.eos_token_id),
                pad_token_id=int(self.text_tokenizer.pad_token_id),
                seed=self.recipe.seed * 1_000_003 + self.state.global_step,
                keys=range(first, first + len(distinct)),
            )
        completions = [completion for group in groups for completion in group]
        self.seconds["generate"] = time.monotonic() - started
        return {
            "prompt_ids": [list(ids[place // generations]) for place in range(len(prompts))],
            "completion_ids": [list(completion.token_ids) for completion in completions],
            "logprobs": [list(completion.logprobs) for completion in completions],
            "finish": [completion.finish for completion in completions],
            "sampled_logprobs": [completion.logprobs for completion in completions],
        }

    def _verified_reward(
        self,
        prompts: list[str],
        completions: list[str],
        completion_ids: list[list[int]],
        row: list[int],
        finish: list[Any],
        sampled_logprobs: list[Sequence[float]],
        **kwargs: Any,
    ) -> list[float | None]:
        """TRL's reward function: the composed reward of every completion, None where it could not be judged."""
        started = time.monotonic()
        generations = self.recipe.rollout.generations
        rows = [self.rows[place] for place in row]
        responses = [
            read_response(self.text_tokenizer, prompt, ids, end)
            for prompt, ids, end in zip(prompts, completion_ids, finish, strict=True)
        ]
        items = list(zip(rows, responses, strict=True))
        preferences = None
        if self.preference is not None:
            preferences = self.preference.win_rates(items, generations, [self._wants_preference(one) for one in rows])
        scored = self.scorer.score(items, preferences)
        first = self.accelerator.process_index * len(items)
        self.round = [
            Rollout(
                rows[place],
                prompts[place],
                responses[place],
                sampled_logprobs[place],
                scored[place],
                (first + place) // generations,
                place % generations,
                self.state.global_step + 1,
            )
            for place in range(len(items))
        ]
        self._check_faults()
        self.seconds["score"] = time.monotonic() - started
        return [one.reward for one in scored]

    def _wants_preference(self, row: Row) -> bool:
        is_open = not any(check.role == "score" for check, _ in self.scorer.checks(row))
        return is_open or self.recipe.domains[row["domain"]].reward_model > 0

    def _check_faults(self) -> None:
        """Stop rather than learn from a round in which too many responses could not be judged."""
        unjudged = [rollout for rollout in self.round if rollout.scored.reward is None]
        share, limit = len(unjudged) / len(self.round), self.recipe.limits.fault_share
        if share > limit:
            reasons = {v.reason for rollout in unjudged for v in rollout.scored.verdicts.values() if v.score is None}
            raise UserError(
                f"update {self.state.global_step + 1}: {len(unjudged)} of {len(self.round)} responses could not be "
                f"judged, more than limits.fault_share {limit}. The verifiers say: {'; '.join(sorted(reasons)[:3])}"
            )

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        advantages = batch["advantages"].tolist()
        lines = [rollout_line(rollout, value) for rollout, value in zip(self.round, advantages, strict=True)]
        weights = [self.recipe.domains[rollout.row["domain"]].weight for rollout in self.round]
        batch["advantages"] = batch["advantages"] * batch["advantages"].new_tensor(weights)
        self._write_down(lines)
        return batch

    def _write_down(self, lines: list[Line]) -> None:
        counts = [self.scorer.counts]
        if self.accelerator.num_processes > 1:
            gathered: list[Any] = [None] * self.accelerator.num_processes
            torch.distributed.all_gather_object(gathered, (lines, self.scorer.counts))
            lines = [line for part, _ in gathered for line in part]
            counts = [part for _, part in gathered]
        self.round_summary = summarise_round(lines) | {"verifiers": added(counts)}
        for domain, figures in self.round_summary["domains"].items():
            for name in ("reward", "score", "tokens", "truncated", "faults"):
                if figures[name] is not None:
                    self._metrics["train"][f"{domain}/{name}"].append(figures[name])  # for the trackers
        if self.accelerator.is_main_process:
            write_lines(self.setting.folder.rollouts(self.state.global_step + 1), lines)

    def _round_file(self, checkpoint: Path) -> Path:
        return checkpoint / f"round-{self.accelerator.process_index}.pt"

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As TRL's, and with it a round of rollouts that the next updates still train on: TRL would sample another."""
        super()._save_checkpoint(model, trial)
        if self._step % (int(self.grpo.steps_per_generation or 1) * self.num_iterations):
            left = {"step": self._step, "buffer": self._buffered_inputs, "summary": self.round_summary}
            torch.save(left, self._round_file(self.setting.folder.checkpoints / f"checkpoint-{self.state.global_step}"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self._round_file(Path(checkpoint)).exists():
            left = torch.load(self._round_file(Path(checkpoint)), map_location=self.accelerator.device)
            self._step, self._buffered_inputs, self.round_summary = left["step"], left["buffer"], left["summary"]

    def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        over_all_tokens = (
            self._entropy_bonus_enabled
            or self.aux_loss_enabled
            or self.top_entropy_quantile < 1.0  # a quantile over the tokens of all rows
        )
        if over_all_tokens:
            return super()._compute_loss(model, inputs)  # type: ignore[no-any-return]
        if self.beta == 0.0:
            return super()._compute_loss(model, live_rows(inputs, self.loss_type))  # type: ignore[no-any-return]
        parts = by_length(inputs, self.loss_type, PARTS)
        losses = [share * super(VerifiedGRPOTrainer, self)._compute_loss(model, part) for share, part in parts]
        return torch.stack(losses).sum()

    def details(self, logs: Mapping[str, float]) -> Line:
        """What a metrics line of this stage has besides what every stage's has."""
        now = self.setting.clock.wall_seconds()
        seconds = {**self.seconds, "update": max(0.0, now - self._step_started - sum(self.seconds.values()))}
        self._step_started, self.seconds = now, {}
        return {
            **self.round_summary,  # of the round that the update trained on: several updates may share one
            "kl": logs.get("kl", 0.0),
            "clipped": logs.get("clip_ratio/region_mean"),
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
        }
