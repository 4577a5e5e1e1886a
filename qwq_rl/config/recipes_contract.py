"""The names by which a recipe accepts that what it goes on from has changed: the items of a stage's contract."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from qwq_rl.config.blocks import Domain
from qwq_rl.config.loader import Contradictions, did_you_mean

OF_EVERY_STAGE = ("tokenizer", "chat_template", "eos", "base")
VERIFIERS = "verifiers"


def items_of_rl(domains: Mapping[str, Domain], with_reward_model: bool) -> list[str]:
    """What an rl stage may name: all verifiers, those of a domain, or a single one, beside what every stage has."""
    found = [*OF_EVERY_STAGE, *["reward_model"] * with_reward_model, VERIFIERS]
    for name, domain in domains.items():
        own = dict.fromkeys([*domain.verifiers, *(check.verifier for check in domain.checks)])
        found += [f"{VERIFIERS}.{name}", *(f"{VERIFIERS}.{name}.{verifier}" for verifier in own)]
    return found


def accepts(names: Iterable[str], item: str) -> bool:
    """Whether one of `names` stands for `item`: by itself, or as what it is a part of."""
    return any(item == name or item.startswith(f"{name}.") for name in names)


def accept_mistakes(names: Sequence[str], known: Sequence[str]) -> Contradictions:
    """Each name that stands for nothing a stage could find changed."""
    for place, name in enumerate(names):
        if name not in known:
            nearest = did_you_mean(name, known) or f"; there is {', '.join(known)}"
            yield f"accept_changes.{place}", f"there is no {name} in this stage's contract{nearest}"
