"""Whatever a verifier does in a process or thread of its own costs its own verdict; all others are judged right."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from qwq_rl.errors import UserError
from qwq_rl.verifiers import Problem, Response, Verdict, load
from qwq_rl.verifiers.loading import LoadedVerifier
from qwq_rl.verifiers.runner.judge import Call, ajudge, judge, judge_all

FILE = Path(__file__).with_name("misbehaving.py")


def item(answer: str, **columns: Any) -> tuple[Problem, Response]:
    return {"id": answer, "prompt": "?", "reference": None, **columns}, Response(text=answer, answer=answer)


def items(*answers: str) -> list[tuple[Problem, Response]]:
    return [item(answer) for answer in answers]


@pytest.fixture(scope="module")
def plain() -> LoadedVerifier:
    return load(f"{FILE}:plain")


COST = [
    ("hang", 0.0, "timeout", "no verdict within 0.6 s, twice"),
    ("regex", 0.0, "timeout", "no verdict within 0.6 s, twice"),
    ("segfault", 0.0, "crash", "died of SIGSEGV, twice"),
    ("memory", 0.0, "crash", "out of memory, twice"),
    ("os_exit", 0.0, "crash", "ended with status 0, twice"),
    ("close", 0.0, "crash", "twice"),
    ("raise", None, "fault", "ZeroDivisionError"),
    ("recursion", None, "fault", "RecursionError"),
    ("exit", None, "fault", "SystemExit"),
    ("interrupt", None, "fault", "KeyboardInterrupt"),
    ("nan", None, "fault", "the score nan"),
    ("text", None, "fault", "returned str"),
    ("metrics", None, "fault", "`metrics` is no mapping"),
    ("print", 1.0, "correct", ""),
    ("fork", 1.0, "correct", ""),
]


@pytest.mark.parametrize(("what", "score", "status", "reason"), COST, ids=[case[0] for case in COST])
def test_it_costs_its_own_verdict(
    plain: LoadedVerifier, what: str, score: float | None, status: str, reason: str
) -> None:
    good, found, bad, last = judge(plain, items("good", what, "bad", "good"))
    assert [one.score for one in (good, bad, last)] == [1.0, 0.0, 1.0]
    assert (found.score, found.status) == (score, status)
    assert reason in found.reason


@pytest.mark.parametrize("role", ["gate", "penalty"])
def test_breaking_the_verifier_is_no_escape_from_a_penalty(plain: LoadedVerifier, role: Any) -> None:
    assert judge(plain, items("bad", "segfault"), role)[1].score == (-1.0 if role == "penalty" else 0.0)


@pytest.mark.parametrize("what", ["sleep", "hang", "segfault"])
def test_a_coroutine_costs_its_own_verdict(what: str) -> None:
    found = judge(load(f"{FILE}:coroutine"), items("good", what, "bad", "raise"))
    assert [one.score for one in found] == [1.0, 0.0, 0.0, None]
    assert found[1].status == ("crash" if what == "segfault" else "timeout")


@pytest.mark.parametrize("what", ["hang", "segfault", "exit"])
def test_a_batch_that_breaks_is_judged_one_by_one(what: str, caplog: pytest.LogCaptureFixture) -> None:
    found = judge(load(f"{FILE}:Batched"), items("good", what, "bad"))
    assert [one.score for one in found] == [1.0, None if what == "exit" else 0.0, 0.0]
    assert "a batch failed" in caplog.text


def test_a_thread_that_hangs_is_left_behind() -> None:
    good, hung, bad = judge(load(f"{FILE}:threaded"), items("good", "hang", "bad"))
    assert (good.score, bad.score) == (1.0, 0.0)
    assert (hung.score, hung.status) == (0.0, "timeout")


def test_a_verifier_whose_threads_all_hang_is_not_asked_any_more(caplog: pytest.LogCaptureFixture) -> None:
    [judged] = judge_all([Call(load(f"{FILE}:threaded"), items(*["hang"] * 40))])
    assert judged.counts["restarts"] < 30
    assert judged.verdicts[-1].score is None
    assert "threads hang" in judged.verdicts[-1].reason
    assert "not asked for 30 s" in caplog.text


def test_what_hangs_on_everything_is_the_verifier_s_fault() -> None:
    found = judge(load(f"{FILE}:coroutine"), items("hang", "hang"))
    assert [(one.score, one.status) for one in found] == [(None, "fault")] * 2
    assert "nothing else has been judged" in found[0].reason


def test_waiting_for_a_turn_does_not_count() -> None:
    def slow(problem: Problem, response: Response) -> bool:
        time.sleep(0.15)
        return True

    slow.running = load(f"{FILE}:threaded").running  # type: ignore[attr-defined]
    assert {one.score for one in judge(slow, items(*"abcdefghijklmnopqrstuvwxyz"))} == {1.0}


def test_a_process_that_leaks_is_ended_between_items(plain: LoadedVerifier, caplog: pytest.LogCaptureFixture) -> None:
    [judged] = judge_all([Call(plain, items(*["leak"] * 6, "good"))])
    assert {one.score for one in judged.verdicts} == {1.0}
    assert judged.counts["restarts"] >= 1
    assert "ever more memory" in caplog.text


def test_a_child_that_left_the_group_is_killed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARK", str(tmp_path))
    mark = tmp_path / "child"
    good, found = judge(load(f"{FILE}:leaves_a_child"), [item("good"), item("child", mark=str(mark))])
    assert (good.score, found.status) == (1.0, "timeout")
    assert mark.exists()
    wait_for(lambda: len(marked(str(tmp_path))) <= 1)  # an idle worker


def marked(text: str) -> list[int]:
    """The processes whose environment has `text`."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            inside = text.encode() in environment.read_bytes()
        except OSError:
            continue
        if inside and int(environment.parent.name) != os.getpid():
            found.append(int(environment.parent.name))
    return found


