"""math-verify behind a pool of processes: its answers, its deadlines, and every way in which a process can be lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qwq_rl.verifiers.mathematics.algebra import client
from qwq_rl.verifiers.mathematics.algebra.client import AlgebraUnavailable, Died, SymbolicPool
from qwq_rl.verifiers.mathematics.algebra.fork_server import MOST_QUESTIONS

BOMB = r"\prod_{k=1}^{10^7}k"
DEADLINE_S = 0.5
LATE_S = 3.0
"""What a verdict with that deadline may take on a busy machine; benchmarks/math_hostile.py measures an idle one."""


@pytest.fixture(scope="module")
def warm() -> Iterator[SymbolicPool]:
    made = SymbolicPool(20.0, 2048, workers=2)
    made.warm()
    yield made
    made.close()


@pytest.fixture
def pool(warm: SymbolicPool) -> SymbolicPool:
    """A pool that has an idle worker, with time enough for a busy machine."""
    assert warm.equal("x", "x") == "equal"
    return warm


@pytest.fixture
def hasty(pool: SymbolicPool, monkeypatch: pytest.MonkeyPatch) -> SymbolicPool:
    monkeypatch.setattr(pool, "deadline_s", DEADLINE_S)
    return pool


def server(pool: SymbolicPool) -> int:
    assert pool._server is not None
    return pool._server.process.pid


def workers(pool: SymbolicPool) -> list[int]:
    """The children of the fork server, zombies too."""
    number = server(pool)
    return [int(child) for child in Path(f"/proc/{number}/task/{number}/children").read_text().split()]


def asked_next(pool: SymbolicPool) -> int:
    """The process of the worker that is asked next; the idle ones are the only ones."""
    assert eventually(lambda: len(workers(pool)) == len(pool._idle))
    by_age = dict(zip(sorted(worker.number for worker in pool._idle), sorted(workers(pool)), strict=True))
    return by_age[pool._idle[-1].number]


def eventually(true: object, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    return False


@pytest.mark.parametrize(
    ("gold", "answer", "outcome"),
    [
        (r"\sin^2 x+\cos^2 x", "1", "equal"),
        (r"\sum_{k=1}^{4} k", "10", "equal"),
        ("x^2", "x", "different"),
        (r"1-\frac{1}{e}", r"1+\frac{1}{e}", "different"),
        ("1", "@@ 1", "different"),
        ("@@ 1", "1", "gold_unread"),
        ("0", r"\sqrt{2}\sqrt{3}-\sqrt{6}", "equal"),
        (r"\sqrt{2}", "1.414214", "equal"),
        (r"\sqrt{2}", "1.4142", "different"),
    ],
)
def test_two_formulas_are_compared(pool: SymbolicPool, gold: str, answer: str, outcome: str) -> None:
    assert pool.equal(gold, answer) == outcome


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        pytest.param("1/2^{98}", "1/2^{99}", id="both are 0 to 6 decimals"),
        pytest.param("1.325e-27", "1.345e-27", id="decimals that round to 0"),
        pytest.param("1", "x+2=1", id="the right side of an equation is not its value"),
        pytest.param(r"5\text{ m}", r"5\text{ cm}", id="units"),
    ],
)
def test_what_math_verify_takes_for_equal_and_is_not(pool: SymbolicPool, gold: str, answer: str) -> None:
    assert pool.equal(gold, answer) == "different"
    assert pool.equal(answer, gold) == "different"


def test_a_bomb_dies_at_its_deadline_and_the_next_question_is_answered(hasty: SymbolicPool) -> None:
    started = time.monotonic()
    with pytest.raises(Died) as died:
        hasty.equal(r"\sqrt{2}", BOMB)
    assert died.value.timeout
    assert time.monotonic() - started < LATE_S
    assert hasty.equal("x+x", "2x") == "equal"


def test_a_worker_that_no_signal_handler_stops_is_killed(hasty: SymbolicPool) -> None:
    pool, stopped = hasty, asked_next(hasty)
    os.kill(stopped, signal.SIGSTOP)  # as one long call of C: the soft alarm cannot run
    started = time.monotonic()
    with pytest.raises(Died, match=r"no result within 0\.5 s") as died:
        pool.equal("x+x", "2x")
    assert died.value.timeout
    assert time.monotonic() - started < LATE_S
    assert eventually(lambda: stopped not in workers(pool)), "it is neither alive nor a zombie"
    assert pool.equal("x+x", "2x") == "equal"


def test_a_question_that_had_no_processor_is_not_to_blame(pool: SymbolicPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "deadline_s", 3.0)
    held = asked_next(pool)
    steps = [
        threading.Timer(0.1, os.kill, (held, signal.SIGSTOP)),
        threading.Timer(2.8, os.kill, (held, signal.SIGCONT)),  # after it should have given up, before it is killed
    ]
    for step in steps:
        step.start()
    with pytest.raises(AlgebraUnavailable, match="the machine is busy"):
        pool.equal("x^2", BOMB)
    for step in steps:
        step.join()


def test_a_question_may_have_a_deadline_of_its_own(pool: SymbolicPool) -> None:
    started = time.monotonic()
    with pytest.raises(Died, match=r"no result within 0\.3 s"):
        pool.equal("x^2", BOMB, seconds=0.3)
    assert time.monotonic() - started < LATE_S


def test_a_worker_that_ends_over_a_question_is_told_at_once(pool: SymbolicPool) -> None:
    asked = asked_next(pool)
    os.kill(asked, signal.SIGSTOP)
    killer = threading.Timer(0.2, os.kill, (asked, signal.SIGKILL))
    killer.start()
    with pytest.raises(Died, match="ended over this question") as died:
        pool.equal("x+x", "2x")
    killer.join()
    assert not died.value.timeout
    assert pool.equal("x+x", "2x") == "equal"


def test_a_worker_has_its_limits_and_serves_many_questions_but_not_for_ever(pool: SymbolicPool) -> None:
    worker = asked_next(pool)
    limits = Path(f"/proc/{worker}/limits").read_text()
    assert f"Max address space         {2048 << 20}" in limits
    assert "Max core file size        0 " in limits
    assert pool.equal("x", "x") == "equal"
    assert asked_next(pool) == worker
    for _ in range(MOST_QUESTIONS):
        assert pool.equal("x", "x") == "equal"
    assert eventually(lambda: worker not in workers(pool))


def test_threads_get_their_own_answers_while_bombs_run(pool: SymbolicPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "deadline_s", 2.0)

    def asked(number: int) -> str:
        try:
            return pool.equal("x^2", BOMB if number == 3 else f"x^{number}")
        except Died as died:
            return "timeout" if died.timeout else str(died)

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(asked, range(1, 9)))

    assert found == ["different", "equal", "timeout", *["different"] * 5]
    assert len(workers(pool)) <= 2


def test_a_forked_child_has_processes_of_its_own(pool: SymbolicPool) -> None:
    mine = server(pool)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, f"{pool.equal('x+x', '2x')} {server(pool)}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        outcome, theirs = said.read().split()
    os.waitpid(child, 0)

    assert outcome == "equal"
    assert int(theirs) != mine
    assert eventually(lambda: not alive(int(theirs))), "it ends with the child"
    assert pool.equal("x+x", "2x") == "equal"
    assert server(pool) == mine


def test_a_fork_server_that_dies_is_replaced(pool: SymbolicPool) -> None:
    old, orphans = server(pool), workers(pool)
    os.kill(old, signal.SIGKILL)
    assert eventually(lambda: not alive(old))

    assert pool.equal("x+x", "2x") == "equal"
    assert server(pool) != old
    assert eventually(lambda: not any(map(alive, orphans)))


PARENT = """
import os, time
from qwq_rl.verifiers.mathematics.algebra.client import SymbolicPool
pool = SymbolicPool(30.0)
pool.equal("x", "x")
child = os.fork()
if child:
    print(child, pool._server.process.pid, flush=True)
