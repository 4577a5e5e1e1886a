"""Outcome RL on verified rewards: rounds of rollouts and updates of ours, on the base that TRL's GRPOTrainer is.

From TRL and transformers come the model and its reference, PEFT, DeepSpeed, vLLM, optimiser, schedule and the loop over
updates. Each step of that loop is ours:

    collect a round -> traces -> advantages -> one update or several -> record

What a round is lies in `rounds`, what an update is in `update`, the mathematics in `qwq_rl.objective`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase
from transformers.trainer import Trainer
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import use_adapter

from qwq_rl.clock import Clock
from qwq_rl.errors import UserError
from qwq_rl.objective.advantages import ADVANTAGES, advantages
from qwq_rl.recipes_stages import RlRecipe
from qwq_rl.runfolder import StageFolder, write_lines
from qwq_rl.trainer.forward import logprobs_of
from qwq_rl.trainer.losses import Objective
from qwq_rl.trainer.prepared import Prepared, from_state
from qwq_rl.trainer.rollouts import Line, added, rollout_line, summarise_round
from qwq_rl.trainer.rounds import Collector, Round
from qwq_rl.trainer.tally import Tally
from qwq_rl.trainer.traces import Trace, trace_of
from qwq_rl.trainer.update import Budget, Lesson, run_update


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
        self.recipe, self.objective, self.grpo = recipe, objective, config
        self.folder, self.clock, self.micro_tokens = folder, clock, tokens
        self.collector: Collector
        self.prepared: Prepared | None = None
        self.figures: dict[str, float] = {}
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

    def collect_with(self, collector: Collector) -> None:
        """Set what collects the rounds; it needs this trainer to sample, and so is made after it."""
        self.collector = collector

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One item an update: what an update trains on is drawn when it is due."""
        return DataLoader([{"update": number} for number in range(self.recipe.steps)])  # type: ignore[arg-type]

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Collect a round where one is due, then one update; returns its loss."""
        model.train()
        update, parts = self.state.global_step + 1, self.recipe.update.updates_per_rollout
        if self.prepared is None or update - self.prepared.first >= parts * self.recipe.update.epochs:
            self.prepared = self._prepare(self.collector.collect(update), update)
        lessons = self.prepared.part(update, parts, self.recipe.seed)
        tally = Tally()
        loss = run_update(model, self.accelerator, lessons, self.objective, self._budget(len(lessons)), tally)
        self.figures = tally.reduced(self.accelerator)
        return loss

    def _budget(self, rows: int) -> Budget:
        weights = [self.recipe.domains[name].weight for name in self._domains]
        constant = None
        if self.objective.policy.weights == "constant":
            constant = float(self.recipe.rollout.max_tokens * rows * self.accelerator.num_processes)
        return Budget(self.micro_tokens, torch.tensor(weights), constant)

    @property
    def _domains(self) -> list[str]:
        return sorted(self.recipe.domains)

    def _prepare(self, collected: Round, update: int) -> Prepared:
        self._check_faults(collected, update)
        self.seconds |= collected.seconds
        mask_truncated = self.recipe.rollout.overlong == "mask"
        traces = [
            trace_of(one, self._domains.index(str(one.row["domain"])), mask_truncated) for one in collected.rollouts
        ]
        found = self._advantages(collected)
        reference = self._reference_logprobs(traces)
        before: Sequence[torch.Tensor] = ()
        if self.recipe.update.updates_per_rollout * self.recipe.update.epochs > 1:
            before = self._before(traces)
        lessons = [
            Lesson(trace, advantage, reference=of)
            for trace, advantage, of in zip(traces, found, reference, strict=True)
        ]
        return Prepared(update, lessons, before, self._write_down(collected, lessons, update))

    def _advantages(self, collected: Round) -> list[torch.Tensor]:
        """(1,) of each rollout of this process, compared with those of all."""
        rewards = [[float("nan") if one is None else one for one in of] for _, _, of in collected.outcomes]
        sizes = torch.tensor([len(of) for of in rewards])
        places = torch.tensor([place for place, _, _ in collected.outcomes]).repeat_interleave(sizes)
        domains = torch.tensor([self._domains.index(str(row["domain"])) for _, row, _ in collected.outcomes])
        baseline, scale = ADVANTAGES[self.recipe.algorithm]
        every = advantages(
            torch.tensor([one for of in rewards for one in of], dtype=torch.float64),
            places,
            domains.repeat_interleave(sizes),
            baseline=baseline,
            scale=scale,
        ).float()
        first = {place: at for at, place in reversed(list(enumerate(places.tolist())))}
        return [every[first[one.group] + one.sample].reshape(1) for one in collected.rollouts]

    def _reference_logprobs(self, traces: Sequence[Trace]) -> list[torch.Tensor | None]:
        if not self.objective.kl:
            return [None] * len(traces)
        started = time.monotonic()
        with self._reference() as model:
            found = logprobs_of(model, traces, self.micro_tokens, self.accelerator)
        self.seconds["reference"] = time.monotonic() - started
        return list(found)

    def _reference(self) -> AbstractContextManager[Any]:
        """The model that the KL term keeps the policy near; with LoRA, the policy without its adapter."""
        if self.ref_model is not None:
            return nullcontext(self.ref_model)
        return _without_adapter(self.accelerator.unwrap_model(self.model), self.model)

    def _before(self, traces: Sequence[Trace]) -> list[torch.Tensor]:
        """Log-probabilities under the policy that sampled: its own, where our decoder gave them."""
        if not any(bool(trace.sampled.isnan().any()) for trace in traces) and not self.use_vllm:
            return [trace.sampled for trace in traces]
        return logprobs_of(self.model, traces, self.micro_tokens, self.accelerator)

    def _check_faults(self, collected: Round, update: int) -> None:
        """Stop rather than learn from a round in which too many responses could not be judged; all processes agree."""
        rewards = [reward for _, _, of in collected.outcomes for reward in of]
        unjudged, limit = sum(reward is None for reward in rewards), self.recipe.limits.fault_share
        if unjudged > limit * len(rewards):
            own = [one for one in collected.rollouts if one.scored.reward is None]
            reasons = {v.reason for one in own for v in one.scored.verdicts.values() if v.score is None}
            said = f" The verifiers say: {'; '.join(sorted(reasons)[:3])}" if reasons else ""
            raise UserError(
                f"update {update}: {unjudged} of {len(rewards)} responses could not be judged, more than "
                f"limits.fault_share {limit}.{said}"
            )

    def _write_down(self, collected: Round, lessons: Sequence[Lesson], update: int) -> Line:
        """Record the rollouts of all processes; returns what the metrics say of them."""
        lines = [
            rollout_line(rollout, float(lesson.advantage.mean()))
            for rollout, lesson in zip(collected.rollouts, lessons, strict=True)
        ]
        counts = [self.collector.scorer.counts]
        if self.accelerator.num_processes > 1:
            gathered: list[Any] = [None] * self.accelerator.num_processes
            torch.distributed.all_gather_object(gathered, (lines, counts[0]))
            lines = sorted((one for part, _ in gathered for one in part), key=lambda one: (one["group"], one["sample"]))
            counts = [part for _, part in gathered]
        summary = summarise_round(lines) | {"verifiers": added(counts)}
        summary["groups"]["sampled"] = collected.sampled
        for domain, figures in summary["domains"].items():
            for name in ("reward", "score", "tokens", "truncated", "faults"):
                if figures[name] is not None:
                    self._metrics["train"][f"{domain}/{name}"].append(figures[name])  # for the trackers
        if self.accelerator.is_main_process:
            write_lines(self.folder.rollouts(update), lines)
        return summary

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As transformers', with what our steps need to go on exactly; whole when the last process is through."""
        Trainer._save_checkpoint(self, model, trial)
        place = self.folder.checkpoints / f"checkpoint-{self.state.global_step}"
        torch.save(self._state(), place / f"rounds-{self.accelerator.process_index}.pt")
        self.accelerator.wait_for_everyone()

    def _state(self) -> dict[str, Any]:
        return {
            "world": self.accelerator.num_processes,
            "prepared": self.prepared.state() if self.prepared is not None and self._is_within_a_round() else None,
            "source": self.collector.source.state_dict(),
        }

    def _is_within_a_round(self) -> bool:
        done = self.state.global_step - (self.prepared.first - 1 if self.prepared else 0)
        return 0 < done < self.recipe.update.updates_per_rollout * self.recipe.update.epochs

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
                f"{checkpoint} was saved by {state['world']} processes in the middle of a round, which "
                f"{self.accelerator.num_processes} cannot go on with: start as many as then, or resume from a checkpoint "
                "between rounds (checkpoint.every a multiple of update.updates_per_rollout * update.epochs)"
            )
        self.prepared = from_state(state["prepared"]) if state["prepared"] is not None else None
        self.collector.source.load_state_dict(state["source"])

    def details(self, logs: Mapping[str, float]) -> Line:
        """What a metrics line of this stage has besides what every stage's has."""
        now = self.clock.wall_seconds()
        seconds = {**self.seconds, "update": max(0.0, now - self._step_started - sum(self.seconds.values()))}
        self._step_started, self.seconds = now, {}
        tokens = max(1.0, self.figures.get("tokens", 0.0))
        line = dict(self.prepared.summary) if self.prepared else {}  # several updates may share a round
        line |= {"kl": self.figures.get("kl", 0.0) / tokens, "clipped": self.figures.get("clipped", 0.0) / tokens}
        if "gap" in self.figures:
            line["gap"] = {"mean": self.figures["gap"] / tokens, "max": self.figures["gap_max"]}
        return line | {"seconds": {name: round(value, 4) for name, value in seconds.items()}}


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
