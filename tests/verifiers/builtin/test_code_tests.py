"""The `code` verifier: from an answer with a program to a verdict."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sandbox_servers import TOKEN, serving

from qwq_rl.data.mappers import humaneval
from qwq_rl.errors import UserError
from qwq_rl.sandbox import LocalSandbox
from qwq_rl.verifiers import Response, Verdict, load
from qwq_rl.verifiers.builtin.code_tests import code

SUM = {"tests": [{"input": "2 3\n", "output": "5\n"}, {"input": "1 1\n", "output": "2\n"}], "entry_point": None}
DOUBLE = {"tests": [{"args": [n], "expected": 2 * n} for n in range(3)], "entry_point": "f", "limits": {}}
GOOD_SUM = "print(sum(map(int, input().split())))"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[LocalSandbox]:
    with LocalSandbox() as shared:
        yield shared


@pytest.fixture
def judge(sandbox: LocalSandbox) -> Any:
    def one(program: str, reference: Any, **params: Any) -> Verdict:
        return code(sandbox=lambda: sandbox, **params)({"reference": reference}, answer(fenced(program)))

    return one


def answer(text: str) -> Response:
    return Response(text=text, answer=text)


def fenced(program: str) -> str:
    return f"Here it is:\n```python\n{program}\n```\n"


def test_a_program_that_passes_scores_one(judge: Any) -> None:
    verdict = judge(GOOD_SUM, SUM)
    assert (verdict.score, verdict.status, verdict.reason) == (1.0, "correct", "all 2 tests passed")
    assert verdict.answer == GOOD_SUM + "\n"
    assert verdict.metrics["passed"] == 2


@pytest.mark.parametrize(
    ("program", "reference", "status", "reason"),
    [
        ("print(5)", SUM, "wrong", r"test 2 of 2: wrong answer: printed '5\n', expected '2\n'"),
        ("def f(x): return x", DOUBLE, "wrong", "test 2 of 3: wrong answer: returned 1, expected 2"),
        ("1 / 0", SUM, "runtime_error", "test 1 of 2: runtime error: ZeroDivisionError: division by zero"),
        ("print(", SUM, "compile_error", "test 1 of 2: compile error: SyntaxError: '(' was never closed"),
        ("while True: pass", SUM, "timeout", "test 1 of 2: time limit: more than 0.3 s of CPU"),
        ("x = bytearray(1 << 40)", SUM, "memory_limit", "test 1 of 2: memory limit: more than 256 MiB"),
        ("while True: print('x' * 9999)", SUM, "output_limit", "test 1 of 2: output limit: more than 1024 KiB"),
        ("import sys\nsys.exit(0)", DOUBLE, "runtime_error", "the program ended before the function returned"),
    ],
)
def test_a_program_that_fails_scores_zero_and_says_why(
    program: str, reference: Any, status: str, reason: str, judge: Any
) -> None:
    verdict = judge(program, reference, cpu_s=0.3)
    assert (verdict.score, verdict.status) == (0.0, status)
    assert reason in verdict.reason
    assert "\n" not in verdict.reason
    assert len(verdict.reason) <= 200


def test_partial_credit_stays_below_what_is_declared(judge: Any) -> None:
    many = {"tests": [{"args": [n], "expected": n} for n in range(201)], "entry_point": "f"}
    verdict = judge("def f(x): return x if x else 1", many, partial=True)
    assert (verdict.metrics["passed"], verdict.score) == (200, 0.99)
    assert code(partial=True).largest_failing_score == 0.99
    assert code().largest_failing_score == 0


def test_partial_credit_is_the_share_of_tests(judge: Any) -> None:
    assert judge("print(5)", SUM, partial=True).score == 0.5
    assert judge("def f(x): return 0 if x == 0 else 4", DOUBLE, partial=True).score == pytest.approx(2 / 3)


def test_an_answer_without_a_block_is_no_answer_unless_all_of_it_is_the_program(sandbox: LocalSandbox) -> None:
    problem = {"reference": SUM}
    assert code(sandbox=lambda: sandbox)(problem, answer(GOOD_SUM)).status == "no_answer"
    assert code(unfenced="program", sandbox=lambda: sandbox)(problem, answer(GOOD_SUM)).status == "correct"
    assert code(unfenced="program", sandbox=lambda: sandbox)(problem, answer(" ")).status == "no_answer"


@pytest.mark.parametrize(
    "reference",
    [
        None,
        "5",
        {},
        {"tests": []},
        {"tests": "x"},
        {"tests": [{"args": [1], "expected": 1}]},
        {"tests": [{"assert": "assert ("}]},
        {"tests": SUM["tests"], "limits": {"cpu": 1}},
        {"tests": SUM["tests"], "limits": 3},
        {"tests": SUM["tests"], "compare": "roughly"},
        {"tests": SUM["tests"], "entrypoint": "f"},
        {"tests": SUM["tests"], "prelude": 3},
        {"tests": [{"args": [{1}], "expected": 1}], "entry_point": "f"},
        {"tests": SUM["tests"], "language": "cobol"},
        {"tests": SUM["tests"], "language": []},
        {"tests": SUM["tests"], "checker": "def check("},
        {"tests": [{"args": [1], "expected": 1}], "entry_point": "f", "language": []},
    ],
)
def test_a_bad_reference_is_never_the_answers_fault(reference: Any, judge: Any) -> None:
    verdict = judge(GOOD_SUM, reference)
    assert (verdict.score, verdict.status) == (None, "bad_reference")
    assert verdict.reason.startswith("reference")


def test_a_fault_of_the_sandbox_is_no_score(judge: Any) -> None:
    reference = {"tests": [{"assert": "assert f(lambda: 1) == 1"}], "entry_point": "f"}
    verdict = judge("def f(g): return g()", reference)
    assert (verdict.score, verdict.status) == (None, "fault")
    assert "cannot be sent to the program" in verdict.reason


def test_limits_of_the_row_go_before_those_of_the_recipe(judge: Any) -> None:
    slow = "import time\nwhile time.process_time() < 0.5: pass\n" + GOOD_SUM
    assert judge(slow, SUM, cpu_s=0.1).status == "timeout"
    assert judge(slow, SUM | {"limits": {"cpu_s": 5}}, cpu_s=0.1).status == "correct"


def test_a_batch_keeps_its_order_and_judges_what_is_identical_once() -> None:
    judged: list[int] = []

    class Counting(LocalSandbox):
        def judge(self, jobs: Any) -> Any:
            judged.append(len(jobs))
            return super().judge(jobs)

    with Counting(2) as counting:
        verifier = code(sandbox=lambda: counting)
        right, wrong = answer(fenced(GOOD_SUM)), answer(fenced("print(5)"))
        rows: list[dict[str, Any]] = [
            {"reference": SUM},
            {"reference": dict(reversed(SUM.items()))},
            {"reference": DOUBLE},
        ]
        items = [(rows[0], right), (rows[0], wrong), (rows[1], right), (rows[0], answer("")), (rows[2], right)]
        statuses = [verdict.status for verdict in verifier.batch(items)]
    assert statuses == ["correct", "wrong", "correct", "no_answer", "runtime_error"]
    assert judged == [3]


def test_nothing_runs_below_the_isolation_that_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalSandbox(1, without=["landlock"]) as weak:
        item: tuple[dict[str, Any], Response] = ({"reference": SUM}, answer(fenced(GOOD_SUM)))
        assert code(require="L1", sandbox=lambda: weak)(*item).status == "correct"
        with pytest.raises(UserError, match="reaches isolation L1 on this machine, and L2 is required"):
            code(sandbox=lambda: weak)(*item)
        monkeypatch.setenv("QWQ_RL_SANDBOX_REQUIRE", "L1")
        assert code(sandbox=lambda: weak)(*item).status == "correct"


def test_wrong_parameters_are_named() -> None:
    with pytest.raises(UserError, match="require is 'L9'"):
        code(require="L9")
    with pytest.raises(UserError, match="unfenced is 'maybe'"):
        load("code", {"unfenced": "maybe"})
    with pytest.raises(UserError, match=r"language is \['python', 'cobol'\]: give one or a list of python, cpp"):
        code(language=["python", "cobol"])
    with pytest.raises(UserError, match="urls is 'http://a': give a list"):
        code(urls="http://a")
    with pytest.raises(UserError, match="'a:80': give http://HOST:PORT"):
        code(urls=["a:80"])({"reference": SUM}, answer(fenced(GOOD_SUM)))


def test_the_label_of_the_block_chooses_among_the_rows_languages(judge: Any, sandbox: LocalSandbox) -> None:
    reference = {**SUM, "language": ["python", "bash"]}
    shell = answer("```bash\nread a b; echo $((a + b))\n```")
    assert code(sandbox=lambda: sandbox)({"reference": reference}, shell).status == "correct"
    assert judge(GOOD_SUM, reference).status == "correct"
    for python_only in (SUM, {**DOUBLE, "language": ["python", "bash"]}):
        refused = code(sandbox=lambda: sandbox)({"reference": python_only}, shell)
        assert (refused.status, refused.reason) == ("no_answer", "there is no closed ```python block")


def test_cpp_programs_are_judged(sandbox: LocalSandbox) -> None:
    if "cpp" not in sandbox.languages():
        pytest.skip("there is no g++ here")
    program = "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b; }"
    verdict = code(language="cpp", sandbox=lambda: sandbox)({"reference": SUM}, answer(f"```c++\n{program}\n```"))
    assert (verdict.score, verdict.reason) == (1.0, "all 2 tests passed")
    broken = code(language="cpp", sandbox=lambda: sandbox)({"reference": SUM}, answer("```cpp\nint main() {\n```"))
    assert broken.status == "compile_error"


def test_a_checker_accepts_what_differs_from_the_expected_output(judge: Any) -> None:
    checker = "def check(input, output, expected):\n    return sorted(output.split()) == sorted(expected.split())"
    reference = {"tests": [{"input": "", "output": "1 2"}], "checker": checker}
    assert judge("print(2, 1)", reference).status == "correct"
    assert judge("print(2, 2)", reference).status == "wrong"


def test_attempts_to_get_out_are_counted_and_named(judge: Any) -> None:
    honest = judge(GOOD_SUM, SUM)
    sly = judge(f"import socket\ntry: socket.socket()\nexcept OSError: pass\n{GOOD_SUM}", SUM)
    assert "attempts" not in honest.metrics
    assert (sly.status, sly.metrics["attempts"]) == ("correct", 1.0)
    assert sly.reason.startswith("all 2 tests passed; it tried to get out: ")


def test_rows_are_judged_by_servers_where_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi", reason="the extra `sandbox-server` is not installed")
    with serving("--slots", "1") as server:
        monkeypatch.setenv("QWQ_RL_SANDBOX_TOKEN", TOKEN)
        items = [({"reference": SUM}, answer(fenced(program))) for program in (GOOD_SUM, "print(5)", "1 / 0")]
        named = [verdict.status for verdict in code(urls=[server.url]).batch(items)]
        monkeypatch.setenv("QWQ_RL_SANDBOX_URLS", f"{server.url}, {server.url}/")
        from_environment = [verdict.status for verdict in code().batch(items)]
        assert server.figures()["qwq_sandbox_job_seconds_count"] >= 6
        with pytest.raises(UserError, match="the token is missing or wrong"):
            code(token_variable="NO_SUCH_VARIABLE").batch(items)
    assert named == from_environment == ["correct", "wrong", "runtime_error"]


def test_a_prelude_goes_before_the_program_and_serves_the_tests(judge: Any) -> None:
    prelude = "def twice(x):\n    return 2 * x\n\n\ndef f(x):\n    'Twice twice.'\n"
    reference = {"tests": [{"assert": "assert f(1) == twice(2)"}], "entry_point": "f", "prelude": prelude}
    assert judge("    return twice(twice(x))", reference).status == "correct"
    assert judge("    return x", reference).status == "wrong"
    assert judge("def twice(x): return 0\ndef f(x): return 0", reference).status == "wrong"


def test_mapped_humaneval_rows_are_judged_right(published: Path, sandbox: LocalSandbox) -> None:
    lines = (published / "code" / "humaneval.jsonl").read_text().splitlines()[::12]
    rows = [humaneval(json.loads(line)) for line in lines]
    verifier = code(cpu_s=20, sandbox=lambda: sandbox)
    problems = [{"reference": row["checks"][0]["reference"]} for row in rows]
    right = [answer(row["solution"].partition("</think>")[2]) for row in rows]
    empty = [answer(fenced(f"def {problem['reference']['entry_point']}(*_): return None")) for problem in problems]
    assert [v.reason for v in verifier.batch(list(zip(problems, right, strict=True))) if v.score != 1] == []
    assert {v.score for v in verifier.batch(list(zip(problems, empty, strict=True)))} == {0.0}


def test_mbpp_solutions_pass_without_an_entry_point(published: Path, sandbox: LocalSandbox) -> None:
    rows = [json.loads(line) for line in (published / "code" / "mbpp_sample.jsonl").read_text().splitlines()]
    items = [
        (
            {"reference": {"tests": [{"assert": test} for test in row["test_list"]]}},
            answer(fenced(row["canonical_solution"])),
        )
        for row in rows
    ]
    verdicts = code(cpu_s=20, sandbox=lambda: sandbox).batch(items)
    assert [verdict.reason for verdict in verdicts if verdict.score != 1] == []


def test_importing_it_starts_nothing_and_imports_no_torch() -> None:
    script = (
        "import sys, pathlib, os\nfrom qwq_rl.verifiers import load\nload('code', {})\n"
        "print('torch' in sys.modules, pathlib.Path(f'/proc/self/task/{os.getpid()}/children').read_text())"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False"]
