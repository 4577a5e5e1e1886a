"""Outcome RL on verified rewards: rounds of rollouts and updates of ours, on the base that TRL's GRPOTrainer is.

From TRL and transformers come the model and its reference, PEFT, DeepSpeed, vLLM, optimiser, schedule and the loop over
updates. Each step of that loop is ours:

    collect a round -> training samples -> advantages -> one update or several -> record

`rollouts.collect` says what a round is, `training.update` what an update is, `algorithms` has the mathematics.
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
    """See the module's docstring."""

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
        """`tokens`: padded tokens of a micro-batch. Call `collect_with` before training.

        `shares_prompts` says of an unwrapped model whether it reads the prompts that a batch names only once each;
        `sampled_elsewhere`, that another engine than our own decoder samples, whose log-probabilities are not quite
        the trainer's.
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
        """(group, sample) -> log-probabilities (L - 1,) under the reference, of the round that is being collected."""
        self.seconds: dict[str, float] = {}
        # The stage's clock stands still while it evaluates, which is no part of an update.
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
        """Set what collects the rounds and the critic, which both are made after this trainer and use it."""
        self.collector, self.critic = collector, critic

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One item an update: what an update trains on is drawn when it is due."""
        return DataLoader([{"update": number} for number in range(self.recipe.steps)])  # type: ignore[arg-type]

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Collect a round where one is due, then one update; returns its loss."""
        model.train()
        update, parts = self.state.global_step + 1, self.recipe.update.updates_per_rollout
        # A round serves several updates where the recipe says so; each of its samples is then old by some updates.
        if self.round_batch is None or update - self.round_batch.first >= self.recipe.update.of_a_round:
            # Of the last round; it must not be mixed with what is sampled now.
            self._references = {}
            # The reference is asked while verifiers run: they mostly wait for other processes.
            collected = self.collector.collect(update, self._ask_reference)
            self.round_batch = self._round_batch(collected, update)
        samples = self.round_batch.part(update, parts, self.recipe.seed)
        # Leaves the gradients in the model. The optimiser's step is transformers', after `_clip_grad_norm`.
        share = self._shares_prompts(self.accelerator.unwrap_model(model))
        loss, sums = run_update(model, self.accelerator, samples, self.objective, self._budget(), share)
        # Processes exchange their sums here, once: the safeguards below must see the same figures in all of them.
        self.update_sums = sums.reduced(self.accelerator)
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        """As transformers', and the last moment at which a harmful update can be left out."""
        norm = super()._clip_grad_norm(model)
        update = self.state.global_step + 1
        if self.safeguards.before_step(update, float(norm), self.update_sums["loss"]) == "skip":
            if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
                raise LimitReached(
                    f"update {update}: the gradient's norm is {float(norm):.4g}, and DeepSpeed has applied it already. "
                    "The last checkpoint is from before: lower update.lr or update.gradient_clip, and start again"
                )
            model.zero_grad(set_to_none=True)  # the optimiser passes over what has no gradient
        self.events += self.safeguards.after_update({"update": update, **self._means_per_token()})
        return norm

    def _budget(self) -> Budget:
        weights = [self.recipe.domains[name].weight for name in self._domains]
        # Dr. GRPO divides by the longest response that is allowed, whatever the length of those that came.
        constant = float(self.recipe.rollout.max_tokens) if self.objective.algorithm.weights == "constant" else None
        return Budget(self.micro_tokens, torch.tensor(weights), constant)

    def _round_batch(self, collected: Round, update: int) -> RoundBatch:
        """The rollouts of this process with all that their updates need; recorded before anything is learned."""
        self.seconds |= collected.seconds
        samples = [self._training_sample(rollout) for rollout in collected.rollouts]
        advantages, critic_figures = self._advantages(collected, samples, update)
        # Only a round of several updates needs to know what the policy was before the first of them.
        old = self._old_logprobs(samples) if self.recipe.update.of_a_round > 1 else ()
        samples = [
            replace(sample, advantage=advantage, reference=self._references.get((rollout.group, rollout.sample)))
            for sample, advantage, rollout in zip(samples, advantages, collected.rollouts, strict=True)
        ]
        summary = self._record(collected, samples, update)
        summary |= {"critic": critic_figures} if critic_figures else {}
        return RoundBatch(update, samples, collected.places(), collected.total, old, summary)

    def _training_sample(self, rollout: Rollout) -> TrainingSample:
        """What cannot be judged is not trained on, nor what was cut off where the recipe says so."""
        cut_off = self.recipe.rollout.overlong == "mask" and rollout.response.finish == "length"
        counts = rollout.scored.reward is not None and not cut_off
        return training_sample(rollout, self._domains.index(str(rollout.row["domain"])), counts)

    def _advantages(
        self, collected: Round, samples: Sequence[TrainingSample], update: int
    ) -> tuple[list[torch.Tensor], dict[str, float | None]]:
        """The advantage of each rollout of this process, and the critic's figures where there is one."""
        if self.critic is None or self.recipe.critic is None:
            return group_advantages(collected, self.recipe.algorithm, self._domains), {}
        started = time.monotonic()
        seed = self.recipe.seed * 1_000_003 + update
        found = critic_advantages(collected, samples, self.critic, self.recipe.critic, seed)
        self.seconds["critic"] = time.monotonic() - started
        return found

    def _ask_reference(self, sampled: Sequence[Sampled]) -> None:
        """Ask the reference for its log-probabilities, while the samples are scored."""
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
        """The model that the KL term keeps the policy near; with LoRA, the policy without its adapter."""
        if self.ref_model is not None:
            return nullcontext(self.ref_model)
        return _without_adapter(self.accelerator.unwrap_model(self.model), self.model)

    def _old_logprobs(self, samples: Sequence[TrainingSample]) -> list[torch.Tensor]:
        """Log-probabilities under the policy that sampled: its own, where our decoder gave them."""
        unknown = any(bool(sample.sampled.isnan().any()) for sample in samples)
        if not any(gather_object([unknown])) and not self._sampled_elsewhere:
            return [sample.sampled for sample in samples]
        return self._logprobs(self.model, samples)

    def _logprobs(self, model: Any, samples: Sequence[TrainingSample]) -> list[torch.Tensor]:
        share = self._shares_prompts(self.accelerator.unwrap_model(model))
        return logprobs_of(model, samples, self.micro_tokens, self.accelerator, share)

    def _record(self, collected: Round, samples: Sequence[TrainingSample], update: int) -> Line:
        """Record the rollouts of all processes; returns what the metrics say of them."""
        lines = [
            rollout_line(rollout, float(sample.advantage.mean()))
            for rollout, sample in zip(collected.rollouts, samples, strict=True)
        ]
        rows = {str(outcome.row["id"]): outcome.row for outcome in collected.outcomes}
        path = self.folder.rollouts(update)
        # Also asks the safeguards, which may stop the stage here: on a round that teaches nothing or teaches wrongly.
        summary, events = record_round(path, lines, collected.counts, collected.sampled, self.safeguards, rows)
        self.events += events
        for domain, figures in summary["domains"].items():
            for name in ("reward", "score", "tokens", "truncated", "faults"):
                if figures[name] is not None:
                    self._metrics["train"][f"{domain}/{name}"].append(figures[name])  # for the trackers
        return summary

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As transformers', with what our steps need to go on exactly; whole when the last process is through."""
        Trainer._save_checkpoint(self, model, trial)
        place = self.folder.checkpoints / f"checkpoint-{self.state.global_step}"
        torch.save(self._state(), place / f"rounds-{self.accelerator.process_index}.pt")
        if self.critic is not None:
            self.critic.save(place / "critic")
        self.accelerator.wait_for_everyone()
        oldest = next(iter(whole(self.folder)), None)
        if oldest is not None:
            # No checkpoint is left from which the verdicts of earlier updates could be asked for again.
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
        place = Path(checkpoint) / f"rounds-{self.accelerator.process_index}.pt"
        if not place.exists():
            place = place.with_name("rounds-0.pt")
        state = torch.load(place, map_location="cpu", weights_only=True)
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
        """What a metrics line of this stage has besides what every stage's has."""
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
    """TRL wants a reward function; rewards are the collector's."""
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
