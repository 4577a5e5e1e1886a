"""Judge a run's recorded rollouts with another verifier: `qwq-rl rescore RUN[@STAGE] --verifier SPEC`.

Shows where the two disagree, and what that would have done to rewards and to the direction of learning. Nothing of the
run is changed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qwq_rl.audit.arguments import check_out, parameters, whole
from qwq_rl.audit.rescored import (
    Again,
    Wanted,
    disagreement,
    judge_again,
    recipe_of,
    recorded,
    replaced,
    rl_stages,
    rows_of,
)
from qwq_rl.audit.verify import counting
from qwq_rl.errors import RowError, UserError
from qwq_rl.run_folder.files import write_lines
from qwq_rl.verifiers import load
from qwq_rl.verifiers.verdicts import shown

WIDTH = 100
"""Characters of a text that is shown."""
EPILOG = """
examples:
  qwq-rl rescore runs/tiny --verifier my_lab/checker.py:verify --domain math
  qwq-rl rescore runs/tiny@1_math_code --verifier math --param deadline_s=1 --out disagreements.jsonl
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `qwq-rl rescore`; returns 0 however much the two disagree."""
    asked = _parser().parse_args(arguments)
    run, _, stage = asked.run.partition("@")
    wanted = Wanted(asked.verifier, parameters(asked.param), asked.domain, asked.check, _updates(asked.updates))
    check_out(asked.out)
    load(wanted.spec, wanted.params)  # a mistake in it is told before anything is read
    found, unfound, everything = _judge(Path(run), stage or None, wanted)
    summary = {"run": run, "verifier": wanted.spec, **summarise(found, unfound, everything)}
    if asked.out is not None:
        write_lines(asked.out, (disagreement(again) for again in found if disagrees(again)))
    if asked.json:
        print(json.dumps(summary, ensure_ascii=False, indent=1))
    else:
        print("\n".join(_told(summary, found, asked.examples, asked.out)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qwq-rl rescore",
        description="Judge the recorded rollouts of a run with another verifier: where do the two disagree?",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", metavar="RUN[@STAGE]", help="a run folder, runs/NAME; every stage that has rollouts, or the one named")
    add("--verifier", required=True, metavar="SPEC", help="the other verifier, named as in a recipe")
    add("--param", action="append", default=[], metavar="KEY=VALUE", help="a parameter of it; may be repeated")
    add("--domain", help="only rollouts of this domain")
    add("--check", metavar="NAME", help="the verdicts it stands for, by the name that rows use")
    add("--updates", metavar="A-B", help="only these updates: 12, 10-20, 10- or -20")
    add(
        "--examples",
        type=partial(whole, least=0),
        default=10,
        metavar="N",
        help="how many disagreements are shown (10)",
    )
    add("--out", type=Path, help="every disagreement as a JSON line")
    add("--json", action="store_true", help="the summary as JSON")
    return parser


def _updates(text: str | None) -> range | None:
    if text is None:
        return None
    first, dash, last = text.partition("-")
    try:
        low = int(first or 0)
        high = int(last or 10**9) if dash else low
    except ValueError:
        raise UserError(f"--updates {text}: write it as 12, 10-20, 10- or -20") from None
    if low > high or text == "-":
        raise UserError(f"--updates {text}: the first comes after the last; write it as 12, 10-20, 10- or -20")
    return range(low, high + 1)


def _judge(run: Path, stage: str | None, wanted: Wanted) -> tuple[list[Again], int, list[dict[str, Any]]]:
    """All rollouts judged again, how many had no row any more, and every recorded rollout with its stage."""
    found: list[Again] = []
    everything: list[dict[str, Any]] = []
    unfound = 0
    stages = [(folder, list(recorded(folder, wanted.updates))) for folder in rl_stages(run, stage)]
    if not any(lines for _, lines in stages):
        last = max(int(path.stem[-6:]) for folder, _ in stages for path in folder.path.glob("rollouts/update-*.jsonl"))
        raise UserError(f"{run}: no rollouts of these --updates; the last recorded one is {last}")
    name = replaced([line for _, lines in stages for line in lines], wanted)
    for folder, lines in stages:
        recipe = recipe_of(folder)
        rows, missing = rows_of(recipe)
        for text in missing:
            print(f"qwq-rl: a source of {folder.name} cannot be read: {text}", file=sys.stderr)
        with counting(f"judging {folder.name}", len(lines)) as on_rollouts:
            again, lost = judge_again(folder, recipe, lines, rows, wanted, name, on_rollouts)
        found += again
        unfound += lost
        everything += ({**line, "stage": folder.name} for line in lines)
    if not found:
        raise RowError(
            f"{run}: none of the {len(everything)} rollouts could be judged again: of {unfound} the row is not found "
            "in the run's data (paths count from the working directory), the others have no such verdict"
        )
    return found, unfound, everything


def _told(summary: Summary, found: Sequence[Again], most: int, out: Path | None) -> Iterator[str]:
    share = summary["disagree"] / summary["rollouts"]
    yield f"{summary['verifier']} on {summary['rollouts']} rollouts of {summary['run']}: " + (
        f"{summary['disagree']} disagreements ({share:.1%})"
    )
    if summary["unfound"]:
        yield f"  {summary['unfound']} more were left out: their rows are not found in the run's data any more"
    for domain, area in summary["domains"].items():
        yield from _domain(domain, area)
    chosen = list(examples(found, most))
    if chosen:
        yield "  disagreements"
        for again, alike in chosen:
            yield from _example(again, alike)
    if summary["disagree"] and out is None:
        yield "  every one of them, as JSON lines: --out FILE"


def _domain(name: str, area: dict[str, Any]) -> Iterator[str]:
    groups = area["groups"]
    yield f"  {name}: {area['disagree']} of {area['rollouts']} differ"
    yield f"    score   {_was(area['score'])}    reward  {_was(area['reward'])}    not judged  {_was(area['faults'])}"
    changed = f"{groups['signs_changed']} ({groups['signs_changed'] / max(1, groups['total']):.0%})"
    yield (
        f"    groups  {groups['total']}: {changed} would push otherwise, "
        f"{groups['vanished']} teach nothing any more, {groups['appeared']} for the first time something"
    )
    for change in area["statuses"]:
        if change["old"] != change["new"]:
            yield f"    {change['rollouts']:>7}  {change['old']} -> {change['new']}"
    same = sum(change["rollouts"] for change in area["statuses"] if change["old"] == change["new"])
    yield f"    {same:>7}  as they were"


def _was(pair: dict[str, Any]) -> str:
    old, new = (f"{value:.3f}" if isinstance(value, float) else str(value) for value in (pair["old"], pair["new"]))
    return f"{old} -> {new}"


def _example(again: Again, alike: int) -> Iterator[str]:
    old, new = again.rollout["verdicts"][again.name], again.scored.verdicts[again.name]
    times = f", {alike} times" if alike > 1 else ""
    wrote = " ".join("".join(str(part["text"]) for part in again.rollout["segments"]).split())
    yield f"    {again.stage} {again.rollout['id']}, row {again.rollout['row']}{times}"
    yield f"      wrote ...{wrote[-WIDTH:]}    reference {shown(again.reference, WIDTH)}"
    yield f"      was {_score(old['score'])} {old['status']}: {shown(old['reason'], WIDTH)}"
    yield f"      now {_score(new.score)} {new.status}: {shown(new.reason, WIDTH)}"


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:g}"


Summary = dict[str, Any]


def disagrees(again: Again) -> bool:
    """Whether the score is another one; two words for one score are no disagreement."""
    old, new = again.rollout["verdicts"][again.name]["score"], again.scored.verdicts[again.name].score
    return old != new if old is None or new is None else abs(old - new) > 1e-9


def summarise(found: Sequence[Again], unfound: int, everything: Iterable[Mapping[str, Any]]) -> Summary:
    """The summary by domain (docs/contracts.md, "What rescore writes").

    `everything` are all recorded rollouts of the stages: a group may hold rollouts that were not judged again.
    """
    groups = _groups(found, everything)
    domains = {}
    for domain in sorted({again.rollout["domain"] for again in found}):
        of = [again for again in found if again.rollout["domain"] == domain]
        domains[domain] = {
            "rollouts": len(of),
            "disagree": sum(map(disagrees, of)),
            "statuses": _statuses(of),
            "score": {
                "old": _mean(again.rollout["verdicts"][again.name]["score"] for again in of),
                "new": _mean(again.scored.verdicts[again.name].score for again in of),
            },
            "reward": {
                "old": _mean(again.rollout["reward"] for again in of),
                "new": _mean(again.scored.reward for again in of),
            },
            "faults": {
                "old": sum(again.rollout["reward"] is None for again in of),
                "new": sum(again.scored.reward is None for again in of),
            },
            "groups": _compared([pair for name, pair in groups if name == domain]),
        }
    return {"rollouts": len(found), "disagree": sum(map(disagrees, found)), "unfound": unfound, "domains": domains}


def _statuses(of: Sequence[Again]) -> list[dict[str, Any]]:
    """How often which status became which, the most frequent first."""
    count = Counter(
        (again.rollout["verdicts"][again.name]["status"], again.scored.verdicts[again.name].status) for again in of
    )
    return [{"old": old, "new": new, "rollouts": number} for (old, new), number in count.most_common()]


Rewards = list[float | None]


def _groups(
    found: Sequence[Again], everything: Iterable[Mapping[str, Any]]
) -> list[tuple[str, tuple[Rewards, Rewards]]]:
    """The domain and the old and new rewards of every group that has a rollout judged again."""
    new = {(again.stage, again.rollout["id"]): again.scored.reward for again in found}
    touched = {(again.stage, again.rollout["update"], again.rollout["group"]) for again in found}
    rewards: dict[tuple[str, int, int], tuple[str, Rewards, Rewards]] = {}
    for line in everything:
        key = (line["stage"], line["update"], line["group"])
        if key in touched:
            _, before, after = rewards.setdefault(key, (line["domain"], [], []))
            before.append(line["reward"])
            after.append(new.get((line["stage"], line["id"]), line["reward"]))
    return [(domain, (before, after)) for domain, before, after in rewards.values()]


def _compared(pairs: Sequence[tuple[Rewards, Rewards]]) -> dict[str, int]:
    """How many groups would have taught something else, or nothing, or for the first time something."""
    useful = [(_teaches(before), _teaches(after)) for before, after in pairs]
    return {
        "total": len(pairs),
        "signs_changed": sum(signs(before) != signs(after) for before, after in pairs),
        "vanished": sum(before and not after for before, after in useful),
        "appeared": sum(after and not before for before, after in useful),
    }


def signs(rewards: Sequence[float | None]) -> list[int]:
    """Which way each rollout of a group is pushed: the sign of its reward minus the group's mean; 0: not at all."""
    known = [reward for reward in rewards if reward is not None]
    mean = math.fsum(known) / len(known) if known else 0.0
    return [
        0 if reward is None or abs(reward - mean) < 1e-9 else int(math.copysign(1, reward - mean)) for reward in rewards
    ]


