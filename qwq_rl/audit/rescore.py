"""Judge a run's recorded rollouts with another verifier: `qwq-rl rescore RUN[@STAGE] --verifier SPEC`.

Shows where the two disagree, and what that would have done to rewards and to the direction of learning. Nothing of the
run is changed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qwq_rl.audit.arguments import check_out, parameters, whole
from qwq_rl.audit.counting import counting
from qwq_rl.audit.rescore_summary import Summary, disagrees, examples, summarise
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
