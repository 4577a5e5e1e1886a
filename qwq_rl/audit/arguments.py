"""The command line of `qwq-rl verify`, and its mistakes, which are reported before anything is judged."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml

from qwq_rl.data.row import Role
from qwq_rl.errors import UserError, did_you_mean
from qwq_rl.verifiers import BUILT_IN

DESCRIPTION = f"""\
Judge responses with a verifier, one line a row: {{"id", "score", "status", "reason", "answer", "metrics", "seconds"}}.
With --audit: can this verifier and these rows be trusted?

VERIFIER is an entry point, package.module:name, path/to/file.py:name, or built in:
  {", ".join(list(BUILT_IN)[:7])},
  {", ".join(list(BUILT_IN)[7:])}
"""
EPILOG = r"""
a row:   {"id": "1", "reference": "42", "response": "<think>6 * 7</think> \\boxed{42}"}
         `response` is the raw completion or a list of messages; a `solution` must pass (--audit)

examples:
  qwq-rl verify math rows.jsonl --out verdicts.jsonl
  qwq-rl verify my_lab/checker.py:build rows.jsonl --param strict=true
  qwq-rl verify math rows.jsonl --audit

exit status: 0, however low the scores; 1 where the audit failed, or more than --fault-share could not be judged;
             2 for what is wrong with the command or with rows, which are all named
What each verifier compares with: docs/contracts.md, "A row"; parameters and how to write one: docs/verifiers.md.
"""


@dataclass(frozen=True)
class Chosen:
    """The verifier that the command line names."""

    name: str
    spec: str
    params: Mapping[str, Any] = field(default_factory=dict)


def parser() -> argparse.ArgumentParser:
    """The argument parser. Its help explains what a row is and what the exit status means."""
    result = argparse.ArgumentParser(
        prog="qwq-rl verify",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("verifier", metavar="VERIFIER")
    add(
        "rows",
        metavar="ROWS",
        help="a .jsonl, .jsonl.gz or .parquet file, any source of rows, or - (JSON lines on stdin)",
    )
    add("--out", type=Path, help="where verdicts go (default: standard output); with --audit, the report as JSON")
    add(
        "--audit",
        action="store_true",
        help="right answers pass, empty ones, garbage, wrong ones and hedges do not, always, in bounded time",
    )
    add(
        "--param", action="append", default=[], metavar="KEY=VALUE", help="a parameter of the verifier; may be repeated"
    )
    add("--recipe", type=Path, help="a stage's YAML file, whose entry for VERIFIER gives parameters or a replacement")
    add(
        "--mapper",
        metavar="NAME",
        help="turns published rows into rows of ours, as in a recipe (gsm8k, file.py:f, ...)",
    )
    add("--check", metavar="NAME", help="take the reference of the rows' check of this name")
    add("--role", choices=get_args(Role), help="judge in this role (default: the check's, else score)")
    add(
        "--thinking-opened", action="store_true", help="the prompt has opened the thinking, so a response must close it"
    )
    add("--limit", type=whole, help="only the first so many rows")
    add("--jobs", type=whole, default=1, help="processes that judge side by side (default 1)")
    add(
        "--fault-share",
        type=_share,
        default=0.05,
        metavar="SHARE",
        help="exit with 1 above this share of faults",
    )
    return result


def whole(text: str, least: int = 1) -> int:
    """Parse a whole number of at least `least`. Raises ArgumentTypeError, whose text argparse shows."""
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least {least}")
    return number


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share: write a number from 0 to 1, 0.05 for 5 %")
    return share


def check_out(out: Path | None, source: str = "-") -> None:
    """Create the folder of `out`. Raises UserError if `out` cannot be written there, or if it is the file `source`.

    Call it before anything is judged: otherwise the results could be lost.
    """
    if out is None:
        return
    if source != "-" and out.exists() and Path(source).exists() and out.samefile(source):
        raise UserError(f"--out {out} is the file that the rows are read from; name another")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file, as {out / 'verdicts.jsonl'}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: its folder cannot be made: {error.strerror}") from error
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise UserError(f"--out {out} cannot be written: permission denied")


def choose(name: str, recipe: Path | None, given: Sequence[str]) -> Chosen:
    """Return the verifier of this name, or the one that `recipe` puts in its place.

    `given` are parameters as `KEY=VALUE`, the values in YAML. They replace those of the recipe.
    """
    spec, params = name, dict[str, Any]()
    if recipe is not None:
        from qwq_rl.evals.evaluate import named_verifiers
        from qwq_rl.rewards.scorer import chosen

        if not recipe.is_file():
            raise UserError(f"there is no recipe {recipe}")
        verifiers = named_verifiers([recipe])
        if name not in verifiers:
            raise UserError(
                f"{recipe} names no verifier `{name}`{did_you_mean(name, verifiers)} (it has {', '.join(verifiers)})"
            )
        spec, params = chosen(name, verifiers[name])
    return Chosen(name, spec, params | parameters(given))


def parameters(given: Sequence[str]) -> dict[str, Any]:
    """Parse `KEY=VALUE` arguments, whose values are YAML, into a mapping. Raises UserError."""
    values = {}
    for argument in given:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise UserError(f"--param {argument}: write it as KEY=VALUE")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--param {argument}: the value is no YAML: {error}") from error
    return values