def _teaches(rewards: Sequence[float | None]) -> bool:
    return any(signs(rewards))


def examples(found: Sequence[Again], most: int) -> Iterator[tuple[Again, int]]:
    """Disagreements worth reading, each with how many rollouts are like it: same row, answers and statuses.

    The largest differences of score first, of these what happened most often; each change of status gets its turn.
    """
    alike: dict[tuple[Any, ...], list[Again]] = {}
    for again in filter(disagrees, found):
        old, new = again.rollout["verdicts"][again.name], again.scored.verdicts[again.name]
        key = (old["status"], new.status, again.rollout["row"], old["answer"], new.answer)
        alike.setdefault(key, []).append(again)
    queues: dict[tuple[str, str], list[list[Again]]] = {}
    for key, of in sorted(alike.items(), key=lambda item: (-_gap(item[1][0]), -len(item[1]))):
        queues.setdefault((key[0], key[1]), []).append(of)
    shown = 0
    while any(queues.values()) and shown < most:
        for queue in queues.values():
            if queue and shown < most:
                of = queue.pop(0)
                shown += 1
                yield of[0], len(of)


def _gap(again: Again) -> float:
    old, new = again.rollout["verdicts"][again.name]["score"], again.scored.verdicts[again.name].score
    return 0.5 if old is None or new is None else abs(old - new)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
