"""One update by stock `trl.GRPOTrainer` and one by ours, of the same model on the same completions and advantages.

Generation and scoring are no part of it: both get the tokens ready. What is timed is forward, backward, the gradient's
norm and a step of AdamW with learning rate 0, so that every update does the same work on the same weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from datasets import Dataset
from random_models import MIDDLE, TINY, Shape, random_qwen
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from qwq_rl.algorithms.losses import Clip
from qwq_rl.algorithms.named import ALGORITHMS
from qwq_rl.data.tiny.model import build_tokenizer
from qwq_rl.inference.fast_qwen.training_head import shares_prompts, use_compact_head
from qwq_rl.stages.rl import TOKENS_ON_CPU
from qwq_rl.training.micro_batch import TrainingSample
from qwq_rl.training.update import Budget, Objective, run_update

LONGEST = 256
"""Tokens of the longest completion."""
MEAN = 50.0
"""Tokens of a completion on average, before the longest are cut."""
SAMPLES = 8
"""Completions a prompt."""
LOW, HIGH = 0.2, 0.28


@dataclass(frozen=True)
class Case:
    """A model and how many prompts an update has."""

    shape: Shape
    prompts: int


CASES = {
    "tiny": Case(TINY, prompts=16),
    "3M": Case(MIDDLE, prompts=8),
}


@dataclass(frozen=True)
class Rollouts:
    """Completions of one update, `SAMPLES` a prompt in a row; half of the prompts have equal rewards only."""

    prompts: list[list[int]]
    completions: list[list[int]]
    rewards: list[float]

    @property
    def tokens(self) -> int:
        """How many tokens all completions have."""
        return sum(map(len, self.completions))


class Side(Protocol):
    """One of the two."""

    def update(self) -> float:
        """One whole update; returns the norm of its gradient."""
        ...


def build_model(case: Case, tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """The case's model in float32; the same weights at each call."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    return random_qwen(case.shape, len(tokenizer), end=end, pad=pad)


def make_rollouts(case: Case, tokenizer: PreTrainedTokenizerBase, seed: int) -> Rollouts:
    """Random tokens; prompts of 20 to 30, completions of exponential length, of which the longest has `LONGEST`."""
    noise = torch.Generator().manual_seed(seed)
    count = case.prompts * SAMPLES
    lengths = torch.empty(count).exponential_(1 / MEAN, generator=noise).round().clamp(2, LONGEST)
    lengths[lengths.argmax()] = LONGEST
    ordinary = [number for number in range(len(tokenizer)) if number not in set(tokenizer.all_special_ids)]

    def written(length: int) -> list[int]:
        return [ordinary[at] for at in torch.randint(len(ordinary), (length,), generator=noise).tolist()]

    prompts = [written(int(torch.randint(20, 31, (), generator=noise))) for _ in range(case.prompts)]
    completions = [[*written(int(length) - 1), int(tokenizer.eos_token_id)] for length in lengths]
    rewards = []
    for group in range(case.prompts):
        useful = [0.0, 1.0, *torch.randint(2, (SAMPLES - 2,), generator=noise).float().tolist()]
        rewards += useful if group % 2 else [float(group % 4 == 0)] * SAMPLES
    return Rollouts(prompts, completions, rewards)


def finish(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """The end of an update, the same for both."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm)


class Stock:
    """TRL's trainer as it stands, in micro-batches of `rows`; its rollout function returns the given completions."""

    def __init__(self, case: Case, rollouts: Rollouts, loss: str, rows: int) -> None:
        tokenizer = build_tokenizer()
        count = len(rollouts.completions)
        self._steps = count // rows
        config = GRPOConfig(
            output_dir=str(Path(tempfile.gettempdir()) / "trainer_speed"), report_to="none", save_strategy="no",
            per_device_train_batch_size=rows, gradient_accumulation_steps=self._steps, num_generations=SAMPLES,
            max_completion_length=LONGEST, temperature=1.0, loss_type=loss, epsilon=LOW, epsilon_high=HIGH, beta=0.0,
            bf16=False, use_cpu=True, gradient_checkpointing=False, disable_tqdm=True, log_level="error",
            dataloader_pin_memory=False,
        )  # fmt: skip
        self._rows = [{"prompt": str(number // SAMPLES)} for number in range(count)]
        self._model = build_model(case, tokenizer)
        self._trainer = GRPOTrainer(
            model=self._model,
            reward_funcs=lambda completions, **columns: rollouts.rewards,
            args=config,
            train_dataset=Dataset.from_list(self._rows),
            processing_class=tokenizer,
            rollout_func=lambda prompts, trainer: {
                "prompt_ids": [rollouts.prompts[int(prompt)] for prompt in prompts],
                "completion_ids": rollouts.completions,
                "logprobs": None,
            },
        )
        self._trainer.current_gradient_accumulation_steps = self._steps
        ready: Mapping[str, Any] = self._trainer._generate_and_score_completions(self._rows)
        # Decoding, rewards and padding were done just now and are not timed.
        self._trainer._generate_and_score_completions = lambda rows: dict(ready)
        self.advantages: torch.Tensor = ready["advantages"]
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=0.0, weight_decay=0.0, fused=True)

    def update(self) -> float:
        """As `Side.update`."""
        for _ in range(self._steps):
            self._trainer.training_step(self._model, self._rows, None)
        return finish(self._model, self._optimizer)


class Ours:
    """`run_update` with the head that an `rl` stage puts on the model, in micro-batches of `tokens` padded tokens."""

    def __init__(
        self, case: Case, rollouts: Rollouts, loss: str, advantages: torch.Tensor, tokens: int = TOKENS_ON_CPU
    ) -> None:
        tokenizer = build_tokenizer()
        self._model = build_model(case, tokenizer)
        add_fused_lm_head(self._model)
        use_compact_head(self._model, every_field=False)
        self._accelerator = Accelerator(cpu=True)
        self._objective = Objective(ALGORITHMS[loss], {"clip": Clip(LOW, HIGH)})
        constant = float(LONGEST) if self._objective.algorithm.weights == "constant" else None
        self._budget = Budget(tokens, torch.ones(1), constant)
        self._samples = [
            _sample(rollouts.prompts[number // SAMPLES], ids, advantages[number].reshape(1))
            for number, ids in enumerate(rollouts.completions)
        ]
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=0.0, weight_decay=0.0, fused=True)

    def update(self) -> float:
        """As `Side.update`."""
        share = shares_prompts(self._model)
        run_update(self._model, self._accelerator, self._samples, self._objective, self._budget, share)
        return finish(self._model, self._optimizer)


def _sample(prompt: list[int], completion: list[int], advantage: torch.Tensor) -> TrainingSample:
    before, written = len(prompt) - 1, len(completion)
    return TrainingSample(
        torch.tensor([*prompt, *completion]),
        torch.tensor([False] * before + [True] * written),
        torch.zeros(before + written),
        domain=0,
        advantage=advantage,
    )
