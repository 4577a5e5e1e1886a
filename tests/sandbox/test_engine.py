"""Jobs streamed, joined, remembered, cancelled; test sets by hash; runs without tests; checkers; other languages."""

from __future__ import annotations

import threading
import time
import tracemalloc
from queue import SimpleQueue
from typing import Any

import pytest

from qwq_rl.sandbox import Job, JobError, Limits, LocalSandbox, protocol

ONE = [{"input": "", "output": "1"}]
SLEEPS = "import time\ntime.sleep({})\nprint(1)"


def test_results_come_as_they_stand() -> None:
    jobs = [Job("slow", SLEEPS.format(1), ONE), Job("quick", "print(1)", ONE)]
    with LocalSandbox(2) as sandbox:
        assert [(index, result.id) for index, result in sandbox.judge_each(jobs)] == [(1, "quick"), (0, "slow")]


def test_equal_jobs_are_run_once() -> None:
    with LocalSandbox(2) as sandbox:
        results = sandbox.judge([Job(str(n), SLEEPS.format(0.2), ONE) for n in range(5)])
        assert [(result.id, result.verdict) for result in results] == [(str(n), "accepted") for n in range(5)]
        assert sandbox.load.judged_cases == 1
        assert sandbox.load.coalesced_jobs == 4


def test_a_known_job_is_answered_from_memory() -> None:
    job = Job("a", "print(1)", ONE)
    with LocalSandbox(1) as sandbox:
        first, again = sandbox.judge([job])[0], sandbox.judge([Job("b", "print(1)", ONE)])[0]
        assert (first.cached, again.cached, again.id, again.cases) == (False, True, "b", first.cases)
        assert sandbox.load.judged_cases == 1


@pytest.mark.parametrize(
    "change",
    [
        {"code": "print(1) "},
        {"tests": [{"input": "x", "output": "1"}]},
        {"compare": "exact"},
        {"mode": "all"},
        {"limits": Limits(cpu_s=1)},
        {"checker": "def check(i, o, e): return 1"},
    ],
)
def test_another_job_is_not(change: dict[str, Any]) -> None:
    given: dict[str, Any] = {"id": "a", "code": "print(1)", "tests": ONE}
    with LocalSandbox(1) as sandbox:
        sandbox.judge([Job(**given)])
        assert not sandbox.judge([Job(**{**given, **change})])[0].cached


def test_nothing_is_remembered_where_that_is_asked() -> None:
    with LocalSandbox(1, remember=0) as sandbox:
        for _ in range(2):
            assert not sandbox.judge([Job("a", "print(1)", ONE)])[0].cached


def test_a_cancelled_job_is_ended() -> None:
    with LocalSandbox(1) as sandbox:
        delivered: SimpleQueue[object] = SimpleQueue()
        ticket = sandbox.submit([Job("a", SLEEPS.format(60), ONE)] * 2, lambda *given: delivered.put(given))
        time.sleep(0.3)
        ticket.cancel()
        started = time.monotonic()
        assert sandbox.judge([Job("b", "print(1)", ONE)])[0].verdict == "accepted"
        assert time.monotonic() - started < 3
        assert delivered.empty()


def test_cancelling_leaves_what_others_asked_for() -> None:
    job = Job("a", SLEEPS.format(0.5), ONE)
    with LocalSandbox(1) as sandbox:
        found: list[str] = []
        other = threading.Thread(target=lambda: found.append(sandbox.judge([job])[0].verdict))
        ticket = sandbox.submit([job], lambda *_: None)
        other.start()
        time.sleep(0.1)
        ticket.cancel()
        other.join()
    assert found == ["accepted"]


def test_leaving_the_loop_cancels_the_rest() -> None:
    jobs = [Job("quick", "print(1)", ONE), *(Job("slow", SLEEPS.format(30 + n), ONE) for n in range(4))]
    with LocalSandbox(2) as sandbox:
        for _, result in sandbox.judge_each(jobs):
            assert result.id == "quick"
            break
        started = time.monotonic()
        assert sandbox.judge([Job("after", "print( 1)", ONE)])[0].verdict == "accepted"
        assert time.monotonic() - started < 5


def test_tests_are_put_in_once_and_named_by_their_hash() -> None:
    with LocalSandbox(1) as sandbox:
        name = sandbox.put_tests(ONE)
        assert name == protocol.tests_hash(ONE)
        assert sandbox.has_tests(name)
        result = sandbox.judge([Job.from_dict({"id": "a", "code": "print(1)", "tests_ref": name})])[0]
        assert (result.verdict, result.total) == ("accepted", 1)
        assert sandbox.judge([Job("b", "print(1)", ONE)])[0].cached
        with pytest.raises(JobError, match="no such test set"):
            sandbox.judge([Job("c", "print(1)", tests_ref="0" * 64)])


