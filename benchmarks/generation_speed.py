"""What a sampled token costs in CPU seconds: our decoder for Qwen, our general loop, and transformers `generate`.

    .venv/bin/python benchmarks/generation_speed.py [--rounds 5] [--cases tiny16 tiny128 d256]

Models have random weights; the head's row of the end token is moved until a sample ends after about as many tokens as
in a trained checkpoint of that size. All three get the same prompts and sample at temperature 1; only the first two
return log-probabilities. Rounds alternate; a line gives the median, and the lowest and highest round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from random_models import MIDDLE, TINY, Shape, random_qwen
from transformers import PreTrainedModel

from qwq_rl.inference.local import generate

PAD, EOS = 0, 1
OURS, GENERAL, THEIRS = "fused", "general loop", "transformers"


@dataclass(frozen=True)
class Case:
    """A model, how many prompts and samples, and how long the samples get."""

    shape: Shape
    vocabulary: int
    prompts: int
    samples: int
    max_tokens: int
    mean_length: int


CASES = {
    "tiny16": Case(TINY, 400, prompts=16, samples=8, max_tokens=48, mean_length=20),
    "tiny128": Case(TINY, 400, prompts=128, samples=8, max_tokens=48, mean_length=20),
    "d256": Case(MIDDLE, 2000, prompts=16, samples=8, max_tokens=256, mean_length=100),
}


def build(case: Case) -> PreTrainedModel:
    """The case's model, whose head has a table of its own: the row of its end token can be moved alone."""
    return random_qwen(case.shape, case.vocabulary, end=EOS, pad=PAD, tied=False).eval()


def prompts(case: Case) -> list[list[int]]:
    """20 to 30 random tokens each."""
    lengths = torch.randint(20, 31, (case.prompts,)).tolist()
    return [torch.randint(2, case.vocabulary, (length,)).tolist() for length in lengths]


def set_stop_rate(model: PreTrainedModel, case: Case, ids: list[list[int]]) -> None:
    """Move the end token's row of the head along the mean state until samples have `mean_length` tokens on average."""
    with torch.no_grad():
        states = torch.cat([model.model(torch.tensor([row])).last_hidden_state[0] for row in ids[:16]])
        direction = states.mean(0) / states.mean(0).square().sum()
        low, high = -20.0, 20.0
        for _ in range(8):
            middle = (low + high) / 2
            model.lm_head.weight[EOS] = middle * direction
            count = ours(model, replace(case, samples=128 // len(ids)), ids, seed=0, fused=True)
            low, high = (low, middle) if count < case.mean_length * 128 else (middle, high)


def ours(model: PreTrainedModel, case: Case, ids: list[list[int]], seed: int, fused: bool) -> int:
    """Sample with our decoder, with `fused` the one for Qwen; how many tokens were sampled, end tokens included."""
    completions = generate(
        model, ids, samples=case.samples, max_tokens=case.max_tokens, temperature=1.0, eos_token_id=EOS,
        pad_token_id=PAD, seed=seed, fused=fused,
    )  # fmt: skip
    return sum(len(completion.token_ids) for row in completions for completion in row)


def theirs(model: PreTrainedModel, case: Case, ids: list[list[int]], seed: int) -> int:
    """Sample with transformers' `generate`; how many tokens were sampled up to the end tokens, these included."""
    torch.manual_seed(seed)
    longest = max(map(len, ids))
    tokens = torch.tensor([[PAD] * (longest - len(row)) + row for row in ids])
    with torch.no_grad():
        written = model.generate(
            tokens, attention_mask=(tokens != PAD).long(), do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
            max_new_tokens=case.max_tokens, num_return_sequences=case.samples, eos_token_id=EOS, pad_token_id=PAD,
        )[:, longest:]  # fmt: skip
    ended = (written == EOS).long().cumsum(1) - (written == EOS).long()
    return int((ended == 0).sum())


def measure(case: Case, rounds: int) -> tuple[dict[str, list[float]], float]:
    """CPU microseconds a generated token of each way, a number a round; and the mean length of a sample."""
    model = build(case)
    ids = prompts(case)
    set_stop_rate(model, case, ids)
    ways: dict[str, Callable[[int], int]] = {
        OURS: lambda seed: ours(model, case, ids, seed, fused=True),
        GENERAL: lambda seed: ours(model, case, ids, seed, fused=False),
        THEIRS: lambda seed: theirs(model, case, ids, seed),
    }
    costs: dict[str, list[float]] = {name: [] for name in ways}
    counted = 0
    for seed in range(rounds + 1):
        for name, way in ways.items():
            started = time.process_time()
            count = way(seed)
            # The first round warms up.
            if seed:
                costs[name].append((time.process_time() - started) / count * 1e6)
                counted += count
    return costs, counted / (rounds * len(ways) * case.prompts * case.samples)


def spread(values: list[float]) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    """Print a line a case and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    print("| case | mean tokens | way | CPU us a token | tokens a CPU s | transformers' cost / its |")
    print("|---|---|---|---|---|---|")
    for name in arguments.cases:
        costs, length = measure(CASES[name], arguments.rounds)
        for way, values in costs.items():
            ratios = [other / own for other, own in zip(costs[THEIRS], values, strict=True)]
            rate = 1e6 / statistics.median(values)
            print(f"| {name} | {length:.1f} | {way} | {spread(values)} | {rate:,.0f} | {spread(ratios)} |", flush=True)


if __name__ == "__main__":
    main()
