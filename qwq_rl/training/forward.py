"""Log-probabilities of the sampled tokens under a model, a micro-batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object

from qwq_rl.inference.fast_qwen.training_head import shares_prompts
from qwq_rl.training.batches import plan
from qwq_rl.training.micro_batch import BLANK, Batch, Trace, collate


def token_logprobs(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities and, where the head works them out, entropies of the trained tokens; (B, L - 1), 0 elsewhere.

    `model` is wrapped as it trains and has TRL's fused head or ours (`compact_head`), which divides by the temperature.
    """
    labels = torch.full_like(batch.ids, -100)
    labels[:, 1:] = torch.where(batch.mask, batch.ids[:, 1:], -100)
    shared = {} if batch.prompts is None else {"prompts": batch.prompts}
    output = model(input_ids=batch.ids, labels=labels, fused_lm_head=True, **shared)
    return output.log_probs, output.entropy


def logprobs_of(model: Any, traces: Sequence[Trace], tokens: int, accelerator: Any) -> list[torch.Tensor]:
    """Log-probabilities (L_i - 1,) on the CPU of each trace's trained tokens, `tokens` padded tokens at a time."""

    def work(batch: Batch) -> torch.Tensor:
        with accelerator.autocast():
            return token_logprobs(model, batch)[0]

    return by_micro_batch(work, traces, tokens, accelerator, shares_prompts(accelerator.unwrap_model(model)))


@torch.no_grad()
def by_micro_batch(
    work: Callable[[Batch], torch.Tensor], traces: Sequence[Trace], tokens: int, accelerator: Any, share: bool
) -> list[torch.Tensor]:
    """What `work` makes of each trace's tokens, from (B, L - 1) a micro-batch to (L_i - 1,) float32 on the CPU.

    All processes take part, those without traces too, and call `work` as often as the one that needs most.
    """
    plans = plan([trace.extent for trace in traces], [True] * len(traces), tokens, share) if traces else []
    found: list[torch.Tensor] = [torch.empty(0)] * len(traces)
    for number in range(max(gather_object([len(plans)]))):
        places = plans[number] if number < len(plans) else []
        rows = work(collate([traces[place] for place in places] or [BLANK], accelerator.device, share)).float().cpu()
        for place, row in zip(places, rows, strict=False):  # without places, the row is of no trace
            found[place] = row[: len(traces[place].mask)].clone()
    return found