time.sleep(600)
"""


def test_nothing_is_left_when_the_parent_is_killed_even_if_a_child_of_it_lives_on() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child, started = map(int, parent.stdout.readline().split())
        left = [started, *map(int, Path(f"/proc/{started}/task/{started}/children").read_text().split())]
        parent.kill()
    try:
        assert len(left) == 2
        assert eventually(lambda: not any(map(alive, left)))
        assert alive(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_closing_ends_all_and_the_next_question_starts_anew(pool: SymbolicPool) -> None:
    ended = [server(pool), *workers(pool)]
    pool.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in ended)
    assert pool.equal("x+x", "2x") == "equal"


def test_warming_up_does_not_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "fork_server.py"
    slow.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(client, "FORK_SERVER", slow)
    pool = SymbolicPool()
    started = time.monotonic()
    pool.warm()
    assert time.monotonic() - started < 5
    assert alive(server(pool))
    pool.close()


def test_a_missing_library_is_named_and_not_looked_for_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('no such module')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool = SymbolicPool()
    for _ in range(2):
        with pytest.raises(AlgebraUnavailable, match=r"math-verify is not installed \(no such module\); pip install"):
            pool.equal("x", "x")
    pool.close()


def test_a_library_that_fails_is_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "math_verify.py").write_text("raise RuntimeError('half installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool = SymbolicPool()
    with pytest.raises(AlgebraUnavailable, match="cannot be used: RuntimeError: half installed"):
        pool.equal("x", "x")
    pool.close()


def test_a_fork_server_that_always_dies_is_not_started_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starts, dead = tmp_path / "starts", tmp_path / "fork_server.py"
    dead.write_text(f"open({str(starts)!r}, 'a').write('x')")
    monkeypatch.setattr(client, "FORK_SERVER", dead)
    pool = SymbolicPool()
    for _ in range(3):
        with pytest.raises(AlgebraUnavailable):
            pool.equal("x", "x")
    assert starts.read_text() == "x" * client.ATTEMPTS
    pool.close()


def test_one_that_does_not_start_in_time_is_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "fork_server.py"
    slow.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(client, "FORK_SERVER", slow)
    monkeypatch.setattr(client, "START_S", 0.2)
    pool = SymbolicPool()
    with pytest.raises(AlgebraUnavailable, match=r"does not start within 0\.2 s"):
        pool.equal("x", "x")
    assert pool._server is not None
    assert not alive(server(pool))
    pool.close()
