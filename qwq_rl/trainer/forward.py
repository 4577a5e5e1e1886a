"""Log-probabilities of the sampled tokens under a model, a micro-batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object

from qwq_rl.objective.batches import plan
from qwq_rl.trainer.traces import BLANK, Batch, Trace, collate


def token_logprobs(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities and, where the head works them out, entropies of the trained tokens; (B, L - 1), 0 elsewhere.

    `model` is wrapped as it trains and has TRL's fused head or ours (`compact_head`), which divides by the temperature.
    """
    labels = torch.full_like(batch.ids, -100)
    labels[:, 1:] = torch.where(batch.mask, batch.ids[:, 1:], -100)
    output = model(input_ids=batch.ids, labels=labels, fused_lm_head=True)
    return output.log_probs, output.entropy


@torch.no_grad()
def logprobs_of(model: Any, traces: Sequence[Trace], tokens: int, accelerator: Any) -> list[torch.Tensor]:
    """Log-probabilities (L_i - 1,) on the CPU of each trace's trained tokens, `tokens` padded tokens at a time.

    All processes take part, those without traces too, and pass as often as the one that needs most.
    """
    plans = plan([len(trace.ids) for trace in traces], [True] * len(traces), tokens) if traces else []
    rounds = max(gather_object([len(plans)]))
    found: list[torch.Tensor] = [torch.empty(0)] * len(traces)
    for number in range(rounds):
        places = plans[number] if number < len(plans) else []
        batch = collate([traces[place] for place in places] or [BLANK], accelerator.device)
        with accelerator.autocast():
            logprobs, _ = token_logprobs(model, batch)
        if not places:
            continue
        for place, row in zip(places, logprobs.float().cpu(), strict=True):
            found[place] = row[: len(traces[place].mask)].clone()
    return found
