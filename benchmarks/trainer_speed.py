"""What training costs beside stock `trl.GRPOTrainer`: an update, whole updates of a stage, and memory.

    .venv/bin/python benchmarks/trainer_speed.py [update whole memory] [--repeats 5] [--checkpoint FOLDER]
    .venv/bin/python benchmarks/trainer_speed.py --gpu [--updates 4] [--mean-length 256] [--longest 1024]

update  CPU seconds of one update on the same completions, where the norms of the gradients must agree within 1e-4.
whole   CPU seconds of sampling, scoring and update on stage 1 of recipes/tiny, from a cold start that it trains first
        (`--cold-steps`) or from `--checkpoint`, the folder of one.
memory  What an update takes at its peak above what the process had before its first one, in a process for each side.
--gpu   Sampled tokens a second of whole updates of a 0.6 B model with random weights, on a machine with a GPU.

TRL is taken at its best: float32 on a CPU, no gradient checkpointing, the fastest of three micro-batches, each of them
warmed up and timed a few times. Repetitions alternate; a line gives the median, and the lowest and highest. Exit
status 1: norms differ, or TRL's part is too high.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.update(TRL_EXPERIMENTAL_SILENCE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import torch
from random_models import QWEN3_600M, save_random_qwen
from trainer_runs import Spent, even, recipe_of, run_ours, run_stock
from trainer_updates import CASES, Case, Ours, Rollouts, Stock, make_rollouts
from transformers.utils import logging

from qwq_rl.config.stages import RlRecipe
from qwq_rl.data.tiny.model import build_tokenizer

STAGE = Path(__file__).parents[1] / "recipes/tiny/1_math_code.yaml"
LOSSES = ("grpo", "dapo")
TRIES = 3
"""Times that each micro-batch of TRL is timed, of which the fastest is chosen by the median."""
PROBED = 2
"""Whole updates that are timed each time, after one that is not."""
LARGEST_SHARE = {"update": 1 / 6, "whole": 1 / 3, "memory": 1.0}
"""Of what TRL takes."""
VOCABULARY_ON_GPU = 151_936
"""As many tokens as Qwen3-0.6B has."""


def spread(values: list[float]) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def timed(work: Callable[[], float]) -> tuple[float, float]:
    """CPU seconds of this process, and what `work` returned."""
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


def fastest(sizes: Sequence[int], cost: Callable[[int], float]) -> int:
    """The rows of a micro-batch in which TRL's updates cost least, by the median of `TRIES`; prints all costs.

    `cost` gives the seconds of an update. Each size has its turn once to warm up, and then by turns with the others.
    """
    found: dict[int, list[float]] = {rows: [] for rows in sizes}
    for turn in range(TRIES + 1):
        for rows in sizes:
            seconds = cost(rows)
            if turn:
                found[rows].append(seconds)
    print(f"  TRL, s by rows of a micro-batch: {', '.join(f'{rows}: {spread(of)}' for rows, of in found.items())}")
    return min(found, key=lambda rows: statistics.median(found[rows]))


def fastest_stock(case: Case, rollouts: Rollouts, loss: str) -> Stock:
    """TRL's trainer in the micro-batches that suit it best, warmed up."""
    sides = {rows: Stock(case, rollouts, loss, rows) for rows in (8, 16, 32)}
    return sides[fastest(list(sides), lambda rows: timed(sides[rows].update)[0])]


def compare_updates(repeats: int) -> bool:
    """Whether all norms agree and all shares are low enough."""
    good = True
    for name, case in CASES.items():
        rollouts = make_rollouts(case, build_tokenizer(), seed=0)
        for loss in LOSSES:
            print(f"update, {name}, {loss}: {len(rollouts.completions)} completions, {rollouts.tokens} tokens")
            stock = fastest_stock(case, rollouts, loss)
            ours = Ours(case, rollouts, loss, stock.advantages)
            ours.update()
            pairs = [(timed(stock.update), timed(ours.update)) for _ in range(repeats)]
            shares = [own / theirs for (theirs, _), (own, _) in pairs]
            gap = max(abs(own / theirs - 1) for (_, theirs), (_, own) in pairs)
            print(f"  gradient norms: TRL {pairs[0][0][1]:.8g}, ours {pairs[0][1][1]:.8g}, apart by {gap:.1e} at most")
            print(f"  CPU s: TRL {spread([one[0] for one, _ in pairs])}, ours {spread([one[0] for _, one in pairs])}")
            print(f"  TRL / ours: {spread([1 / share for share in shares])}", flush=True)
            good &= gap <= 1e-4 and statistics.median(shares) <= LARGEST_SHARE["update"]
    return good


def compare_whole(repeats: int, updates: int, checkpoint: Path | None, cold_steps: int) -> bool:
    """Whether TRL's share is low enough."""
    with tempfile.TemporaryDirectory() as place:
        start = checkpoint or cold_start(Path(place), cold_steps)
        recipe = recipe_of(STAGE, start, updates, [])
        print(
            f"whole, {STAGE.parent.name}/{STAGE.stem}: {recipe.rollout.prompts} x {recipe.rollout.generations} samples"
        )
        probe = recipe_of(STAGE, start, PROBED, [])
        rows = fastest((32, 64, 128), lambda rows: run_stock(probe, start, Path(place, "probe"), rows).cpu / PROBED)
        pairs = whole_pairs(recipe, start, Path(place), rows, repeats)
    report("CPU s an update", pairs, lambda spent: spent.cpu / spent.updates)
    report("tokens a sample", pairs, lambda spent: spent.tokens / spent.updates / 128)
    shares = [own.cpu / theirs.cpu for theirs, own in pairs]
    print(f"  TRL / ours: {spread([1 / share for share in shares])}", flush=True)
    return statistics.median(shares) <= LARGEST_SHARE["whole"]


