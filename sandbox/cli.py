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


def main(argv: Sequence[str]) -> int:
    """Run the command; its exit status: 0, 1 where `doctor` finds too little isolation, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="qwq-rl sandbox", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="judge jobs, one JSON object a line")
    run.add_argument("jobs", type=Path)
    run.add_argument("--out", type=Path, required=True, help="where results go, one a line, in the jobs' order")
    run.add_argument("--require", choices=LEVELS, default="L1", help="refuse to run below this isolation (default L1)")
    run.add_argument("--unsafe", action="store_true", help="run trusted programs even where no isolation holds")
    tried = commands.add_parser("doctor", help="try to break out of the jail, and say what held")
    tried.add_argument("--require", choices=LEVELS, default="L1", help="exit 1 below this isolation (default L1)")
    tried.add_argument(
        "--without", action="append", default=[], choices=WALLS, help="leave a wall out, to see the rest"
    )
    commands.add_parser("serve", add_help=False, help="judge over HTTP (extra `sandbox-server`)")
    if list(argv[:1]) == ["serve"]:
        return _serve(argv[1:])
    given = parser.parse_args(argv)
    try:
        if given.command == "doctor":
            return doctor(given.require, given.without)
        return run_jobs_file(given.jobs, given.out, given.require, unsafe=given.unsafe)
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
    """Judge every job of a JSON Lines file and write one result a line; 0. Raises `JobError` naming file and line."""
    jobs = list(_read_jobs(path))
    with LocalSandbox(require=require, allow_unsafe=unsafe) as sandbox, out.open("w") as file:
        for start in range(0, len(jobs), _BATCH):
            for result in sandbox.judge(jobs[start : start + _BATCH]):
                file.write(json.dumps(result.to_dict()) + "\n")
    return 0


def doctor(require: str = "L1", without: Sequence[str] = ()) -> int:
    """Print each attempt to break out, without and within the jail; 0 where the isolation is `require` or better."""
    command = [sys.executable, "-I", "-S", "-c", probes.ATTEMPTS]
    bare = subprocess.run(command, input=probes.__file__ + "\n", capture_output=True, text=True, check=False)
    outside = probes.read(bare.stdout)
    with LocalSandbox(allow_unsafe=True, without=without) as sandbox:
        level = sandbox.isolation
        inside, found = sandbox.probe()
        known = sandbox.languages()
    print(f"{'attempt':12}{'plain python':>14}{'in the jail':>14}")
    for name in sorted(outside | inside):
        print(f"{name:12}{_word(outside.get(name)):>14}{_word(inside.get(name)):>14}")
    print(f"\nseccomp filter {_yes(found['seccomp'])}, refused calls are told {_yes(found['notices'])}, ", end="")
    print(f"Landlock version {found['landlock']}, namespaces {_yes(found['namespaces'])}, ", end="")
    print(f"own file tree {_yes(found['own_root'])}, own user id {_yes(found['own_user'])}, ", end="")
    print(f"control groups {_yes(found['cgroups'])}")
    print("languages: " + "; ".join(f"{name} ({version})" for name, version in known.items()))
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


def _word(succeeded: bool | None) -> str:
    return "not tried" if succeeded is None else "succeeds" if succeeded else "fails"


def _yes(value: object) -> str:
    return "yes" if value else "no"
