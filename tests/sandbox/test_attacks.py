"""Programs that attack. Those that print BROKEN do so in a plain interpreter, which shows that they have teeth."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwq_rl.sandbox import CaseResult, Job, Limits, LocalSandbox

Judge = Callable[..., CaseResult]
Plainly = Callable[..., str]


def test_a_listening_server_is_out_of_reach(run: Judge, plainly: Plainly) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5)\nprint('BROKEN')"
        assert run(code, "", "BROKEN").verdict == "runtime_error"
        assert plainly(code) == "BROKEN\n"


def test_a_bomb_of_forks_is_no_bomb(run: Judge) -> None:
    case = run("import os\nfor _ in range(99):\n    try: os.fork()\n    except OSError: print(1)", "", "1\n" * 99)
    assert case.verdict == "accepted"


def test_a_bomb_of_threads_ends(run: Judge) -> None:
    code = (
        "import threading, time\nthreading.stack_size(32768)\n"
        "while True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    )
    assert run(code, "", "x", cpu_s=1.0, wall_s=5.0).verdict in ("time_limit", "memory_limit", "runtime_error")
    assert run("print(1)", "", "1").verdict == "accepted"


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("while True: pass", "time_limit"),
        ("import threading\ndef f():\n    while True: pass\nfor _ in range(4): threading.Thread(target=f).start()",
         "time_limit"),
        ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "time_limit"),
        ("import time\ntime.sleep(60)", "time_limit"),
        ("import threading\nthreading.Thread(target=threading.Event().wait).start()", "time_limit"),
        ("import atexit, time\natexit.register(time.sleep, 60)", "time_limit"),
        ("while True: print('x' * 10000)", "output_limit"),
        ("import sys\nwhile True: print('x' * 10000, file=sys.stderr)", "output_limit"),
        ("import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
         "while True:\n    try: print('x' * 10000, flush=True)\n    except OSError: break", "output_limit"),
        ("x = 'a' * (300 << 20)", "memory_limit"),
        ("x = [10 ** 10 ** 8]", "time_limit"),
    ],
)  # fmt: skip
def test_what_has_no_end_is_ended(code: str, verdict: str, run: Judge) -> None:
    started = time.monotonic()
    case = run(code, "", "x", cpu_s=0.4, wall_s=1.5, output_kb=64)
    assert case.verdict == verdict
    assert time.monotonic() - started < 10


def test_cpu_limits_hold_to_fractions_of_a_second(run: Judge) -> None:
    case = run("while True: pass", "", "x", cpu_s=0.2)
    assert case.verdict == "time_limit"
    assert 0.19 < case.cpu_s < 0.5


@pytest.mark.parametrize("code", ["import sys\nsys.exit(0)", "import os\nos._exit(0)", "raise SystemExit(0)"])
def test_a_good_exit_status_alone_is_no_pass(code: str, run: Judge, call: Judge) -> None:
    assert run(code, "", "expected").verdict == "wrong_answer"
    assert (
        call(f"def f(x):\n    {code.splitlines()[0]}\n    {code.splitlines()[-1]}", [1], 1).verdict == "runtime_error"
    )


def test_an_object_that_equals_everything_equals_nothing(call: Judge) -> None:
    evil = "class E(int):\n    __eq__ = lambda self, other: True\n    __hash__ = int.__hash__\ndef f(x): return E(7)"
    names: dict[str, Any] = {}
    exec(evil, names)
    assert names["f"](1) == 8
    assert call(evil, [1], 8).verdict == "wrong_answer"
    assert call(evil, [1], 7).verdict == "accepted"


def test_a_forged_report_is_only_an_answer(call: Judge) -> None:
    forged = "import os\ndef f(x):\n    os.write(3, b'%s\\n')\n    os._exit(0)"
    assert call(forged % '{"value": 8}', [1], 9).verdict == "wrong_answer"
    assert call(forged % '{"verdict": "accepted"}', [1], 9).verdict == "runtime_error"
    assert call(forged % '{"passed": true}', [1], 9).verdict == "runtime_error"
    assert call(forged % '{"value": {"$int": "zz"}}', [1], 9).verdict == "wrong_answer"
    deep = "import os\ndef f(x):\n    os.write(3, b'{\"value\":' + b'[' * 10**5 + b'\\n')\n    os._exit(0)"
    assert call(deep, [1], 9).verdict == "runtime_error"


def test_a_program_cannot_pass_for_a_fault_of_the_sandbox(run: Judge) -> None:
    """A fault is masked in training: an attack that could feign one would escape its penalty."""
    write_all = "for fd in range(3, 64):\n    try: os.pwrite(fd, b'X' * 100, 0)\n    except OSError: pass"
    code = f"import os\n{write_all}\nos._exit(1)"
    assert run(code, "", "x").verdict == "runtime_error"


def test_expected_values_are_nowhere_in_the_process(sandbox: LocalSandbox) -> None:
    hunt = """
