"""Every attack fails at every level that this machine reaches, and works where the walls are left out."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

from qwq_rl.sandbox import Job, Limits, LocalSandbox, Result
from qwq_rl.sandbox.local import WALLS

_PROGRAMS = runpy.run_path(str(Path(__file__).with_name("red_team.py")))
ATTACKS: dict[str, str] = _PROGRAMS["ATTACKS"]
SEEN_BELOW_L3: dict[str, str] = _PROGRAMS["SEEN_BELOW_L3"]
BOMBS: dict[str, tuple[str, tuple[str, ...]]] = _PROGRAMS["BOMBS"]
CHEATS: dict[str, str] = _PROGRAMS["CHEATS"]
LEVELS: dict[str, tuple[str, ...]] = {
    "L4": (),
    "L3": ("cgroups",),
    "L2": ("cgroups", "namespaces"),
    "L2, refused silently": ("cgroups", "namespaces", "notices"),
    "L1": ("cgroups", "namespaces", "landlock"),
}
ROOMY = Limits(memory_mb=512)


@cache
def results(level: str) -> tuple[str, dict[str, Result]]:
    """The level reached, and every attack's result there."""
    walls = WALLS if level == "open" else LEVELS[level]
    jobs = [
        Job(name, code, [{"input": os.uname().nodename, "output": "nothing"}], limits=ROOMY)
        for name, code in (ATTACKS | SEEN_BELOW_L3).items()
    ]
    with LocalSandbox(allow_unsafe=True, without=walls) as sandbox:
        return sandbox.isolation, {result.id: result for result in sandbox.judge(jobs)}


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    reached, _ = results(request.param)
    if reached < request.param[:2]:
        pytest.skip(f"this machine reaches {reached} only")
    assert reached == request.param[:2]
    return str(request.param)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_fails_at_every_level(name: str, level: str) -> None:
    result = results(level)[1][name]
    assert "BROKEN" not in result.cases[0].stdout
    assert result.verdict in ("runtime_error", "wrong_answer", "memory_limit")


@pytest.mark.parametrize("name", ATTACKS | SEEN_BELOW_L3)
def test_that_attack_works_in_an_open_sandbox(name: str) -> None:
    reached, found = results("open")
    assert reached == "L0"
    assert "BROKEN" in found[name].cases[0].stdout, found[name].cases[0].stderr


@pytest.mark.parametrize("name", SEEN_BELOW_L3)
def test_namespaces_hide_what_else_can_be_seen(name: str, level: str) -> None:
    assert ("BROKEN" in results(level)[1][name].cases[0].stdout) == (level < "L3")


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("a socket", "attempt: network"),
        ("fork", "attempt: process"),
        ("exec", "attempt: process"),
        ("a signal to the parent", "attempt: signal"),
        ("ptrace", "attempt: memory of others"),
        ("a user namespace", "attempt: namespace"),
        ("a shared memory segment", "attempt: shared memory"),
        ("a ring of calls", "attempt: kernel"),
    ],
)
def test_an_attempt_is_an_event(name: str, event: str) -> None:
    reached, found = results("L4")
    if reached == "L0":
        pytest.skip("no seccomp here")
    assert event in found[name].events


def test_an_honest_program_makes_no_event() -> None:
    code = "import os, threading\nprint(os.getpid() > 0)\nthreading.Thread(target=int).start()"
    with LocalSandbox(1) as sandbox:
        (result,) = sandbox.judge([Job("p", code, [{"input": "", "output": "True"}])])
    assert (result.verdict, result.events) == ("accepted", ())


def test_who_tries_over_and_over_is_ended() -> None:
    code = "import os\nwhile True:\n    try: os.kill(1, 9)\n    except OSError: pass"
    with LocalSandbox(1) as sandbox:
        (result,) = sandbox.judge([Job("p", code, [{"input": "", "output": ""}])])
    assert result.verdict == "runtime_error"
    assert result.events == ("attempt: signal",)
    assert result.cases[0].cpu_s < 1