def test_a_verdict_comes_back_whole(plain: LoadedVerifier, tmp_path: Path) -> None:
    (tmp_path / "whole.py").write_text(
        "from qwq_rl.verifiers import Verdict\n"
        "def verify(problem, response):\n"
        "    return Verdict(0.5, 'half', 'líne \\ud800', str(problem['tags']), {'x': 2}, 7.0)\n"
    )
    said = judge(load(f"{tmp_path}/whole.py:verify"), [item("a", tags={1, 2})])[0]
    assert said == Verdict(0.5, "half", "líne \ud800", "{1, 2}", {"x": 2.0}, 7.0)


def test_a_row_that_cannot_be_sent_is_its_own_fault(plain: LoadedVerifier) -> None:
    found = judge(plain, [item("good"), item("good", lock=threading.Lock()), item("bad")])
    assert [one.score for one in found] == [1.0, None, 0.0]
    assert "cannot be sent" in found[1].reason


def test_what_the_user_must_mend_passes_through(plain: LoadedVerifier) -> None:
    with pytest.raises(UserError, match="the licence server wants a key"):
        judge(plain, items("good", "mend", "good"))


def test_what_does_not_load_in_a_process_of_its_own_is_a_fault_that_says_why(tmp_path: Path) -> None:
    path = tmp_path / "here_only.py"
    path.write_text(f"import os\nassert os.getpid() == {os.getpid()}\ndef verify(problem, response): return True\n")
    found = judge(load(f"{path}:verify"), items("a", "b", "c"))
    assert {one.status for one in found} == {"fault"}
    assert "AssertionError" in found[0].reason


def test_paths_count_from_where_the_verifier_was_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def verify(problem, response): return open('words').read() == response.answer")
    (tmp_path / "words").write_text("yes")
    monkeypatch.chdir(tmp_path)
    verifier = load("mine.py:verify")
    monkeypatch.chdir(tmp_path.parent)
    assert [one.score for one in judge(verifier, items("yes", "no"))] == [1.0, 0.0]


def test_several_verifiers_judge_at_the_same_time(tmp_path: Path) -> None:
    first = item("a", folder=str(tmp_path), own="a", other="b")
    second = item("b", folder=str(tmp_path), own="b", other="a")
    calls = [Call(load(f"{FILE}:after_the_other"), [one], "score") for one in (first, second)]
    assert [judged.verdicts[0].score for judged in judge_all(calls)] == [1.0, 1.0]


def test_kinds_mix_in_one_call(plain: LoadedVerifier) -> None:
    calls = [
        Call(plain, items("good", "raise")),
        Call(load("exact"), [item("a", reference="a")]),
        Call(load(f"{FILE}:coroutine"), items("bad"), "gate"),
        Call(lambda problem, response: -0.5, items("x"), "penalty"),
        Call(plain, []),
    ]
    found = [[one.score for one in judged.verdicts] for judged in judge_all(calls)]
    assert found == [[1.0, None], [1.0], [0.0], [-0.5], []]