def test_a_program_can_only_be_run() -> None:
    with LocalSandbox(1) as sandbox:
        case = sandbox.run("import sys\nprint(sys.stdin.buffer.read(), file=sys.stderr)\nprint(7)", b"\xff")
        assert (case.verdict, case.stdout, case.stderr) == ("accepted", "7\n", "b'\\xff'\n")
        assert sandbox.run("1 / 0").verdict == "runtime_error"
        first, second = (sandbox.run("import time\nprint(time.time_ns())").stdout for _ in range(2))
        assert first != second


@pytest.mark.parametrize(
    ("language", "code"),
    [("python", "import sys\nsys.stderr.write('my own')\nsys.exit(3)"), ("bash", "printf 'my own' >&2; exit 3")],
)
def test_the_standard_error_of_a_program_that_is_only_run_is_its_own(
    language: str, code: str, sandbox: LocalSandbox
) -> None:
    if language not in sandbox.languages():
        pytest.skip(f"there is no {language} here")
    case = sandbox.run(code, language=language)
    assert (case.verdict, case.stderr, case.exit) == ("runtime_error", "my own", 3)


def test_a_syntax_error_of_a_program_that_is_only_run_is_shown(sandbox: LocalSandbox) -> None:
    case = sandbox.run("print(")
    assert case.verdict == "compile_error"
    assert case.stderr.count("SyntaxError") == 1


