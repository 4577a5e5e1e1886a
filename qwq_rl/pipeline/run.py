"""`qwq-rl run RECIPE`: check the recipe, train every stage, evaluate, report, export; once or for each seed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from qwq_rl.config.recipe import PIPELINE, load_pipeline, split_overrides, stage_files
from qwq_rl.errors import GateFailed
from qwq_rl.pipeline.plan import PipelinePlan
from qwq_rl.pipeline.scheduler import StartCommands, run_stages
from qwq_rl.pipeline.terminal import Board, print_closing
from qwq_rl.run_folder.files import RunFolder, write_json
from qwq_rl.run_folder.locks import hold

EPILOG = """\
Any field of any stage can be set: --1_math_code.update.lr=5e-4 --0_cold_start.steps=600; the pipeline's own fields by
--pipeline.parallel=1. Interrupted anywhere (Ctrl-C, a kill, a crash), the same command goes on; finished stages are not
trained again. A recipe edited after its stage was trained is refused until --from names the stage to begin again at.
An accelerate.yaml in the recipe's folder says how `accelerate launch` starts stages (default: one process, here).

exit status: 0 done, 1 a process failed, 2 a mistake in the recipe or the command, 3 the run folder cannot be used as it
is, 4 a gate was not passed, 130 stopped by Ctrl-C

examples:
  qwq-rl run recipes/tiny
  qwq-rl run recipes/tiny --seeds 0,1,2
  qwq-rl run recipes/tiny --name lower_lr --1_math_code.update.lr=5e-4
  qwq-rl run recipes/tiny --from 1_math_code
"""


@dataclass(frozen=True)
class RunOptions:
    """The options of the command line. `overrides`: stage (or `pipeline`) -> its `--a.b=c`."""

    recipe: Path
    folder: RunFolder
    seeds: tuple[int, ...]
    restart: str | None
    overrides: Mapping[str, Sequence[str]]

    def plan(self, seed: int | None) -> PipelinePlan:
        """Load the recipe with the overrides; a given `seed` is set in every stage."""
        names = stage_files(self.recipe) if seed is not None else ()
        seeded = {name: [*self.overrides.get(name, ()), f"--seed={seed}"] for name in names}
        overrides = {**self.overrides, **seeded}
        pipeline, stages = load_pipeline(self.recipe, overrides)
        return PipelinePlan(self.recipe, pipeline, stages, overrides)


Finish = Callable[[RunFolder, str], dict[str, Any]]
"""Called with a run folder and the stage to release after the stages have ended; returns the summary of the run."""


def execute(order: RunOptions, programs: StartCommands, board: Board, finish: Finish) -> None:
    """Run the recipe, once or for each seed. Raises what `run_stages` raises; GateFailed only after the last seed."""
    if not order.seeds:
        summary = _run_one(order, None, order.folder, programs, board, finish)
        print_closing(board.console, order.folder, summary)
        return
    with hold(order.folder.lock, f"`qwq-rl run` in {order.folder.path}"):
        gate_failures: dict[int, str] = {}
        for seed in order.seeds:
            folder = RunFolder(order.folder.path / f"seed-{seed}")
            try:
                _run_one(order, seed, folder, programs, board, finish)
            except GateFailed as error:
                # The other seeds still run; the failure is raised after all of them.
                gate_failures[seed] = str(error)
                board.say(f"seed {seed} collapsed: {error}")
        print_closing(board.console, order.folder, _finish_seeds(order))
    if gate_failures:
        names = ", ".join(map(str, gate_failures))
        raise GateFailed(
            f"{len(gate_failures)} of {len(order.seeds)} seeds did not pass a gate: seed {names} (see above)"
        )


def _run_one(
    order: RunOptions, seed: int | None, folder: RunFolder, programs: StartCommands, board: Board, finish: Finish
) -> dict[str, Any]:
    """Run the stages in one folder and finish it. A run that fails a gate gets its summary and page too."""
    plan = order.plan(seed)
    board.say(f"{plan.folder} -> {folder.path}" + (f" (seed {seed})" if seed is not None else ""))
    try:
        with board:
            run_stages(plan, folder, programs, board, order.restart)
    except GateFailed:
        finish(folder, plan.pipeline.release)
        raise
    return finish(folder, plan.pipeline.release)


def finish_run(folder: RunFolder, release: str) -> dict[str, Any]:
    """Write summary.json, model/ (if the stage to release is done) and report.html. Returns the summary."""
    from qwq_rl.export.export import export
    from qwq_rl.report.build import write_report
    from qwq_rl.report.summary import summarise

    summary = summarise(folder.path)
    write_json(folder.summary, summary)
    if folder.stage(release).done.exists():
        export(folder.path, release, folder.model)
    write_report(folder.path)
    return summary


def _finish_seeds(order: RunOptions) -> dict[str, Any]:
    """Write summary.json and report.html over all seeds, also those that failed a gate. Returns the summary."""
    from qwq_rl.report.build import write_report
    from qwq_rl.report.summary import summarise_seeds

    summary = summarise_seeds([order.folder.path / f"seed-{seed}" for seed in order.seeds])
    write_json(order.folder.summary, summary)
    write_report(order.folder.path)
    return summary


def read_order(argv: Sequence[str]) -> RunOptions:
    """Read the command line and check the recipe. Raises UserError or RecipeError for a mistake."""
    parser = argparse.ArgumentParser(
        prog="qwq-rl run",
        usage="qwq-rl run RECIPE [--name N] [--seeds 0,1,2] [--runs DIR] [--from STAGE] [--STAGE.a.b=c ...]",
        description="Train every stage of a recipe in the order they need one another, each in a process of its own.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a folder with a pipeline.yaml")
    parser.add_argument("--name", help="the run's folder under --runs (default: the recipe folder's name)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs lie (default: runs)")
    parser.add_argument("--seeds", type=_seeds, default=(), help="run all of it once for each seed, in NAME/seed-S")
    parser.add_argument("--from", dest="restart", metavar="STAGE", help="set this stage and what needs it aside, anew")
    options, rest = parser.parse_known_args(argv)
    from qwq_rl.config.check import check  # here, because importing it would make --help slow

    recipe: Path = options.recipe.parent if options.recipe.name == f"{PIPELINE}.yaml" else options.recipe
    check(recipe, rest)
    name = options.name or recipe.resolve().name
    overrides = split_overrides(rest, stage_files(recipe))
    return RunOptions(recipe, RunFolder(options.runs / name), options.seeds, options.restart, overrides)


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write whole numbers, as in 0,1,2") from None
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: seeds are distinct and not negative")
    return seeds


def main(argv: Sequence[str]) -> int:
    """Run the command line of `qwq-rl run`. Returns 0 or raises UserError."""
    order = read_order(argv)
    execute(order, StartCommands.of_recipe(order.recipe), Board(Console()), finish_run)
    return 0
