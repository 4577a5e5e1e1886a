"""`qwq-rl sandbox run` judges a file of jobs, `serve` over HTTP; `doctor` says how well programs are shut in here."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from qwq_rl.sandbox import probes
from qwq_rl.sandbox.local import WALLS, LocalSandbox, SandboxUnavailable
from qwq_rl.sandbox.protocol import LEVELS, Job, JobError

_BATCH = 256
"""Jobs that `run` judges before it writes their results."""


def main(argv: Sequence[str]) -> int:
    """Run the command. Exit status: 0; 1 if `doctor` finds too little isolation; 2 for bad input."""
    parser = argparse.ArgumentParser(prog="qwq-rl sandbox", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="judge jobs, one JSON object a line")
    run.add_argument("jobs", type=Path)
    run.add_argument("--out", type=Path, required=True, help="where results go, one a line, in the jobs' order")
    run.add_argument("--require", choices=LEVELS, default="L1", help="refuse to run below this isolation (default L1)")
    run.add_argument("--unsafe", action="store_true", help="run trusted programs even where no isolation holds")
    doctor_args = commands.add_parser("doctor", help="try to break out of the jail, and say what held")
    doctor_args.add_argument("--require", choices=LEVELS, default="L1", help="exit 1 below this isolation (default L1)")
    doctor_args.add_argument(
        "--without", action="append", default=[], choices=WALLS, help="leave a wall out, to see the rest"
    )
    commands.add_parser("serve", add_help=False, help="judge over HTTP (extra `sandbox-server`)")
    # before parsing: `serve` has a parser of its own, which needs the extra packages
    if list(argv[:1]) == ["serve"]:
        return _serve(argv[1:])
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "doctor":
            return doctor(arguments.require, arguments.without)
        return run_jobs_file(arguments.jobs, arguments.out, arguments.require, unsafe=arguments.unsafe)
    except (JobError, SandboxUnavailable, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _serve(argv: Sequence[str]) -> int:
    try:
        from qwq_rl.sandbox.http import serve
    except ImportError as error:
        print(f"error: {error}: install the extra, pip install 'qwq-rl[sandbox-server]'", file=sys.stderr)
        return 2
    return serve.main(argv)


def run_jobs_file(path: Path, out: Path, require: str = "L1", *, unsafe: bool = False) -> int:
    """Judge every job of a JSON Lines file, write one result per line, and return 0.

    Raises `JobError` that names the file and the line.
    """
    jobs = list(_read_jobs(path))
    with LocalSandbox(require=require, allow_unsafe=unsafe) as sandbox, out.open("w") as file:
        for start in range(0, len(jobs), _BATCH):
            for result in sandbox.judge(jobs[start : start + _BATCH]):
                file.write(json.dumps(result.to_dict()) + "\n")
    return 0


def doctor(require: str = "L1", without: Sequence[str] = ()) -> int:
    """Print which attempts to break out succeed outside and inside the jail.

    Returns 0 if the isolation is `require` or better, and above L0; else 1.
    """
    command = [sys.executable, "-I", "-S", "-c", probes.ATTEMPTS]
    plain = subprocess.run(command, input=probes.__file__ + "\n", capture_output=True, text=True, check=False)
    outside = probes.read(plain.stdout)
    with LocalSandbox(allow_unsafe=True, without=without) as sandbox:
        level = sandbox.isolation
        inside, walls = sandbox.probe()
        versions = sandbox.languages()
    print(f"{'attempt':12}{'plain python':>14}{'in the jail':>14}")
    for name in sorted(outside | inside):
        print(f"{name:12}{_outcome(outside.get(name)):>14}{_outcome(inside.get(name)):>14}")
    print(
        f"\nseccomp filter {_yes(walls['seccomp'])}, refused calls are told {_yes(walls['notices'])}, ",
        end="",
    )
    print(f"Landlock version {walls['landlock']}, namespaces {_yes(walls['namespaces'])}, ", end="")
    print(f"own file tree {_yes(walls['own_root'])}, own user id {_yes(walls['own_user'])}, ", end="")
    print(f"control groups {_yes(walls['cgroups'])}")
    print("languages: " + "; ".join(f"{name} ({version})" for name, version in versions.items()))
    passing = [name for name, succeeded in inside.items() if succeeded]
    if level != LEVELS[-1]:
        print(f"for {LEVELS[LEVELS.index(level) + 1]}: {probes.NEEDS[LEVELS[LEVELS.index(level) + 1]]}")
    if level < "L2":
        print(f"what passes here: {', '.join(passing) or 'nothing that was tried'}")
    print(f"isolation {level}")
    return 0 if level >= require and level != "L0" else 1


def _read_jobs(path: Path) -> Iterator[Job]:
    with path.open() as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield Job.from_dict(json.loads(line))
            except json.JSONDecodeError as error:
                raise JobError(f"{path}:{number}: not JSON: {error}") from None
            except JobError as error:
                raise JobError(f"{path}:{number}: {error}") from None


def _outcome(succeeded: bool | None) -> str:
    return "not tried" if succeeded is None else "succeeds" if succeeded else "fails"


def _yes(value: object) -> str:
    return "yes" if value else "no"