@pytest.mark.slow
def test_bombs_are_ended_at_every_level(level: str) -> None:
    limits = Limits(cpu_s=0.4, wall_s=2.0, memory_mb=64, output_kb=64)
    jobs = [Job(name, code, [{"input": "", "output": "x"}], limits=limits) for name, (code, _) in BOMBS.items()]
    with LocalSandbox(without=LEVELS[level]) as sandbox:
        found = {result.id: result.verdict for result in sandbox.judge(jobs)}
        assert sandbox.judge([Job("after", "print(1)", [{"input": "", "output": "1"}])])[0].verdict == "accepted"
    for name, verdict in found.items():
        assert verdict in BOMBS[name][1], name


BOUNDS = """
import resource as r
r.setrlimit(r.RLIMIT_AS, (512 << 20,) * 2), r.setrlimit(r.RLIMIT_FSIZE, (8 << 20,) * 2)
"""
"""For the sake of the machine that the bombs are tried on."""
UNTRIED_OUTSIDE = {"forks", "threads", "a deep program"}
"""Not tried: the first two would hit the whole machine (that they could is shown above); the last only ends itself."""


@pytest.mark.slow
def test_bombs_go_off_in_a_plain_interpreter(tmp_path: Path) -> None:
    """Beyond what the jail allows them: 2 seconds, 64 KiB, 64 MiB; or they take the interpreter with them."""
    running = {}
    for name in BOMBS.keys() - UNTRIED_OUTSIDE:
        with (tmp_path / name).open("wb") as said:
            running[name] = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", BOUNDS + BOMBS[name][0]], stdout=said, stderr=said
            )
    time.sleep(2.5)
    for name, process in running.items():
        stays = process.poll() is None
        if stays:
            process.kill()
            process.wait()
        text = (tmp_path / name).read_bytes()
        grew = len(text) > 64 << 10 or process.returncode == -signal.SIGXFSZ or b"File too large" in text
        assert stays or grew or b"MemoryError" in text or process.returncode == -signal.SIGSEGV, (name, text[-300:])


def test_cheats_earn_nothing_at_every_level(level: str) -> None:
    jobs = [
        Job(name, code, [test], entry_point="f", limits=Limits(cpu_s=1))
        for name, code in CHEATS.items()
        for test in ({"args": [1], "expected": 8}, {"assert": "assert f(1) == 8"})
    ]
    with LocalSandbox(without=LEVELS[level]) as sandbox:
        for result in sandbox.judge(jobs):
            assert result.verdict in ("wrong_answer", "runtime_error"), result


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_passes_a_judge_in_the_same_process(name: str) -> None:
    """What most judges do: the assert runs behind the submission, and exit status 0 means that it passed."""
    script = f"{CHEATS[name]}\nexec('assert f(1) == 8')\n"
    ended = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr


BASH_BOMB = "f() { f | f & }; f; sleep 1; echo 1"
NATIVE = {
    "a header of the host": ("cpp", '#include "/etc/passwd"\nint main(){}', "compile_error"),
    "a file in the binary": (
        "cpp",
        'asm(".globl x\\nx: .incbin \\"/etc/passwd\\"");extern char x;int main(){__builtin_printf("BROKEN %c",x);}',
        "compile_error",
    ),
    "a bomb of data": ("cpp", 'int x[80<<20]={1};int main(){__builtin_printf("BROKEN %d",x[0]);}', "compile_error"),
    "fork in C++": (
        "cpp",
        '#include <unistd.h>\n#include <cstdio>\nint main(){if(fork()>=0)puts("BROKEN");}',
        "wrong_answer",
    ),
    "exec in C++": (
        "cpp",
        '#include <unistd.h>\nint main(){execl("/bin/cat","cat","/etc/passwd",(char*)0);return 1;}',
        "runtime_error",
    ),
    "a socket in C++": (
        "cpp",
        '#include <sys/socket.h>\n#include <cstdio>\nint main(){if(socket(2,2,0)>=0)puts("BROKEN");}',
        "wrong_answer",
    ),
    "a file in JavaScript": (
        "javascript",
        "require('fs').readFileSync('/etc/passwd');console.log('BROKEN')",
        "runtime_error",
    ),
    "a process in JavaScript": (
        "javascript",
        "require('child_process').execSync('true');console.log('BROKEN')",
        "runtime_error",
    ),
    "a server in JavaScript": (
        "javascript",
        "require('net').createServer().listen(0,()=>{console.log('BROKEN');process.exit()})",
        "runtime_error",
    ),
    "a file in Bash": ("bash", "cat /etc/passwd && echo BROKEN", "runtime_error"),
    "the network in Bash": ("bash", "echo x > /dev/udp/127.0.0.1/9 && echo BROKEN", "runtime_error"),
    "a written file in Bash": ("bash", "echo x > /tmp/qwq-attack && echo BROKEN", "runtime_error"),
    "a process that stays in Bash": ("bash", "(sleep 1; echo BROKEN) & disown; echo 2", "wrong_answer"),
    "leaving the group in Bash": ("bash", "setsid sleep 9 && echo BROKEN", "runtime_error"),
    "a signal to all in Bash": ("bash", "kill -0 1 && echo BROKEN", "runtime_error"),
}


