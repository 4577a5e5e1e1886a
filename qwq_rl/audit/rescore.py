"""Judges a run's recorded rollouts with another verifier: `qwq-rl rescore RUN[@STAGE] --verifier SPEC`.

Shows where the two verifiers disagree, and how that changes rewards and the signs of advantages. It does not change
the run.
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
"""How many characters of a text are shown."""
EPILOG = """
examples:
  qwq-rl rescore runs/tiny --verifier my_lab/checker.py:verify --domain math
  qwq-rl rescore runs/tiny@1_math_code --verifier math --param deadline_s=1 --out disagreements.jsonl
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `qwq-rl rescore`. Returns 0, however much the two verifiers disagree."""
    options = _parser().parse_args(arguments)
    run, _, stage = options.run.partition("@")
    wanted = Wanted(
        options.verifier, parameters(options.param), options.domain, options.check, _updates(options.updates)
    )
    check_out(options.out)
    load(wanted.spec, wanted.params)  # reports a mistake in it before anything is read
    judged, unfound, all_rollouts = _judge(Path(run), stage or None, wanted)
    summary = {"run": run, "verifier": wanted.spec, **summarise(judged, unfound, all_rollouts)}
    if options.out is not None:
        write_lines(options.out, (disagreement(again) for again in judged if disagrees(again)))
    if options.json:
        print(json.dumps(summary, ensure_ascii=False, indent=1))
    else:
        print("\n".join(_told(summary, judged, options.examples, options.out)))
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
    """Parse `--updates`: one number, or a range that may be open at one end. Raises UserError."""
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
    """Return the rollouts judged again, how many could not be, and every recorded rollout with its stage."""
    judged: list[Again] = []
    all_rollouts: list[dict[str, Any]] = []
    unfound = 0
    stages = [(folder, list(recorded(folder, wanted.updates))) for folder in rl_stages(run, stage)]
    if not any(lines for _, lines in stages):
        last = max(int(path.stem[-6:]) for folder, _ in stages for path in folder.path.glob("rollouts/update-*.jsonl"))
        raise UserError(f"{run}: no rollouts of these --updates; the last recorded one is {last}")
    name = replaced([line for _, lines in stages for line in lines], wanted)
    for folder, lines in stages:
        recipe = recipe_of(folder)
        rows, missing = rows_of(recipe)
        for message in missing:
            print(f"qwq-rl: a source of {folder.name} cannot be read: {message}", file=sys.stderr)
        with counting(f"judging {folder.name}", len(lines)) as on_rollouts:
            judged_of_stage, unfound_of_stage = judge_again(folder, recipe, lines, rows, wanted, name, on_rollouts)
        judged += judged_of_stage
        unfound += unfound_of_stage
        all_rollouts += ({**line, "stage": folder.name} for line in lines)
    if not judged:
        raise RowError(
            f"{run}: none of the {len(all_rollouts)} rollouts could be judged again: of {unfound} the row is not found "
            "in the run's data (paths count from the working directory), the others have no such verdict"
        )
    return judged, unfound, all_rollouts


def _told(summary: Summary, judged: Sequence[Again], most: int, out: Path | None) -> Iterator[str]:
    share = summary["disagree"] / summary["rollouts"]
    yield f"{summary['verifier']} on {summary['rollouts']} rollouts of {summary['run']}: " + (
        f"{summary['disagree']} disagreements ({share:.1%})"
    )
    if summary["unfound"]:
        yield f"  {summary['unfound']} more were left out: their rows are not found in the run's data any more"
    for domain, area in summary["domains"].items():
        yield from _domain(domain, area)
    shown_examples = list(examples(judged, most))
    if shown_examples:
        yield "  disagreements"
        for again, alike in shown_examples:
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
    """A pair of values as `old -> new`."""
    old, new = (f"{value:.3f}" if isinstance(value, float) else str(value) for value in (pair["old"], pair["new"]))
    return f"{old} -> {new}"


def _example(again: Again, alike: int) -> Iterator[str]:
    old, new = again.rollout["verdicts"][again.name], again.scored.verdicts[again.name]
    times = f", {alike} times" if alike > 1 else ""
    wrote = " ".join("".join(str(segment["text"]) for segment in again.rollout["segments"]).split())
    yield f"    {again.stage} {again.rollout['id']}, row {again.rollout['row']}{times}"
    yield f"      wrote ...{wrote[-WIDTH:]}    reference {shown(again.reference, WIDTH)}"
    yield f"      was {_score(old['score'])} {old['status']}: {shown(old['reason'], WIDTH)}"
    yield f"      now {_score(new.score)} {new.status}: {shown(new.reason, WIDTH)}"


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:g}"


Summary = dict[str, Any]


def disagrees(again: Again) -> bool:
    """Whether the two scores differ. Another status with the same score is no disagreement."""
    old, new = again.rollout["verdicts"][again.name]["score"], again.scored.verdicts[again.name].score
    return old != new if old is None or new is None else abs(old - new) > 1e-9


def summarise(found: Sequence[Again], unfound: int, everything: Iterable[Mapping[str, Any]]) -> Summary:
    """Return the summary by domain (docs/contracts.md, "What rescore writes").

    `everything`: all recorded rollouts of the stages, because a group may hold rollouts that were not judged again.
    """
    groups = _groups(found, everything)
    domains = {}
    for domain in sorted({again.rollout["domain"] for again in found}):
        of_domain = [again for again in found if again.rollout["domain"] == domain]
        domains[domain] = {
            "rollouts": len(of_domain),
            "disagree": sum(map(disagrees, of_domain)),
            "statuses": _statuses(of_domain),
            "score": {
                "old": _mean(again.rollout["verdicts"][again.name]["score"] for again in of_domain),
                "new": _mean(again.scored.verdicts[again.name].score for again in of_domain),
            },
            "reward": {
                "old": _mean(again.rollout["reward"] for again in of_domain),
                "new": _mean(again.scored.reward for again in of_domain),
            },
            "faults": {
                "old": sum(again.rollout["reward"] is None for again in of_domain),
                "new": sum(again.scored.reward is None for again in of_domain),
            },
            "groups": _compared([pair for name, pair in groups if name == domain]),
        }
    return {"rollouts": len(found), "disagree": sum(map(disagrees, found)), "unfound": unfound, "domains": domains}


def _statuses(judged: Sequence[Again]) -> list[dict[str, Any]]:
    """How often each pair of old and new status occurs, the most frequent first."""
    count = Counter(
        (again.rollout["verdicts"][again.name]["status"], again.scored.verdicts[again.name].status) for again in judged
    )
    return [{"old": old, "new": new, "rollouts": number} for (old, new), number in count.most_common()]


Rewards = list[float | None]


def _groups(
    judged: Sequence[Again], everything: Iterable[Mapping[str, Any]]
) -> list[tuple[str, tuple[Rewards, Rewards]]]:
    """The domain and the old and new rewards of every group in which a rollout was judged again."""
    new_rewards = {(again.stage, again.rollout["id"]): again.scored.reward for again in judged}
    touched = {(again.stage, again.rollout["update"], again.rollout["group"]) for again in judged}
    rewards: dict[tuple[str, int, int], tuple[str, Rewards, Rewards]] = {}
    for line in everything:
        key = (line["stage"], line["update"], line["group"])
        if key in touched:
            _, before, after = rewards.setdefault(key, (line["domain"], [], []))
            before.append(line["reward"])
            # A rollout that was not judged again keeps its reward.
            after.append(new_rewards.get((line["stage"], line["id"]), line["reward"]))
    return [(domain, (before, after)) for domain, before, after in rewards.values()]


def _compared(pairs: Sequence[tuple[Rewards, Rewards]]) -> dict[str, int]:
    """How many groups would get other signs of advantages, none instead of some, or some instead of none."""
    useful = [(_teaches(before), _teaches(after)) for before, after in pairs]
    return {
        "total": len(pairs),
        "signs_changed": sum(signs(before) != signs(after) for before, after in pairs),
        "vanished": sum(before and not after for before, after in useful),
        "appeared": sum(after and not before for before, after in useful),
    }


def signs(rewards: Sequence[float | None]) -> list[int]:
    """The sign of each rollout's advantage: of its reward minus the group's mean. 0: no advantage, or no reward."""
    judged = [reward for reward in rewards if reward is not None]
    mean = math.fsum(judged) / len(judged) if judged else 0.0
    # 1e-9: the mean of equal rewards may differ from them by rounding.
    return [
        0 if reward is None or abs(reward - mean) < 1e-9 else int(math.copysign(1, reward - mean)) for reward in rewards
    ]


def _teaches(rewards: Sequence[float | None]) -> bool:
    """Whether any rollout of the group has an advantage."""
    return any(signs(rewards))


def examples(found: Sequence[Again], most: int) -> Iterator[tuple[Again, int]]:
    """Yield at most `most` disagreements, each with the number of rollouts with the same row, answers and statuses.

    The changes of status take turns. Within one, the largest differences of score come first, then the most frequent.
    """
    alike: dict[tuple[Any, ...], list[Again]] = {}
    for again in filter(disagrees, found):
        old, new = again.rollout["verdicts"][again.name], again.scored.verdicts[again.name]
        key = (old["status"], new.status, again.rollout["row"], old["answer"], new.answer)
        alike.setdefault(key, []).append(again)
    queues: dict[tuple[str, str], list[list[Again]]] = {}
    for key, similar in sorted(alike.items(), key=lambda item: (-_gap(item[1][0]), -len(item[1]))):
        queues.setdefault((key[0], key[1]), []).append(similar)
    count = 0
    # Each turn takes one example of every change of status.
    while any(queues.values()) and count < most:
        for queue in queues.values():
            if queue and count < most:
                similar = queue.pop(0)
                count += 1
                yield similar[0], len(similar)


def _gap(again: Again) -> float:
    """The difference of the two scores; 0.5 if one of them is missing."""
    old, new = again.rollout["verdicts"][again.name]["score"], again.scored.verdicts[again.name].score
    return 0.5 if old is None or new is None else abs(old - new)


def _mean(values: Iterable[float | None]) -> float | None:
    judged = [value for value in values if value is not None]
    return math.fsum(judged) / len(judged) if judged else None
