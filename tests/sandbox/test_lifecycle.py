"""The fork server's life: it dies and is replaced, outlives nobody, leaks nothing; threads share it, forks do not."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qwq_rl.sandbox import Job, Limits, LocalSandbox, Result, engine

SUM = Job("sum", "print(sum(map(int, input().split())))", [{"input": "2 3", "output": "5"}])


def slow(number: int) -> Job:
    return Job("slow", f"import time\ntime.sleep(0.4)\nprint({number})", [{"input": "", "output": str(number)}])


def total(number: int) -> Job:
    return Job("sum", SUM.code, [{"input": f"{number} 3", "output": str(number + 3)}])


def children(pid: int) -> list[int]:
    """Of all of its threads."""
    found = []
    for place in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError):
            found += [int(word) for word in place.read_text().split()]
    return found


def family(pid: int) -> list[int]:
    return [pid, *(other for child in children(pid) for other in family(child))]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: list[int], within: float) -> bool:
    deadline = time.monotonic() + within
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


def launcher(sandbox: LocalSandbox) -> int:
    assert sandbox._link is not None
    return sandbox._link.process.pid


def test_it_starts_with_the_first_job() -> None:
    before = children(os.getpid())
    with LocalSandbox(1) as sandbox:
        assert children(os.getpid()) == before
        assert sandbox.judge([SUM])[0].verdict == "accepted"
        assert len(children(os.getpid())) == len(before) + 1


def test_nothing_is_left_behind() -> None:
    with LocalSandbox(2) as sandbox:
        sandbox.judge([SUM])
        files, pids = len(os.listdir("/proc/self/fd")), family(launcher(sandbox))
        server = pids[1]
        held = len(os.listdir(f"/proc/{server}/fd"))
        sandbox.judge(
            [*map(total, range(40)), *(Job("bad", f"import os\nos.abort(){' ' * n}", SUM.tests) for n in range(40))]
        )
        assert len(os.listdir("/proc/self/fd")) == files
        assert len(os.listdir(f"/proc/{server}/fd")) == held
        assert children(server) == []
    assert gone(pids, 3)
    assert len(os.listdir("/proc/self/fd")) == files - 4
    assert list(Path("/sys/fs/cgroup").glob(f"*/**/qwq-sandbox-{pids[0]}")) == []


def test_a_closed_sandbox_can_start_again() -> None:
    sandbox = LocalSandbox(1)
    for _ in range(2):
        assert sandbox.judge([SUM])[0].verdict == "accepted"
        sandbox.close()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_fork_server_that_dies_is_replaced_and_the_batch_judged_again(victim: int) -> None:
    with LocalSandbox(2) as sandbox:
        sandbox.judge([SUM])
        pids = family(launcher(sandbox))
        killer = threading.Timer(0.2, os.kill, (pids[victim], signal.SIGKILL))
        killer.start()
        results = sandbox.judge([slow(n) for n in range(4)])
        assert [result.verdict for result in results] == ["accepted"] * 4
        assert any("fork server died" in event for result in results for event in result.events)
        assert gone(pids, 3)


def test_two_deaths_are_a_fault_of_ours_and_no_wrong_answer() -> None:
    with LocalSandbox(1) as sandbox:
        sandbox.judge([SUM])
        done = threading.Event()

        def keep_killing() -> None:
            while not done.wait(0.1):
                server = sandbox._link
                if server is not None:
                    os.kill(server.process.pid, signal.SIGKILL)

        killer = threading.Thread(target=keep_killing)
        killer.start()
        try:
            result = sandbox.judge([Job("slow", "import time\ntime.sleep(9)", SUM.tests)])[0]
        finally:
            done.set()
            killer.join()
        assert result.verdict == "sandbox_error"
        assert sandbox.judge([SUM])[0].verdict == "accepted"


def test_an_interrupted_batch_leaves_no_stale_answers() -> None:
    with LocalSandbox(1) as sandbox:
        sandbox.judge([SUM])
        threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,)).start()
        with pytest.raises(KeyboardInterrupt):
            sandbox.judge([slow(n) for n in range(5)])
        assert sandbox.judge([SUM])[0].verdict == "accepted"


def test_threads_share_it() -> None:
    found: list[Result] = []
    with LocalSandbox(2) as sandbox:
        numbers = range(5)
        workers = [
            threading.Thread(target=lambda: found.extend(sandbox.judge([*map(total, numbers)]))) for _ in range(4)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        # started by a thread that has ended since: the fork server must live on
        assert sandbox.judge([SUM])[0].verdict == "accepted"
        assert sandbox.judge([SUM])[0].events == ()
    assert [result.verdict for result in found] == ["accepted"] * 20


def test_a_forked_copy_gets_a_fork_server_of_its_own() -> None:
    script = """