def whole_pairs(recipe: RlRecipe, start: Path, place: Path, rows: int, repeats: int) -> list[tuple[Spent, Spent]]:
    """Runs of TRL, in micro-batches of `rows`, and of ours by turns; each of ours has a folder of its own."""
    return [
        (run_stock(recipe, start, place / "trl", rows), run_ours(recipe, STAGE.parent, place / str(number)))
        for number in range(repeats)
    ]


def report(what: str, pairs: list[tuple[Spent, Spent]], figure: Callable[[Spent], float]) -> None:
    """Print a figure of both sides."""
    sides = (spread([figure(pair[at]) for pair in pairs]) for at in (0, 1))
    print("  {}: TRL {}, ours {}".format(what, *sides))


def cold_start(place: Path, steps: int) -> Path:
    """A short one, trained here."""
    recipe = STAGE.with_name("0_cold_start.yaml")
    every = [f"--steps={steps}", f"--evaluate.every={steps}", "--evaluate.limit=1", f"--checkpoint.every={steps}"]
    command = [sys.executable, "-m", "qwq_rl.train", str(recipe), "--run", str(place / "run"), *every]
    subprocess.run(command, check=True)
    return place / "run/0_cold_start/checkpoints/final"


def compare_memory() -> bool:
    """Whether ours takes no more than TRL, for any of its micro-batches."""
    good = True
    for name in CASES:
        sides = {side: peak_of(name, side) for side in ("8", "16", "32", "ours")}
        ours = sides.pop("ours")
        theirs = ", ".join(f"{side}: {peak:.0f} MB" for side, peak in sides.items())
        print(f"memory, {name}: TRL by rows of a micro-batch {theirs}; ours {ours:.0f} MB", flush=True)
        good &= ours <= LARGEST_SHARE["memory"] * min(sides.values())
    return good


def peak_of(case: str, side: str) -> float:
    """Megabytes, measured by `print_peak` in a process of its own."""
    command = [sys.executable, __file__, "--peak", case, side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(name: str, side: str) -> None:
    """Of the first update: gradients and the optimiser's state are part of it on both sides."""
    case, tokenizer = CASES[name], build_tokenizer()
    rollouts = make_rollouts(case, tokenizer, seed=0)
    stock = Stock(case, rollouts, "grpo", 8 if side == "ours" else int(side))
    chosen = Ours(case, rollouts, "grpo", stock.advantages) if side == "ours" else stock
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = memory_of("VmRSS")
    chosen.update()
    print(memory_of("VmHWM") - before)


def memory_of(field: str) -> float:
    """Megabytes, from what Linux says of this process."""
    found = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1000


def compare_on_gpu(repeats: int, updates: int, mean_length: int, longest: int) -> bool:
    """Whether ours samples and learns from twice as many tokens a second."""
    verifier = f"{{use: '{Path(__file__).with_name('trainer_runs.py')}:{even.__name__}'}}"
    overrides = [
        "--data=[{source: tiny/math}]", f"--domains={{math: {{verifiers: {{math: {verifier}}}}}}}", "--gates=[]",
        f"--rollout.max_tokens={longest}", "--update.lr=1e-6", "--trl={gradient_checkpointing: false}",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        start = Path(place, "model")
        save_random_qwen(start, QWEN3_600M, VOCABULARY_ON_GPU, mean_length)
        recipe = recipe_of(STAGE, start, updates, overrides)
        probe = recipe_of(STAGE, start, PROBED, overrides)
        rows = fastest((8, 16, 32), lambda rows: run_stock(probe, start, Path(place, "probe"), rows).wall / PROBED)
        pairs = whole_pairs(recipe, start, Path(place), rows, repeats)
    report("tokens a second", pairs, lambda spent: spent.tokens / spent.wall)
    gains = [(own.tokens / own.wall) / (theirs.tokens / theirs.wall) for theirs, own in pairs]
    print(f"  ours / TRL: {spread(gains)}", flush=True)
    return statistics.median(gains) >= 2


def main() -> int:
    """Compare what was asked for; 1 where any of it misses what is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="update, whole, memory (default: all)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--updates", type=int, default=4, help="of each whole run that are measured")
    parser.add_argument("--checkpoint", type=Path, help="folder of a cold start of recipes/tiny")
    parser.add_argument("--cold-steps", type=int, default=400)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--mean-length", type=int, default=256)
    parser.add_argument("--longest", type=int, default=1024)
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    logging.disable_progress_bar()
    if chosen.peak:
        print_peak(*chosen.peak)
        return 0
    if chosen.gpu:
        if not torch.cuda.is_available():
            parser.error("--gpu needs a GPU, and PyTorch sees none")
        return int(not compare_on_gpu(chosen.repeats, chosen.updates, chosen.mean_length, chosen.longest))
    parts: dict[str, Callable[[], bool]] = {
        "update": lambda: compare_updates(chosen.repeats),
        "whole": lambda: compare_whole(chosen.repeats, chosen.updates, chosen.checkpoint, chosen.cold_steps),
        "memory": compare_memory,
    }
    if unknown := set(chosen.parts) - set(parts):
        parser.error(f"unknown part {', '.join(sorted(unknown))}: update, whole or memory")
    return int(not all([work() for name, work in parts.items() if name in (chosen.parts or parts)]))


if __name__ == "__main__":
    sys.exit(main())
