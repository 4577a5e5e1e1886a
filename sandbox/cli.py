"""`qwq-rl sandbox run` judges a file of jobs; `doctor` says how well this machine can shut programs in."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from qwq_rl.sandbox import probes
from qwq_rl.sandbox.local import LocalSandbox, SandboxUnavailable
from qwq_rl.sandbox.protocol import Job, JobError

_BATCH = 256


def main(argv: Sequence[str]) -> int:
    """Run the command; its exit status: 0, 1 where `doctor` finds isolation L0, 2 for bad input or an unfit machine."""
    parser = argparse.ArgumentParser(prog="qwq-rl sandbox", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="judge jobs, one JSON object a line")
    run.add_argument("jobs", type=Path)
    run.add_argument("--out", type=Path, required=True, help="where results go, one a line, in the jobs' order")
    commands.add_parser("doctor", help="try to break out of the jail, and say what held")
    given = parser.parse_args(argv)
    try:
        return doctor() if given.command == "doctor" else run_jobs_file(given.jobs, given.out)
    except (JobError, SandboxUnavailable, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run_jobs_file(path: Path, out: Path) -> int:
    """Judge every job of a JSON Lines file and write one result a line; 0. Raises `JobError` naming file and line."""
    jobs = list(_read_jobs(path))
    with LocalSandbox() as sandbox, out.open("w") as file:
        for start in range(0, len(jobs), _BATCH):
            for result in sandbox.judge(jobs[start : start + _BATCH]):
                file.write(json.dumps(result.to_dict()) + "\n")
    return 0


def doctor() -> int:
    """Print each attempt to break out, without and within the jail; 0 where the isolation is L1 or better."""
    command = [sys.executable, "-I", "-S", "-c", probes.ATTEMPTS]
    bare = subprocess.run(command, input=sys.executable + "\n", capture_output=True, text=True, check=False)
    outside = probes.read(bare.stdout)
    with LocalSandbox(allow_unsafe=True) as sandbox:
        level = sandbox.isolation
        inside, found = sandbox.probe()
    print(f"{'attempt':10}{'plain python':>14}{'in the jail':>14}")
    for name in sorted(outside | inside):
        print(f"{name:10}{_word(outside.get(name)):>14}{_word(inside.get(name)):>14}")
    print(f"\nseccomp filter {_yes(found['seccomp'])}, Landlock version {found['landlock']}, ", end="")
    print(f"namespaces {_yes(found['namespaces'])}, own user id {_yes(found['own_user'])}")
    print(f"isolation {level}")
    return 0 if level != "L0" else 1


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