def test_a_fault_is_judged_again_where_the_verifier_asks_for_it(tmp_path: Path) -> None:
    verifier = load(f"{FILE}:second_time_lucky")
    [judged] = judge_all([Call(verifier, [item(name, folder=str(tmp_path)) for name in "ab"])])
    assert [one.score for one in judged.verdicts] == [1.0, 1.0]
    assert judged.counts == {"judged": 2, "retries": 2}


def test_what_fails_again_and_again_is_not_asked_any_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "log"
    verifier = load(f"{FILE}:server_is_down")
    [judged] = judge_all([Call(verifier, [item("a", log=str(log))] * 300)])
    assert judged.counts == {"judged": 300, "faults": 300, "opened": 1}
    assert "no server at 127.0.0.1" in judged.verdicts[-1].reason
    assert "not asked for 30 s" in caplog.text
    asked = len(log.read_text())
    assert asked < 100
    assert judge(verifier, [item("a", log=str(log))])[0].status == "fault"
    assert len(log.read_text()) == asked


def test_alike_pairs_are_judged_once_and_faults_each_time(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    rows = [item(answer, reference=gold, log=log) for answer, gold in ("aa", "ba", "aa", "ab")]
    verifier = load(f"{FILE}:counting")
    [first] = judge_all([Call(verifier, rows)])
    [second] = judge_all([Call(verifier, [*rows, item("raise", log=log)])])
    assert [one.score for one in first.verdicts] == [1.0, 0.0, 1.0, 0.0]
    assert [one.score for one in second.verdicts] == [1.0, 0.0, 1.0, 0.0, None]
    assert (first.counts["cached"], second.counts["cached"]) == (1, 4)
    assert judge(verifier, [item("raise", log=log)])[0].score is None
    assert len(Path(log).read_text()) == 3 + 1 + 1
    assert [one.score for one in judge(verifier, rows, "gate")] == [1.0, 0.0, 1.0, 0.0]
    assert len(Path(log).read_text()) == 5 + 3, "another role is another question"


def test_the_same_from_threads(plain: LoadedVerifier) -> None:
    found: list[list[float | None]] = []

    def ask() -> None:
        found.append([one.score for one in judge(plain, items("good", "os_exit", "bad"))])

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[1.0, 0.0, 0.0]] * 3


def test_the_same_inside_an_event_loop(plain: LoadedVerifier) -> None:
    async def main() -> tuple[list[Verdict], tuple[list[Verdict], list[Verdict]]]:
        return judge(plain, items("good", "bad")), await asyncio.gather(
            ajudge(plain, items("good", "raise")), ajudge(load(f"{FILE}:coroutine"), items("bad", "good"))
        )

    here, there = asyncio.run(main())
    assert [one.score for one in here] == [1.0, 0.0]
    assert [[one.score for one in part] for part in there] == [[1.0, None], [0.0, 1.0]]


def test_a_forked_child_has_workers_of_its_own(plain: LoadedVerifier) -> None:
    before = judge(plain, items("pid"))[0].answer
    child = os.fork()
    if child == 0:
        status = 1
        try:
            said = judge(plain, items("pid", "os_exit"))
            status = 0 if said[0].answer != before and said[1].status == "crash" else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert judge(plain, items("pid"))[0].answer == before


SCRIPT = f"""
import sys, threading
from qwq_rl.verifiers import Response, load
from qwq_rl.verifiers.runner.judge import judge
items = [({{"id": "a"}}, Response(text=one, answer=one)) for one in sys.argv[1:]]
verifier = load({str(FILE)!r} + ":patient")
judge(verifier, items[:2])
print("ready", flush=True)
judge(verifier, items[2:])
"""


@pytest.mark.parametrize("how", ["kill", "interrupt", "end"])
def test_nothing_remains_of_a_process_that_ends(how: str, root: Path, tmp_path: Path) -> None:
    busy = () if how == "end" else ("regex", "hang")
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "good", "good", *busy],
        cwd=root,
        env={**os.environ, "MARK": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    if how != "end":
        wait_for(lambda: len(marked(str(tmp_path))) == 3)
        time.sleep(0.3)  # the workers get what they hang over
        os.killpg(parent.pid, 9 if how == "kill" else 2)
    _, errors = parent.communicate(timeout=20)
    assert ("KeyboardInterrupt" in errors.decode()) == (how == "interrupt")
    wait_for(lambda: not marked(str(tmp_path)))


def wait_for(condition: Any, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "qwq_rl.verifiers")