import os
from qwq_rl.sandbox import Job, LocalSandbox
job = Job("sum", "print(2 + 3)", [{"input": "", "output": "5"}])
sandbox = LocalSandbox(1)
sandbox.judge([job])
first = sandbox._link.process.pid
pid = os.fork()
if pid == 0:
    good = sandbox.judge([job])[0].verdict == "accepted" and sandbox._link.process.pid != first
    sandbox.close()
    os._exit(0 if good else 1)
assert os.waitpid(pid, 0)[1] == 0
again = sandbox.judge([Job("sum", "print(3 + 2)", job.tests)])[0]
assert (again.verdict, again.events, sandbox._link.process.pid) == ("accepted", (), first)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("copies", [0, 1])
def test_nothing_survives_a_killed_trainer(copies: int) -> None:
    """With a forked copy alive (a data loader's worker), the control socket stays open: the launcher must notice."""
    script = f"""
import os, sys, threading, time
from qwq_rl.sandbox import Job, Limits, LocalSandbox
sandbox = LocalSandbox(1)
sandbox.isolation
for _ in range({copies}):
    if os.fork() == 0:
        time.sleep(5)
        os._exit(0)
job = Job("slow", "while True: pass", [{{"input": "", "output": ""}}], limits=Limits(cpu_s=60, wall_s=60))
threading.Thread(target=sandbox.judge, args=([job],), daemon=True).start()
time.sleep(0.5)
print(sandbox._link.process.pid, flush=True)
time.sleep(60)
"""
    trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    pids = family(int(trainer.stdout.readline()))
    assert len(pids) == 3
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    assert gone(pids, 4)


def test_many_slots_fit_into_few_descriptors() -> None:
    script = """
import resource
from qwq_rl.sandbox import Job, LocalSandbox
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
job = Job("sum", "def f(x): return x", [{"assert": "assert f(5) == 5"}], entry_point="f")
with LocalSandbox(200) as sandbox:
    jobs = [Job(job.id, job.code + " " * n, job.tests, entry_point="f") for n in range(40)]
    assert {result.verdict for result in sandbox.judge(jobs)} == {"accepted"}
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_an_unused_fork_server_needs_no_cpu() -> None:
    with LocalSandbox(1) as sandbox:
        sandbox.judge([SUM])
        pids = family(launcher(sandbox))
        before = sum(map(cpu_ticks, pids))
        time.sleep(1.5)
        assert sum(map(cpu_ticks, pids)) - before <= 1


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.slow
def test_thousands_of_cases_neither_leak_nor_grow() -> None:
    with LocalSandbox(2, remember=0) as sandbox:
        sandbox.judge([*map(total, range(50))])
        pids = family(launcher(sandbox))
        files, memory = len(os.listdir("/proc/self/fd")), resident(pids[1])
        for _ in range(10):
            assert {result.verdict for result in sandbox.judge([*map(total, range(300))])} == {"accepted"}
        assert len(os.listdir("/proc/self/fd")) == files
        assert resident(pids[1]) - memory < 256
        assert children(pids[1]) == []


def resident(pid: int) -> int:
    """Pages."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])


def test_limits_of_one_job_do_not_reach_the_next() -> None:
    with LocalSandbox(1) as sandbox:
        tight = Job("tight", "x = bytearray(64 << 20)", SUM.tests, limits=Limits(memory_mb=16, cpu_s=0.5))
        roomy = Job("roomy", "x = bytearray(64 << 20)\nprint(5)", SUM.tests)
        assert [result.verdict for result in sandbox.judge([tight, roomy])] == ["memory_limit", "accepted"]


def test_fork_servers_are_replaced_after_many_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_MOST_CASES", 20)
    slow = "import time\ntime.sleep(0.5)\nprint({})"
    codes = [slow if n in (10, 50) else "print({})" for n in range(100)]
    jobs = [Job(str(n), codes[n].format(n), [{"input": "", "output": str(n)}]) for n in range(100)]
    with LocalSandbox(2) as sandbox:
        sandbox.probe()
        first = sandbox._link
        results = sandbox.judge(jobs)
        load = sandbox.load
        assert {result.verdict for result in results} == {"accepted"}
        assert (load.fork_servers_retired, load.fork_servers_died) == (4, 0)
        assert sandbox._link is not first
        assert first is not None
        assert first.process.returncode is not None
