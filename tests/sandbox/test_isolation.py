"""The isolation a result states is the one that attempts in the jail proved, on strong machines and on weak ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwq_rl.sandbox import Job, LocalSandbox, SandboxUnavailable, probes

SUM = Job("sum", "print(2 + 3)", [{"input": "", "output": "5"}])
GREETING = {"seccomp": True, "landlock": 7, "namespaces": True, "own_root": True, "cgroups": True}


def test_every_attempt_succeeds_outside_and_fails_inside(sandbox: LocalSandbox) -> None:
    command = [sys.executable, "-I", "-S", "-c", probes.ATTEMPTS]
    outside = probes.read(subprocess.run(command, input=sys.executable, capture_output=True, text=True).stdout)
    inside, _ = sandbox.probe()
    assert outside.keys() == inside.keys()
    assert all(outside.values()), outside
    assert not any(inside.values()), inside


def test_a_result_states_the_isolation(sandbox: LocalSandbox) -> None:
    assert sandbox.judge([SUM])[0].isolation == sandbox.isolation in ("L1", "L2", "L3", "L4")


ALL_FAIL = {"network": False, "fork": False, "see files": False, "see parent": False}


@pytest.mark.parametrize(
    ("succeeds", "lacks", "level"),
    [
        ({}, {}, "L4"),
        ({}, {"cgroups": False}, "L3"),
        ({"see files": True}, {}, "L2"),
        ({"see parent": True}, {}, "L2"),
        ({}, {"own_root": False}, "L2"),
        ({}, {"landlock": 0}, "L1"),
        ({}, {"seccomp": False}, "L0"),
        ({"network": True}, {}, "L0"),
        ({"fork": True}, {}, "L0"),
    ],
)
def test_the_level_is_what_attempts_and_walls_prove(
    succeeds: dict[str, bool], lacks: dict[str, object], level: str
) -> None:
    assert probes.level(ALL_FAIL | succeeds, GREETING | lacks) == level


def test_native_programs_may_fork_but_need_landlock() -> None:
    assert probes.level(ALL_FAIL | {"fork": True}, GREETING, native=True) == "L4"
    assert probes.level(ALL_FAIL, GREETING | {"landlock": 0}, native=True) == "L0"


def test_no_sensible_answer_is_no_isolation() -> None:
    assert probes.level(probes.read("no JSON"), GREETING) == "L0"


def test_a_floor_that_cannot_be_reached_is_refused() -> None:
    with (
        LocalSandbox(1, require="L3", without=["namespaces"]) as weak,
        pytest.raises(SandboxUnavailable, match="isolation is L2 and L3 is required: the machine must allow user"),
    ):
        weak.judge([SUM])


def test_without_control_groups_the_rest_holds() -> None:
    with LocalSandbox(1, without=["cgroups"]) as weak:
        assert weak.isolation in ("L2", "L3")


def test_without_landlock_no_file_can_be_opened_at_all() -> None:
    with LocalSandbox(1, without=["landlock"]) as weak:
        assert weak.isolation == "L1"
        job = Job("p", "import math, re, heapq\nprint(2 + 3)\nopen('/etc/passwd')", SUM.tests)
        case = weak.judge([job])[0].cases[0]
        assert (case.verdict, case.stdout) == ("runtime_error", "5\n")
        assert "PermissionError" in case.stderr


def test_without_namespaces_the_other_walls_hold() -> None:
    with LocalSandbox(1, without=["namespaces"]) as weak:
        assert weak.isolation == "L2"
        assert weak.probe()[1]["namespaces"] is False
        assert weak.judge([SUM])[0].verdict == "accepted"


def test_without_seccomp_programs_are_refused() -> None:
    with LocalSandbox(1, without=["seccomp"]) as weak, pytest.raises(SandboxUnavailable, match="isolation is L0"):
        weak.judge([SUM])
    with LocalSandbox(1, without=["seccomp"], allow_unsafe=True) as weak:
        result = weak.judge([SUM])[0]
        assert (result.verdict, result.isolation) == ("accepted", "L0")


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxUnavailable, match="walls need Linux, this is darwin"):
        LocalSandbox(1).judge([SUM])


MANY_THREADS = """
import threading, time
threading.stack_size(32768)
started = 0
try:
    for started in range(999):
        threading.Thread(target=time.sleep, args=(1,)).start()
except RuntimeError:
    pass
print(len(open("/dev/stdin").read()), started < 500)
"""
SCRIPT = f"""
import json, sys
sys.path.insert(0, sys.argv[1])
from qwq_rl.sandbox import Job, LocalSandbox
bomb = Job("bomb", {MANY_THREADS!r}, [{{"input": "abc", "output": "3 True"}}])
honest = Job("honest", "print(1)", [{{"input": "", "output": "1"}}])
with LocalSandbox(2) as sandbox:
    results = sandbox.judge([bomb, *[honest] * 50])
    said = [(result.verdict, result.events, result.cases[0].stderr) for result in results]
    print(json.dumps([sandbox.isolation, said, sandbox.probe()[1]]))
"""


def run_elsewhere(root: Path, prefix: list[str]) -> tuple[str, list[object], dict[str, object]]:
    """Judge with the system's interpreter, which other users can read."""
    python = shutil.which("python3", path="/usr/bin")
    if python is None or subprocess.run([python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]).returncode:
        pytest.skip("there is no /usr/bin/python3 of version 3.11 or later")
    command = [*prefix, python, "-c", SCRIPT, str(root)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    isolation, said, found = json.loads(ended.stdout)
    return isolation, said, found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    "prefix", [[], ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]], ids=["root", "nobody"]
)
def test_it_holds_for_root_and_for_ordinary_users(prefix: list[str], root: Path) -> None:
    isolation, said, found = run_elsewhere(root, prefix)
    assert isolation in ("L2", "L3", "L4")
    assert said == [["accepted", [], ""]] * 51
    assert found["own_user"] or not found["namespaces"]
    assert (isolation > "L2") == (found["namespaces"] and found["own_root"])
