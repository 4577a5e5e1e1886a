"""The trainer of the policy: RL on verified rewards, with our own rounds of rollouts and updates in TRL's GRPOTrainer.

TRL and transformers provide the model and its reference, PEFT, DeepSpeed, vLLM, the optimiser, its schedule and the
loop over updates. Each step of that loop is ours:

    collect a round -> training samples -> advantages -> record -> one update or several

`rollouts.collect` collects a round, `training.update` computes an update, `algorithms` has the mathematics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType, gather_object
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase
from transformers.trainer import Trainer
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import use_adapter

from qwq_rl.errors import UserError
from qwq_rl.rollouts.rollout import Rollout, Sampled, rollout_line
from qwq_rl.run_folder.checkpoints import update_of, whole
from qwq_rl.training.micro_batch import TrainingSample, logprobs_of, training_sample
from qwq_rl.training.record_round import record_round
from qwq_rl.training.round_batch import RoundBatch, critic_advantages, from_state, group_advantages
from qwq_rl.training.safeguards import Event, LimitReached, Safeguards
from qwq_rl.training.update import Budget, Objective, run_update

if TYPE_CHECKING:
    from qwq_rl.config.stages import RlRecipe
    from qwq_rl.rollouts.collect import Collector, Round
    from qwq_rl.rollouts.rollout import Line
    from qwq_rl.run_folder.files import StageFolder
    from qwq_rl.training.clock import Clock
    from qwq_rl.training.critic import Critic


class PolicyTrainer(GRPOTrainer):
    """See the module's docstring. Read `training_step` first."""

    def __init__(
        self,
        recipe: RlRecipe,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        config: GRPOConfig,
        objective: Objective,
        tokens: int,
        folder: StageFolder,
        clock: Clock,
        shares_prompts: Callable[[Any], bool],
        sampled_elsewhere: bool,
        peft_config: Any = None,
    ) -> None:
        """`tokens`: tokens of a micro-batch, with padding. Call `collect_with` before training.

        `shares_prompts` tells whether an unwrapped model computes each prompt of a batch only once.
        `sampled_elsewhere`: the samples come from another engine than our own decoder, and its log-probabilities differ
        slightly from the trainer's.
        """
        self.recipe = recipe
        self.objective: Objective = objective
        self._domains = sorted(recipe.domains)
        self.folder, self.clock, self.micro_tokens = folder, clock, tokens
        self._shares_prompts, self._sampled_elsewhere = shares_prompts, sampled_elsewhere
        self.collector: Collector
        self.critic: Critic | None = None
        self.safeguards = Safeguards(recipe.limits)
        self.events: list[Event] = []
        self.round_batch: RoundBatch | None = None
        self.update_sums: dict[str, float] = {}
        """Sums over the tokens of the last update: `loss`, `tokens`, `kl`, `clipped`, `gap`; and `gap_max`."""
        self._references: dict[tuple[int, int], torch.Tensor] = {}
        """(group, sample) -> log-probabilities (L - 1,) under the reference, for the round that is being collected."""
        self.seconds: dict[str, float] = {}
        # The stage's clock is paused during evaluation, so an update's time does not include it.
        self._step_started = clock.wall_seconds()
        super().__init__(
            model=model,
            reward_funcs=_no_reward,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": ""}]),  # TRL wants one; ours is the prompt source
            processing_class=tokenizer,
            peft_config=peft_config,
        )

    def collect_with(self, collector: Collector, critic: Critic | None) -> None:
        """Set the collector of rounds and the critic. Both are made after this trainer, since they use it."""
        self.collector, self.critic = collector, critic

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One item per update, without data: an update's prompts are drawn when it begins."""
        return DataLoader([{"update": number} for number in range(self.recipe.steps)])  # type: ignore[arg-type]

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Collect a round if the last one is used up, then run one update. Returns its loss."""
        model.train()
        update, parts = self.state.global_step + 1, self.recipe.update.updates_per_rollout
        # A recipe may use a round for several updates. The policy has then changed since the samples were drawn.
        if self.round_batch is None or update - self.round_batch.first >= self.recipe.update.of_a_round:
            # These belong to the last round; the same (group, sample) may come again in this one.
            self._references = {}
            # The reference computes while the verifiers run, which mostly wait for other processes.
            collected = self.collector.collect(update, self._ask_reference)
            self.round_batch = self._round_batch(collected, update)
        samples = self.round_batch.part(update, parts, self.recipe.seed)
        # The gradients stay in the model. Transformers calls `_clip_grad_norm`, then the optimiser's step.
        share = self._shares(model)
        loss, sums = run_update(model, self.accelerator, samples, self.objective, self._budget(), share)
        # The only exchange of these sums between processes. The safeguards need the same figures in all of them.
        self.update_sums = sums.reduced(self.accelerator)
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clip as transformers does. It is also the last moment at which a harmful update can be skipped."""
        norm = super()._clip_grad_norm(model)
        update = self.state.global_step + 1
        if self.safeguards.before_step(update, float(norm), self.update_sums["loss"]) == "skip":
            if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
                raise LimitReached(
                    f"update {update}: the gradient's norm is {float(norm):.4g}, and DeepSpeed has applied it already. "
                    "The last checkpoint is from before: lower update.lr or update.gradient_clip, and start again"
                )
            model.zero_grad(set_to_none=True)  # the optimiser skips weights without a gradient
        self.events += self.safeguards.after_update({"update": update, **self._means_per_token()})
        return norm

    def _budget(self) -> Budget:
        weights = [self.recipe.domains[name].weight for name in self._domains]
        # Dr. GRPO divides by the longest response that is allowed, not by the length of a response.
        constant = float(self.recipe.rollout.max_tokens) if self.objective.algorithm.weights == "constant" else None
        return Budget(self.micro_tokens, torch.tensor(weights), constant)

    def _round_batch(self, collected: Round, update: int) -> RoundBatch:
        """The rollouts of this process with all that their updates need. They are recorded before the first update."""
        self.seconds |= collected.seconds
        samples = [self._training_sample(rollout) for rollout in collected.rollouts]
        advantages, critic_figures = self._advantages(collected, samples, update)
        # Only a round with several updates needs the log-probabilities from before the first one.
        old = self._old_logprobs(samples) if self.recipe.update.of_a_round > 1 else ()
        samples = [
            replace(sample, advantage=advantage, reference=self._references.get((rollout.group, rollout.sample)))
            for sample, advantage, rollout in zip(samples, advantages, collected.rollouts, strict=True)
        ]
        summary = self._record(collected, samples, update)
        summary |= {"critic": critic_figures} if critic_figures else {}
        return RoundBatch(update, samples, collected.places(), collected.total, old, summary)

    def _training_sample(self, rollout: Rollout) -> TrainingSample:
        """A rollout without a reward is not trained on; neither is one that was cut off, if the recipe says so."""
        cut_off = self.recipe.rollout.overlong == "mask" and rollout.response.finish == "length"
        counts = rollout.scored.reward is not None and not cut_off
        return training_sample(rollout, self._domains.index(str(rollout.row["domain"])), counts)

    def _advantages(
        self, collected: Round, samples: Sequence[TrainingSample], update: int
    ) -> tuple[list[torch.Tensor], dict[str, float | None]]:
        """The advantage of each rollout of this process, and the critic's figures if there is a critic."""
        if self.critic is None or self.recipe.critic is None:
            return group_advantages(collected, self.recipe.algorithm, self._domains), {}
        started = time.monotonic()
        seed = self.recipe.seed * 1_000_003 + update
        result = critic_advantages(collected, samples, self.critic, self.recipe.critic, seed)
        self.seconds["critic"] = time.monotonic() - started
        return result

    def _ask_reference(self, sampled: Sequence[Sampled]) -> None:
        """Compute the reference's log-probabilities, while the samples are scored."""
        if not self.objective.kl:
            return
        started = time.monotonic()
        samples = [training_sample(rollout, 0, True) for rollout in sampled]
        with self._reference() as model:
            logprobs = self._logprobs(model, samples)
        keys = [(rollout.group, rollout.sample) for rollout in sampled]
        self._references |= dict(zip(keys, logprobs, strict=True))
        self.seconds["reference"] = self.seconds.get("reference", 0.0) + time.monotonic() - started

    def _reference(self) -> AbstractContextManager[Any]:
        """The reference of the KL term. With LoRA it is the policy without its adapter."""
        if self.ref_model is not None:
            return nullcontext(self.ref_model)
        return _without_adapter(self.accelerator.unwrap_model(self.model), self.model)

    def _old_logprobs(self, samples: Sequence[TrainingSample]) -> list[torch.Tensor]:
        """Log-probabilities under the policy that sampled: those of our decoder if it gave them, else computed here."""
        any_missing = any(bool(sample.sampled.isnan().any()) for sample in samples)
        if not any(gather_object([any_missing])) and not self._sampled_elsewhere:
            return [sample.sampled for sample in samples]
        return self._logprobs(self.model, samples)

    def _logprobs(self, model: Any, samples: Sequence[TrainingSample]) -> list[torch.Tensor]:
        return logprobs_of(model, samples, self.micro_tokens, self.accelerator, self._shares(model))

    def _shares(self, model: Any) -> bool:
        """Whether `model`, wrapped as it trains, reads the prompts that a batch names only once each."""
        return self._shares_prompts(self.accelerator.unwrap_model(model))

    def _record(self, collected: Round, samples: Sequence[TrainingSample], update: int) -> Line:
        """Record the rollouts of all processes. Returns their summary for the metrics."""
        lines = [
            rollout_line(rollout, float(sample.advantage.mean()))
            for rollout, sample in zip(collected.rollouts, samples, strict=True)
        ]
        rows = {str(outcome.row["id"]): outcome.row for outcome in collected.outcomes}
        path = self.folder.rollouts(update)
        # It also asks the safeguards, which may stop the stage here if the round is useless or harmful.
        summary, events = record_round(path, lines, collected.counts, collected.sampled, self.safeguards, rows)
        self.events += events
        for domain, figures in summary["domains"].items():
            for name in ("reward", "score", "tokens", "truncated", "faults"):
                if figures[name] is not None:
                    self._metrics["train"][f"{domain}/{name}"].append(figures[name])  # for the trackers
        return summary

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save as transformers does, with the state of our own steps. It is complete when all processes are done."""
        Trainer._save_checkpoint(self, model, trial)
        folder = self.folder.checkpoints / f"checkpoint-{self.state.global_step}"
        torch.save(self._state(), folder / f"rounds-{self.accelerator.process_index}.pt")
        if self.critic is not None:
            self.critic.save(folder / "critic")
        self.accelerator.wait_for_everyone()
        oldest = next(iter(whole(self.folder)), None)
        if oldest is not None:
            # A stage can only go on from a checkpoint that still exists, so it never needs older verdicts again.
            self.collector.scorer.verdict_log.trim(update_of(oldest) + 1)

    def _state(self) -> dict[str, Any]:
        within = self.round_batch is not None and self._is_within_a_round()
        return {
            "world": self.accelerator.num_processes,
            "round_batch": self.round_batch.state() if self.round_batch is not None and within else None,
            "source": self.collector.source.state_dict(),
            "safeguards": self.safeguards.state_dict(),
        }

    def _is_within_a_round(self) -> bool:
        done = self.state.global_step - (self.round_batch.first - 1 if self.round_batch else 0)
        return 0 < done < self.recipe.update.of_a_round

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / f"rounds-{self.accelerator.process_index}.pt"
        # With more processes than before, new ranks take the state of rank 0, of which all but the round is common.
        if not path.exists():
            path = path.with_name("rounds-0.pt")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["world"] != self.accelerator.num_processes and state["round_batch"] is not None:
            raise UserError(
                f"{checkpoint} was saved by {state['world']} processes in the middle of a round, and "
                f"{self.accelerator.num_processes} cannot go on with it: start as many as then, or save between rounds "
                "(checkpoint.every a multiple of update.updates_per_rollout * update.epochs)"
            )
        self.round_batch = from_state(state["round_batch"]) if state["round_batch"] is not None else None
        self.collector.source.load_state_dict(state["source"])
        self.safeguards.load_state_dict(state["safeguards"])
        if self.critic is not None:
            self.critic.load(Path(checkpoint) / "critic")

    def details(self, logs: Mapping[str, float]) -> Line:
        """The part of a metrics line that only this kind of stage has."""
        now = self.clock.wall_seconds()
        seconds = {**self.seconds, "update": max(0.0, now - self._step_started - sum(self.seconds.values()))}
        self._step_started, self.seconds = now, {}
        line = dict(self.round_batch.summary) if self.round_batch else {}  # several updates may share a round
        line |= self._means_per_token()
        if self.safeguards.skipped:
            line["skipped"] = self.safeguards.skipped
        if self.events:
            line["events"] = [event.line() for event in self.events]
            self.events = []
        return line | {"seconds": {name: round(value, 4) for name, value in seconds.items()}}

    def _means_per_token(self) -> Line:
        sums = self.update_sums
        tokens = max(1.0, sums.get("tokens", 0.0))
        line: Line = {name: sums.get(name, 0.0) / tokens for name in ("kl", "clipped")}
        if "gap" in sums:
            line["gap"] = {"mean": sums["gap"] / tokens, "max": sums["gap_max"]}
        return line


def _no_reward(**columns: Any) -> list[float | None]:
    """TRL requires a reward function. It is never called: the collector scores."""
    raise AssertionError("the collector scores")


class _without_adapter(AbstractContextManager[Any]):
    """The wrapped policy with its LoRA adapter switched off."""

    def __init__(self, unwrapped: Any, wrapped: Any) -> None:
        name = "ref" if "ref" in unwrapped.peft_config else None
        self._switch, self._wrapped = use_adapter(unwrapped, adapter_name=name), wrapped

    def __enter__(self) -> Any:
        self._switch.__enter__()
        return self._wrapped

    def __exit__(self, *error: Any) -> None:
        self._switch.__exit__(*error)