import gc, sys
needle = "SEC" + "RET-"
frame, places, found = sys._getframe(), gc.get_objects(), "none"
while frame:
    places += [frame.f_locals, frame.f_globals, list(frame.f_code.co_consts)]
    frame = frame.f_back
for place in places:
    items = place.values() if isinstance(place, dict) else place if isinstance(place, (list, tuple, set)) else ()
    for item in list(items):
        text = item.decode("latin-1") if isinstance(item, bytes) else item if isinstance(item, str) else ""
        if needle in text and text != needle:
            found = text[text.index(needle):][:10]
print(found)
"""
    tests = [{"input": "", "output": "SECRET-123"}] * 3
    cases = sandbox.judge([Job("p", hunt, tests, mode="all")])[0].cases
    assert [case.stdout for case in cases] == ["none\n"] * 3
    in_one_process = f"import io, contextlib\nexpected = 'SECRET-123'\nexec({hunt!r})"
    printed = subprocess.run([sys.executable, "-c", in_one_process], capture_output=True, text=True, check=True).stdout
    assert printed == "SECRET-123\n"


def test_no_submission_or_input_stays_in_the_fork_server(sandbox: LocalSandbox) -> None:
    """Later children inherit its memory, and could read there what others answered."""
    sandbox.judge([Job("p", "x = 'REMAINS-1'\nprint(input())", [{"input": "REMAINS-2", "output": "REMAINS-3"}])])
    server = _children(sandbox._link.process.pid)[0]  # type: ignore[union-attr]
    content = b""
    try:
        with open(f"/proc/{server}/maps") as maps, open(f"/proc/{server}/mem", "rb") as memory:
            for line in maps:
                place, rights = line.split()[:2]
                if "rw" in rights:
                    start, end = (int(part, 16) for part in place.split("-"))
                    memory.seek(start)
                    content += memory.read(end - start)
    except PermissionError:
        pytest.skip("this user may not read the memory of the fork server")
    assert b"_SERVERS_ALONE" in content, "its memory was not read"
    assert b"REMAINS-" not in content


def test_a_daemon_does_not_survive(run: Judge, plainly: Plainly, tmp_path: Path) -> None:
    code = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(0.5)
        open({str(tmp_path / "survived")!r}, "w").close()
    os._exit(0)
"""
    run(code, "", "")
    time.sleep(1)
    assert not (tmp_path / "survived").exists()
    plainly(code)
    time.sleep(1)
    assert (tmp_path / "survived").exists()


@pytest.mark.parametrize("target", ["os.getppid()", "-1", "0", "1"])
def test_killing_the_fork_server_fails(target: str, sandbox: LocalSandbox) -> None:
    code = f"import os\ntry: os.kill({target}, 9)\nexcept OSError: print('no')"
    jobs = [
        Job("attack", code, [{"input": "", "output": "no"}]),
        Job("other", "print(1)", [{"input": "", "output": "1"}]),
    ]
    results = sandbox.judge(jobs)
    assert [result.verdict for result in results] == ["accepted"] * 2
    assert not any("died" in event for result in results for event in result.events)


def test_killing_the_parent_works_in_a_plain_interpreter() -> None:
    attack = "import os\nos.kill(os.getppid(), 9)"
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {attack!r}])"
    assert subprocess.run([sys.executable, "-c", parent], check=False).returncode == -9


def test_siblings_cannot_be_found(sandbox: LocalSandbox) -> None:
    """Two children at once: one holds a value, the other walks all processes it can see and tries their files."""
    holder = "import time\ntime.sleep(1)\nprint(input())"
    thief = """
import os
got = "nothing"
for pid in range(1, 200):
    for name in ("fd/0", "fd/1", "mem", "environ", "cmdline"):
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file:
                file.read(1)
            if pid != os.getpid():
                got = f"/proc/{pid}/{name}"
        except OSError:
            pass
print(got)
"""
    with LocalSandbox(2) as pair:
        results = pair.judge(
            [
                Job("holder", holder, [{"input": "answer", "output": "answer"}]),
                Job("thief", thief, [{"input": "", "output": "nothing"}], limits=Limits(cpu_s=5)),
            ]
        )
    assert [result.verdict for result in results] == ["accepted", "accepted"]


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