def test_test_sets_that_take_too_much_memory_go_the_least_recently_used_first() -> None:
    sets = [[{"input": str(n) + "x" * (1 << 20), "output": "1"}] for n in range(4)]
    with LocalSandbox(1, test_bytes=(7 << 20) // 2) as sandbox:
        first, second, third = map(sandbox.put_tests, sets[:3])
        assert sandbox.judge([Job("a", "print(1)", tests_ref=first)])[0].verdict == "accepted"
        fourth = sandbox.put_tests(sets[3])
        assert [sandbox.has_tests(name) for name in (first, second, third, fourth)] == [True, False, True, True]
        with pytest.raises(
            JobError, match=r"it had to go for others \(the last used 3.5 MiB are kept\): put it in again"
        ):
            sandbox.judge([Job("b", "print(1)", tests_ref=second)])
        sandbox.put_tests(sets[1])
        assert sandbox.judge([Job("b", "print(1)", tests_ref=second)])[0].verdict == "accepted"


def test_a_test_set_put_in_again_takes_no_more_room() -> None:
    one, other = ([{"input": str(n) + "x" * (1 << 20), "output": "1"}] for n in range(2))
    with LocalSandbox(1, test_bytes=(5 << 20) // 2) as sandbox:
        names = [sandbox.put_tests(tests) for tests in (other, one, one, one, one)]
        assert all(map(sandbox.has_tests, names))


def test_a_test_set_larger_than_all_that_is_kept_is_kept_alone() -> None:
    with LocalSandbox(1, test_bytes=1000) as sandbox:
        small, large = sandbox.put_tests(ONE), sandbox.put_tests([{"input": "x" * 2000, "output": "1"}])
        assert [sandbox.has_tests(name) for name in (small, large)] == [False, True]


def test_texts_that_were_parsed_are_not_kept() -> None:
    tracemalloc.start()
    try:
        for number in range(20):
            Job("a", "", [{"assert": f"# {number} " + "x" * (1 << 20)}])
        assert tracemalloc.get_traced_memory()[0] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_test_without_an_output_is_no_test() -> None:
    with pytest.raises(JobError, match="has the keys input"):
        Job("a", "print(1)", [{"input": ""}])


@pytest.mark.slow
def test_twelve_busy_programs_in_flight_make_no_false_time_outs() -> None:
    """Half a second of CPU each, on two slots, with a limit that leaves little room."""
    spin = "import time\nwhile time.process_time() < 0.5: pass\nprint({})"
    jobs = [Job(str(n), spin.format(n), [{"input": "", "output": str(n)}], limits=Limits(cpu_s=0.6)) for n in range(12)]
    with LocalSandbox(2) as sandbox:
        assert {result.verdict for result in sandbox.judge(jobs)} == {"accepted"}


def test_a_program_just_over_its_limit_is_judged_by_a_run_alone() -> None:
    spin = "import time\nwhile time.process_time() < 0.55: pass\nprint(1)"
    with LocalSandbox(2) as sandbox:
        (result,) = sandbox.judge([Job("a", spin, ONE, limits=Limits(cpu_s=0.5))])
        assert result.verdict == "time_limit"
        assert result.cases[0].cpu_s < 0.54
        assert sandbox.load.judged_cases == 2


CHECKER = "def check(given, output, expected): return abs(float(output) - float(expected)) < float(given)"
SCRIPT = """
import sys
given, expected, output = (open(name).read().split() for name in sys.argv[1:])
print(1 if sorted(output) == sorted(expected) else 0)
"""


@pytest.mark.parametrize(
    ("code", "checker", "test", "verdict"),
    [
        ("print(3.05)", CHECKER, {"input": "0.1", "output": "3"}, "accepted"),
        ("print(3.5)", CHECKER, {"input": "0.1", "output": "3"}, "wrong_answer"),
        ("print('b a')", SCRIPT, {"input": "", "output": "a b"}, "accepted"),
        ("print('b b')", SCRIPT, {"input": "", "output": "a b"}, "wrong_answer"),
        ("1 / 0", SCRIPT, {"input": "", "output": "a b"}, "runtime_error"),
        ("print('?')", CHECKER, {"input": "0.1", "output": "3"}, "wrong_answer"),
        (
            "print(chr(0) * 9)",
            SCRIPT.replace("print(1", "print(1 / 0 if chr(0) in output[0] else 1"),
            {"input": "", "output": "a"},
            "wrong_answer",
        ),
        ("print(3)", CHECKER, {"input": "0.1", "output": "?"}, "sandbox_error"),
        ("print('?')", "import time\nprint('no verdict')", {"input": "0.1", "output": "3"}, "sandbox_error"),
    ],
)
def test_a_checker_decides(code: str, checker: str, test: dict[str, str], verdict: str, sandbox: LocalSandbox) -> None:
    assert sandbox.judge([Job("a", code, [test], checker=checker)])[0].verdict == verdict


PROGRAMS = {
    "cpp": "#include <bits/stdc++.h>\nint main() { long a, b; std::cin >> a >> b; std::cout << a + b << std::endl; }",
    "javascript": "const [a, b] = require('fs').readFileSync(0, 'utf8').split(' ').map(Number);\nconsole.log(a + b)",
    "bash": "read a b\necho $((a + b)) | cat",
}
SUM = [{"input": f"{n} 3", "output": str(n + 3)} for n in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("language", PROGRAMS)
def test_programs_in_other_languages_are_judged(language: str, sandbox: LocalSandbox) -> None:
    if language not in sandbox.languages():
        pytest.skip(f"there is no {language} here")
    limits = Limits(cpu_s=5, wall_s=60)
    right, wrong = (Job("a", code, SUM, language=language, limits=limits, mode="all")
                    for code in (PROGRAMS[language], PROGRAMS[language].replace("+ b", "- b")))  # fmt: skip
    results = sandbox.judge([right, wrong])
    assert [(result.verdict, result.passed) for result in results] == [("accepted", 3), ("wrong_answer", 0)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("language", "code", "verdict"),
    [
        ("cpp", "int main() { return 3; }", "runtime_error"),
        ("cpp", "int main() { for (;;); }", "time_limit"),
        ("cpp", "int main() {", "compile_error"),
        ("cpp", "#include <vector>\nint main() { std::vector<char> v(1l << 40, 1); }", "memory_limit"),
        ("cpp", '#include <cstdio>\nint main() { for (;;) puts("xxxxxxxxxxxxxxxxxxxxxxxxxx"); }', "output_limit"),
        ("javascript", "throw 1", "runtime_error"),
        ("javascript", "const x = []; for (;;) x.push(new Array(1000).fill(x.length))", "memory_limit"),
        ("bash", "exit 3", "runtime_error"),
        ("bash", "while :; do :; done", "time_limit"),
    ],
)
def test_what_went_wrong_is_named_in_other_languages(
    language: str, code: str, verdict: str, sandbox: LocalSandbox
) -> None:
    if language not in sandbox.languages():
        pytest.skip(f"there is no {language} here")
    job = Job("a", code, SUM, language=language, limits=Limits(cpu_s=2, wall_s=30, memory_mb=128))
    result = sandbox.judge([job])[0]
    assert result.verdict == verdict, result


def test_a_program_that_others_left_no_thread_is_judged_alone() -> None:
    """One program takes all the threads there are; another, honest, needs a few meanwhile."""
    hog = (
        "import threading, time\nthreading.stack_size(32768)\ntry:\n"
        "    while True: threading.Thread(target=time.sleep, args=(2,), daemon=True).start()\n"
        "except RuntimeError: time.sleep(2)"
    )
    honest = (
        "import threading as m, time\ntime.sleep(1)\nt = [m.Thread(target=time.sleep, args=(0.1,)) for _ in range(8)]\n"
        "for x in t: x.start()\nfor x in t: x.join()\nprint(1)"
    )
    with LocalSandbox(2) as sandbox:
        results = sandbox.judge([Job("hog", hog, ONE, limits=Limits(memory_mb=4096)), Job("honest", honest, ONE)])
    assert [result.verdict for result in results] == ["wrong_answer", "accepted"]
