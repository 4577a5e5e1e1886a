"""Outcome RL on verified rewards: rounds of rollouts and updates of ours, on the base that TRL's GRPOTrainer is.

From TRL and transformers come the model and its reference, PEFT, DeepSpeed, vLLM, optimiser, schedule and the loop over
updates. Each step of that loop is ours:

    collect a round -> traces -> advantages -> one update or several -> record

What a round is lies in `rounds`, what an update is in `update`, the mathematics in `qwq_rl.algorithms`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase
from transformers.trainer import Trainer
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import use_adapter

from qwq_rl.config.stages import RlRecipe, by_another
from qwq_rl.errors import UserError
from qwq_rl.rollouts.collect import Collector, Round
from qwq_rl.rollouts.rollout import Line, Rollout, Sampled, rollout_line
from qwq_rl.run_folder.checkpoints import update_of, whole
from qwq_rl.run_folder.files import StageFolder
from qwq_rl.training.clock import Clock
from qwq_rl.training.critic import Critic
from qwq_rl.training.micro_batch import Trace, logprobs_of, trace_of
from qwq_rl.training.record_round import write_down
from qwq_rl.training.round_batch import RoundBatch, critic_advantages, from_state, group_advantages
from qwq_rl.training.safeguards import Event, LimitReached, Safeguards
from qwq_rl.training.update import Budget, Lesson, MetricSums, Objective, run_update


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
        peft_config: Any = None,
    ) -> None:
        """`tokens`: padded tokens of a micro-batch. Call `collect_with` before training."""
        self.recipe, self.grpo = recipe, config
        self.objective: Objective = objective
        self._domains = sorted(recipe.domains)
        self.folder, self.clock, self.micro_tokens = folder, clock, tokens
        self.collector: Collector
        self.critic: Critic | None = None
        self.rails = Safeguards(recipe.limits)
        self.events: list[Event] = []
        self.prepared: RoundBatch | None = None
        self.figures: dict[str, float] = {}
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
        if self.prepared is None or update - self.prepared.first >= self.recipe.update.of_a_round:
            self._references = {}
            self.prepared = self._prepare(self.collector.collect(update, self._refer), update)
        lessons = self.prepared.part(update, parts, self.recipe.seed)
        tally = MetricSums()
        loss = run_update(model, self.accelerator, lessons, self.objective, self._budget(), tally)
        tally.add("loss", loss / self.accelerator.num_processes)
        self.figures = tally.reduced(self.accelerator)
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        """As transformers', and the last moment at which a harmful update can be left out."""
        norm = super()._clip_grad_norm(model)
        update = self.state.global_step + 1
        if self.rails.before_step(update, float(norm), self.figures["loss"]) == "skip":
            if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
                raise LimitReached(
                    f"update {update}: the gradient's norm is {float(norm):.4g}, and DeepSpeed has applied it already. "
                    "The last checkpoint is from before: lower update.lr or update.gradient_clip, and start again"
                )
            model.zero_grad(set_to_none=True)  # the optimiser passes over what has no gradient
        self.events += self.rails.after_update({"update": update, **self._per_token()})
        return norm

    def _budget(self) -> Budget:
        weights = [self.recipe.domains[name].weight for name in self._domains]
        constant = float(self.recipe.rollout.max_tokens) if self.objective.algorithm.weights == "constant" else None
        return Budget(self.micro_tokens, torch.tensor(weights), constant)

    def _prepare(self, collected: Round, update: int) -> RoundBatch:
        self.seconds |= collected.seconds
        traces = [self._trace(one) for one in collected.rollouts]
        found, figures = self._advantages(collected, traces, update)
        reference = [self._references.get((one.group, one.sample)) for one in collected.rollouts]
        before: Sequence[torch.Tensor] = ()
        if self.recipe.update.of_a_round > 1:
            before = self._before(traces)
        lessons = [
            Lesson(trace, advantage, reference=of)
            for trace, advantage, of in zip(traces, found, reference, strict=True)
        ]
        summary = self._write_down(collected, lessons, update)
        summary |= {"critic": figures} if figures else {}
        return RoundBatch(update, lessons, collected.places(), collected.total, before, summary)

    def _trace(self, rollout: Rollout) -> Trace:
        """What cannot be judged is not trained on, nor what was cut off where the recipe says so."""
        cut_off = self.recipe.rollout.overlong == "mask" and rollout.response.finish == "length"
        counts = rollout.scored.reward is not None and not cut_off
        return trace_of(rollout, self._domains.index(str(rollout.row["domain"])), counts)

    def _advantages(
        self, collected: Round, traces: Sequence[Trace], update: int
    ) -> tuple[list[torch.Tensor], dict[str, float | None]]:
        if self.critic is None or self.recipe.critic is None:
            return group_advantages(collected, self.recipe.algorithm, self._domains), {}
        started = time.monotonic()
        found = critic_advantages(
            collected, traces, self.critic, self.recipe.critic, self.recipe.seed * 1_000_003 + update
        )
        self.seconds["critic"] = time.monotonic() - started
        return found

    def _refer(self, samples: Sequence[Sampled]) -> None:
        """Ask the reference for its log-probabilities, while the samples are scored."""
        if not self.objective.kl:
            return
        started = time.monotonic()
        traces = [trace_of(one, 0, True) for one in samples]
        with self._reference() as model:
            found = logprobs_of(model, traces, self.micro_tokens, self.accelerator)
        self._references |= {(one.group, one.sample): of for one, of in zip(samples, found, strict=True)}
        self.seconds["reference"] = self.seconds.get("reference", 0.0) + time.monotonic() - started

    def _reference(self) -> AbstractContextManager[Any]:
        """The model that the KL term keeps the policy near; with LoRA, the policy without its adapter."""
        if self.ref_model is not None:
            return nullcontext(self.ref_model)
        return _without_adapter(self.accelerator.unwrap_model(self.model), self.model)

    def _before(self, traces: Sequence[Trace]) -> list[torch.Tensor]:
        """Log-probabilities under the policy that sampled: its own, where our decoder gave them."""
        unknown = any(bool(trace.sampled.isnan().any()) for trace in traces)
        if not any(gather_object([unknown])) and not by_another(self.recipe):
            return [trace.sampled for trace in traces]
        return logprobs_of(self.model, traces, self.micro_tokens, self.accelerator)

    def _write_down(self, collected: Round, lessons: Sequence[Lesson], update: int) -> Line:
        """Record the rollouts of all processes; returns what the metrics say of them."""
        lines = [
            rollout_line(rollout, float(lesson.advantage.mean()))
            for rollout, lesson in zip(collected.rollouts, lessons, strict=True)
        ]
        rows = {str(row["id"]): row for _, row, _ in collected.outcomes}
        place = self.folder.rollouts(update)
        summary, events = write_down(place, lines, collected.counts, collected.sampled, self.rails, rows)
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
            self.collector.judge.journal.trim(update_of(oldest) + 1)

    def _state(self) -> dict[str, Any]:
        return {
            "world": self.accelerator.num_processes,
            "prepared": self.prepared.state() if self.prepared is not None and self._is_within_a_round() else None,
            "source": self.collector.source.state_dict(),
            "rails": self.rails.state_dict(),
        }

    def _is_within_a_round(self) -> bool:
        done = self.state.global_step - (self.prepared.first - 1 if self.prepared else 0)
        return 0 < done < self.recipe.update.of_a_round

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        place = Path(checkpoint) / f"rounds-{self.accelerator.process_index}.pt"
        if not place.exists():
            place = place.with_name("rounds-0.pt")
        state = torch.load(place, map_location="cpu", weights_only=True)
        if state["world"] != self.accelerator.num_processes and state["prepared"] is not None:
            raise UserError(
                f"{checkpoint} was saved by {state['world']} processes in the middle of a round, and "
                f"{self.accelerator.num_processes} cannot go on with it: start as many as then, or save between rounds "
                "(checkpoint.every a multiple of update.updates_per_rollout * update.epochs)"
            )
        self.prepared = from_state(state["prepared"]) if state["prepared"] is not None else None
        self.collector.source.load_state_dict(state["source"])
        self.rails.load_state_dict(state["rails"])
        if self.critic is not None:
            self.critic.load(Path(checkpoint) / "critic")

    def details(self, logs: Mapping[str, float]) -> Line:
        """What a metrics line of this stage has besides what every stage's has."""
        now = self.clock.wall_seconds()
        seconds = {**self.seconds, "update": max(0.0, now - self._step_started - sum(self.seconds.values()))}
        self._step_started, self.seconds = now, {}
        line = dict(self.prepared.summary) if self.prepared else {}  # several updates may share a round
        line |= self._per_token()
        if self.rails.skipped:
            line["skipped"] = self.rails.skipped
        if self.events:
            line["events"] = [event.line() for event in self.events]
            self.events = []
        return line | {"seconds": {name: round(value, 4) for name, value in seconds.items()}}

    def _per_token(self) -> Line:
        tokens = max(1.0, self.figures.get("tokens", 0.0))
        line: Line = {name: self.figures.get(name, 0.0) / tokens for name in ("kl", "clipped")}
        if "gap" in self.figures:
            line["gap"] = {"mean": self.figures["gap"] / tokens, "max": self.figures["gap_max"]}
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
