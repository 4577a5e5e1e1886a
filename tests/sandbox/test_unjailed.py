"""Where no walls can be built: a process that lacks all that only Linux has judges, if that is accepted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WITHOUT_LINUX = """
import json, os, select, signal, socket, sys
missing = {
    os: ("eventfd", "eventfd_read", "eventfd_write", "memfd_create", "pidfd_open", "sched_getaffinity", "O_PATH"),
    socket: ("SOCK_SEQPACKET",),
    signal: ("pidfd_send_signal",),
    select: ("epoll",),
}
for module, names in missing.items():
    for name in names:
        delattr(module, name)
sys.platform = "darwin"
sys.path.insert(0, sys.argv[1])
from qwq_rl.sandbox import Job, LocalSandbox
from qwq_rl.sandbox.cli import main
"""
JUDGE = """
jobs = [Job.from_dict(job) for job in json.load(sys.stdin)]
with LocalSandbox(2, allow_unsafe=True) as sandbox:
    print(json.dumps([result.to_dict() for result in sandbox.judge(jobs)]))
"""
GIVEN = [{"input": "1", "output": "2"}]
CALL, ASSERT = [{"args": [1], "expected": 2}], [{"assert": "assert f(1) == 2"}]
JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "right": ("accepted", {"code": "print(int(input()) + 1)", "tests": GIVEN}),
    "wrong": ("wrong_answer", {"code": "print(input())", "tests": GIVEN}),
    "called": ("accepted", {"code": "def f(x): return x + 1", "tests": CALL, "entry_point": "f"}),
    "asserted": ("accepted", {"code": "def f(x): return x + 1", "tests": ASSERT, "entry_point": "f"}),
    "asserted, wrong": ("wrong_answer", {"code": "def f(x): return x", "tests": ASSERT, "entry_point": "f"}),
    "a loop": ("time_limit", {"code": "while True: pass", "tests": GIVEN, "limits": {"cpu_s": 0.3}}),
    "a sleep": ("time_limit", {"code": "import time\ntime.sleep(60)", "tests": GIVEN, "limits": {"wall_s": 0.3}}),
    "output": ("output_limit", {"code": "while True: print('x' * 9999)", "tests": GIVEN, "limits": {"output_kb": 4}}),
    "an error": ("runtime_error", {"code": "1 / 0", "tests": GIVEN}),
    "no program": ("compile_error", {"code": "(", "tests": GIVEN}),
    "checked": (
        "accepted",
        {"code": "print(7)", "tests": GIVEN, "checker": "def check(given, output, expected): return output == '7\\n'"},
    ),
}


def elsewhere(root: Path, script: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_LINUX + script, str(root)]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=120, check=False)


def test_it_judges_without_walls_and_says_so(root: Path) -> None:
    jobs = [{"id": name, **job} for name, (_, job) in JOBS.items()]
    ended = elsewhere(root, JUDGE, json.dumps(jobs))
    assert ended.returncode == 0, ended.stderr
    results = json.loads(ended.stdout)
    assert {result["id"]: result["verdict"] for result in results} == {name: said for name, (said, _) in JOBS.items()}
    assert {result["isolation"] for result in results} == {"L0"}


def test_it_refuses_until_that_is_accepted(root: Path, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text(json.dumps({"id": "p", "code": "print(2)", "tests": GIVEN}) + "\n")
    command = f"sys.exit(main(['run', {str(jobs)!r}, '--out', {str(tmp_path / 'out')!r}, *sys.argv[2:]]))"
    ended = elsewhere(root, command)
    assert ended.returncode == 2
    assert "walls need Linux, this is darwin" in ended.stderr
    assert elsewhere(root, command.replace("*sys.argv[2:]", "'--unsafe'")).returncode == 0
    assert json.loads((tmp_path / "out").read_text())["isolation"] == "L0"


def test_the_doctor_says_that_there_are_no_walls(root: Path) -> None:
    ended = elsewhere(root, "sys.exit(main(['doctor']))")
    assert ended.returncode == 1
    assert ended.stdout.splitlines()[-1] == "isolation L0"
    assert "what passes here: " in ended.stdout


def test_what_is_cancelled_is_ended(root: Path) -> None:
    script = """
import time
sleep = Job("p", "import time\\ntime.sleep(60)", [{"input": "", "output": ""}])
with LocalSandbox(1, allow_unsafe=True) as sandbox:
    for _, result in sandbox.judge_each([Job("q", "print(1)", [{"input": "", "output": "1"}]), sleep]):
        print(result.verdict)
        break
    started = time.monotonic()
    print(sandbox.judge([Job("r", "print(1)", [{"input": "", "output": "1"}])])[0].verdict)
    print(time.monotonic() - started < 20)
"""
    assert elsewhere(root, script).stdout.split() == ["accepted", "accepted", "True"]


@pytest.mark.parametrize("language", ["cpp", "bash"])
def test_other_languages_are_refused_by_name(language: str, root: Path) -> None:
    script = f"LocalSandbox(1, allow_unsafe=True).judge([Job('p', '', {GIVEN!r}, language={language!r})])"
    assert "on darwin there is only python" in elsewhere(root, script).stderr


def test_a_recipe_accepts_it_by_requiring_nothing(root: Path) -> None:
    script = """
from qwq_rl.errors import UserError
from qwq_rl.verifiers import Response
from qwq_rl.verifiers.builtin.code_tests import code
text = "```python\\nprint(2)\\n```"
item = {"reference": {"tests": [{"input": "", "output": "2"}]}}, Response(text=text, answer=text)
print(code(require="L0")(*item).status)
try:
    code()(*item)
except UserError as error:
    print(error)
"""
    said = elsewhere(root, script).stdout.splitlines()
    assert said[0] == "correct"
    assert "walls need Linux, this is darwin" in said[1]