@cache
def native_results(level: str) -> tuple[str, dict[str, Result]]:
    with LocalSandbox(without=LEVELS[level]) as sandbox:
        there = sandbox.languages()
        limits = Limits(cpu_s=5, wall_s=30)
        jobs = [
            Job(name, code, [{"input": "", "output": "1"}], language=language, limits=limits)
            for name, (language, code, _) in NATIVE.items()
            if language in there
        ]
        found = {result.id: result for result in sandbox.judge(jobs)}
        return next(iter(found.values())).isolation, found


@pytest.mark.slow
@pytest.mark.parametrize("level", ["L4", "L2"])
@pytest.mark.parametrize("name", NATIVE)
def test_attacks_in_other_languages_fail(name: str, level: str) -> None:
    reached, found = native_results(level)
    if name not in found:
        pytest.skip(f"there is no {NATIVE[name][0]} here")
    assert reached <= level
    result = found[name]
    assert "BROKEN" not in result.cases[0].stdout
    # without a bound on processes a shell gets none at all
    refused = NATIVE[name][0] == "bash" and "fork: Operation not permitted" in result.cases[0].stderr
    assert result.verdict == ("runtime_error" if refused else NATIVE[name][2]), result


@cache
def open_native_results() -> dict[str, Result]:
    with LocalSandbox(allow_unsafe=True, without=WALLS) as sandbox:
        there, limits = sandbox.languages(), Limits(cpu_s=5, wall_s=30)
        given = [{"input": "", "output": "1"}]
        jobs = [
            Job(name, code, given, language=language, limits=limits)
            for name, (language, code, _) in NATIVE.items()
            if language in there and name != STAYS
        ]
        return {result.id: result for result in sandbox.judge(jobs)}


STAYS = "a process that stays in Bash"


@pytest.mark.slow
@pytest.mark.parametrize("name", NATIVE)
def test_that_attack_works_in_an_open_sandbox_in_other_languages(name: str) -> None:
    """It says so, or shows the file that it was after."""
    if name == STAYS:
        ended = subprocess.run(["bash", "-c", NATIVE[name][1]], capture_output=True, text=True, check=True)
        assert ended.stdout == "2\nBROKEN\n"
        return
    found = open_native_results()
    if name not in found:
        pytest.skip(f"there is no {NATIVE[name][0]} here")
    assert found[name].isolation == "L0"
    said = found[name].cases[0].stdout + found[name].cases[0].stderr
    assert "BROKEN" in said or "root:" in said, found[name]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs a user id of its own, or control groups")
def test_a_bomb_of_shells_ends_with_its_group() -> None:
    with LocalSandbox(1) as sandbox:
        given = [{"input": "", "output": "?"}]
        (result,) = sandbox.judge([Job("bomb", BASH_BOMB, given, language="bash", limits=Limits(wall_s=8))])
        assert result.verdict != "accepted"
        (honest,) = sandbox.judge(
            [Job("p", "ls / >/dev/null; echo 1 | cat", [{"input": "", "output": "1"}], language="bash")]
        )
        assert honest.verdict == "accepted", honest
