"""`qwq-rl report RUN [RUN_B]`: read the run folders and write the page."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qwq_rl.errors import RunStateError
from qwq_rl.report.load import Run, load_run, require_run, seeds
from qwq_rl.report.page import body, document
from qwq_rl.report.several_runs import comparison_body, seeds_body
from qwq_rl.run_folder.files import RunFolder


def write_report(run: Path, other: Path | None = None, out: Path | None = None) -> Path:
    """Write the page of a run, of all seeds of a run, or of two compared runs. Return its path.

    The default of `out` is `RUN/report.html`, for two runs `RUN/report-against-OTHER.html`. Raises RunStateError if a
    folder is not a run, if one of its files is not JSON, or if the page cannot be written.
    """
    require_run(run)
    if other is None:
        page, target = _page_of(run), RunFolder(run).report
    else:
        first, second = _with_distinct_names(_single(run), _single(other))
        page = document(f"{first.name} against {second.name}", comparison_body(first, second))
        # A distinct name may be a relative path with slashes.
        target = run / f"report-against-{second.name.replace('/', '-')}.html"
    return _write(out or target, page)


def _page_of(path: Path) -> str:
    seed_folders = seeds(path)
    if seed_folders:
        name = path.resolve().name
        return document(
            f"{name}: {len(seed_folders)} seeds",
            seeds_body(name, [_named(load_run(seed_folder), seed_folder.name) for seed_folder in seed_folders]),
        )
    run = load_run(path)
    return document(run.name, body(run))


def _single(path: Path) -> Run:
    """Load one run to compare. Raises RunStateError for a folder of seeds: the user must choose one of them."""
    require_run(path)
    seed_folders = seeds(path)
    if seed_folders:
        raise RunStateError(f"{path} holds {len(seed_folders)} seeds; compare one of them: {seed_folders[0]}")
    return load_run(path)


def _with_distinct_names(first: Run, second: Run) -> tuple[Run, Run]:
    """Give two runs of the same name different ones: their paths below the folder that holds both."""
    if first.name != second.name:
        return first, second
    names = [str(run.path.resolve().relative_to(_common_folder(first, second))) for run in (first, second)]
    return _named(first, names[0]), _named(second, names[1])


def _common_folder(first: Run, second: Run) -> Path:
    # Of the parents: a run compared with itself, or with one inside it, would otherwise get the name ".".
    common = Path(os.path.commonpath([first.path.resolve().parent, second.path.resolve().parent]))
    return common


def _named(run: Run, name: str) -> Run:
    return replace(run, name=name)


def _write(path: Path, text: str) -> Path:
    # Written beside the target and then renamed, so that a reader never sees half a page.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunStateError(f"{path}: cannot be written ({error.strerror}); name another place with --out") from error
    return path


def find(name: str) -> Path:
    """Return the folder with this path, or with this name under runs/."""
    path = Path(name)
    return path if path.exists() or not (Path("runs") / name).exists() else Path("runs") / name


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line of `qwq-rl report` and print the page's path. The caller handles UserError."""
    parser = argparse.ArgumentParser(
        prog="qwq-rl report", description="Write a run's page: one HTML file that opens offline."
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its name under runs/")
    parser.add_argument("other", metavar="RUN_B", nargs="?", help="a second run to compare it with")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write the page (default: into RUN)")
    options = parser.parse_args(argv)
    other = find(options.other) if options.other else None
    print(write_report(find(options.run), other, options.out))
    return 0
