"""Real golds against themselves, restyled (same value, must pass) and perturbed (another value, must fail).

    python benchmarks/math_golds.py [--peers] [--all] [--wrong 40]

Golds: MATH-500, AIME 2024 and 2025 and the GSM8K test split, read from $QWQ_RL_DATA (default ../shared/data); the rules
are in gold_restyled.py and gold_perturbed.py. Deterministic: of each gold a few cases, so that no rule outweighs the
others; `--all` takes every case. `--peers` judges them with TRL and math-verify too. Exits 1 below 99.8 % or with more
than one false accept in a thousand.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import math_peers
from gold_perturbed import perturbed
from gold_restyled import restyled

DATA = Path(os.environ.get("QWQ_RL_DATA", Path(__file__).parents[2] / "shared" / "data")) / "math"
SHARES = {"math500": 500, "aime24": 30, "aime25": 30, "gsm8k_test": 120}
"""How many golds of each set are used."""
RESTYLED, PERTURBED = 4, 3
"""How many cases of each kind a gold gives."""


@dataclass(frozen=True)
class Case:
    """A gold, a completion, whether it says the gold's value, and the rule that made it."""

    gold: str
    completion: str
    right: bool
    rule: str


def golds() -> list[str]:
    """The golds of all sets, each once."""
    found = dict[str, None]()
    for name, share in SHARES.items():
        lines = (DATA / f"{name}.jsonl").read_text().splitlines()
        answers = [str(json.loads(line)["answer"]).rpartition("#### ")[2] for line in lines]
        found.update(dict.fromkeys(answers[:: max(1, len(answers) // share)][:share]))
    return list(found)


def chosen(gold: str, found: list[tuple[str, str]], count: int, used: Counter[str]) -> list[tuple[str, str]]:
    """So many cases, those of the rules used least first; ties fall by a hash, not by the order of the rules."""

    def rank(case: tuple[str, str]) -> tuple[int, str]:
        return used[case[0]], hashlib.sha256(f"{gold}{case}".encode()).hexdigest()

    picked = []
    while found and len(picked) < count:
        best = min(found, key=rank)
        found = [case for case in found if case is not best]
        used[best[0]] += 1
        picked.append(best)
    return picked


def cases(everything: bool) -> list[Case]:
    """The labelled cases, in a fixed order."""
    found, used = [], Counter[str]()
    for gold in golds():
        for rules, right, count in ((restyled, True, RESTYLED), (perturbed, False, PERTURBED)):
            each: Callable[[str], list[tuple[str, str]]] = rules
            most = 1000 if everything else count
            found += [Case(gold, text, right, rule) for rule, text in chosen(gold, each(gold), most, used)]
    return found


def report(name: str, grader: math_peers.Grader, known: Iterable[Case], shown: int) -> tuple[float, float]:
    """Print how a grader did and what it got wrong; return its agreement and its false accepts a case."""
    wrong: list[tuple[str, Case]] = []
    count = 0
    for case in known:
        count += 1
        score = grader(case.completion, case.gold)
        if score is None or bool(score) != case.right:
            kind = "could not judge" if score is None else "false accept" if score else "false reject"
            wrong.append((kind, case))
    kinds = Counter(kind for kind, _ in wrong)
    agreement = 1 - len(wrong) / count
    print(f"\n{name}: {agreement:.2%} of {count}", *(f"{number} {kind}" for kind, number in kinds.items()), sep=", ")
    print("  by rule:", ", ".join(f"{rule} {n}" for rule, n in Counter(case.rule for _, case in wrong).most_common(12)))
    for kind, case in sorted(wrong, key=lambda one: (one[0], one[1].rule))[:shown]:
        print(f"  {kind}: {case.rule}: gold {case.gold}   said: {case.completion!r}")
    return agreement, kinds["false accept"] / count


def main() -> int:
    """Judge all cases; 1 where ours agrees with too few or accepts too much that is false."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--all", action="store_true", help="every case, not a few a gold")
    parser.add_argument("--wrong", type=int, default=40, help="how many wrong verdicts to list")
    options = parser.parse_args()
    missing = [name for name in SHARES if not (DATA / f"{name}.jsonl").is_file()]
    if missing:
        print(f"skipped: no {', '.join(missing)} in {DATA}; set QWQ_RL_DATA to a folder that has math/*.jsonl")
        return 0
    known = cases(options.all)
    restyles = sum(case.right for case in known)
    print(f"{len(known)} cases: {restyles} restyled, {len(known) - restyles} perturbed")
    agreement, accepts = report("qwq_rl math", math_peers.ours(), known, options.wrong)
    if options.peers:
        report("trl accuracy_reward", math_peers.trl(), known, options.wrong)
        report("math-verify", math_peers.math_verify(), known, options.wrong)
    return int(agreement < 0.998 or accepts > 0.001)


if __name__ == "__main__":
    sys.exit(main())
