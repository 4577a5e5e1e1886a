"""Function calls: values come back as data and are compared by value and type, in the judge."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qwq_rl.sandbox import CaseResult, Job, JobError, LocalSandbox

Judge = Callable[..., CaseResult]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("x + 1", 4),
        ("x == 3", True),
        ("None", None),
        ("(x, [x])", [3, [3]]),
        ("{'a': (x, 1.5)}", {"a": [3, 1.5]}),
        ("{'$a': x}", {"$a": 3}),
        pytest.param("2 ** 20000", 2**20000, id="a wide int"),
        ("'é' * x", "ééé"),
        ("__import__('collections').Counter('aab')", {"a": 2, "b": 1}),
        ("__import__('collections').namedtuple('P', 'x y')(1, 2)", [1, 2]),
    ],
)
def test_an_equal_value_passes(body: str, expected: object, call: Judge) -> None:
    assert call(f"def f(x): return {body}", [3], expected).verdict == "accepted"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("True", 1),
        ("1", True),
        ("1.0", 1),
        ("'1'", 1),
        ("[1]", [1, 2]),
        ("{1: 2}", {"1": 2}),
        ("{1, 2}", [1, 2]),
        ("b'a'", "a"),
        ("float('nan')", 1.0),
    ],
)
def test_another_type_or_value_does_not(body: str, expected: object, call: Judge) -> None:
    assert call(f"def f(x): return {body}", [3], expected).verdict == "wrong_answer"


def test_numbers_can_be_compared_to_a_tolerance(call: Judge) -> None:
    code = "def f(x): return [x / 3, 1]"
    assert call(code, [1], [0.33333333, 1.0], compare="float").verdict == "accepted"
    assert call(code, [1], [0.333, 1.0], compare="float").verdict == "wrong_answer"
    assert call("def f(x): return 5.0", [1], float("inf"), compare="float").verdict == "wrong_answer"


def test_a_list_can_be_compared_in_any_order(call: Judge) -> None:
    code = "def f(x): return [(2, 1), (1, 2), (1, 2)]"
    assert call(code, [1], [[1, 2], [1, 2], [2, 1]], compare="unordered").verdict == "accepted"
    assert call(code, [1], [[1, 2], [2, 1], [2, 1]], compare="unordered").verdict == "wrong_answer"


def test_a_method_of_solution_is_found(call: Judge) -> None:
    assert call("class Solution:\n    def f(self, x): return x * 2", [3], 6).verdict == "accepted"


def test_the_main_guard_does_not_run(call: Judge) -> None:
    assert call("def f(x): return x\nif __name__ == '__main__': f(input())", [3], 3).verdict == "accepted"


@pytest.mark.parametrize(
    "code",
    [
        "def g(x): return 3",
        "f = 3",
        "def f(): return 3",
        "def f(x): return object()",
        "def f(x):\n    y = []\n    for _ in range(100000): y = [y]\n    return y",
        "import os\ndef f(x): os._exit(0)",
        "import sys\ndef f(x): sys.exit(0)",
        "import sys\nsys.exit(0)",
    ],
)
def test_no_value_is_a_runtime_error(code: str, call: Judge) -> None:
    assert call(code, [3], 3).verdict == "runtime_error"


def test_what_a_function_prints_does_not_count(call: Judge) -> None:
    case = call("def f(x):\n    print('hello')\n    return x", [3], 3)
    assert (case.verdict, case.stdout) == ("accepted", "hello\n")


def test_arguments_that_look_like_tags_stay_what_they_are(call: Judge) -> None:
    assert call("def f(x): return x", [{"$tuple": [1]}], {"$tuple": [1]}).verdict == "accepted"


def test_each_case_has_a_process_of_its_own(sandbox: LocalSandbox) -> None:
    code = "import builtins\ndef f(x):\n    builtins.n = getattr(builtins, 'n', 0) + 1\n    return builtins.n"
    job = Job("p", code, [{"args": [n], "expected": 1} for n in range(4)], entry_point="f")
    assert sandbox.judge([job])[0].verdict == "accepted"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code": 3}, "code is a int"),
        ({"language": "cobol"}, "language is 'cobol'"),
        ({"compare": "token"}, "compare is 'token': give one of exact, tokens"),
        ({"mode": "some"}, "mode is 'some'"),
        ({"tests": []}, "tests: give a list of at least one test"),
        ({"tests": [{"input": "x"}]}, "tests[0] has the keys input"),
        ({"tests": [{"input": "x", "output": 3}]}, "tests[0].output is a int"),
        ({"tests": [{"input_b64": "?", "output": ""}]}, "tests[0].input_b64 is not base64"),
        ({"tests": [{"args": [1], "expected": 1}]}, "entry_point is null"),
        ({"tests": [{"args": 1, "expected": 1}], "entry_point": "f"}, "tests[0].args is a int"),
        ({"tests": [{"args": [{1}], "expected": 1}], "entry_point": "f"}, "tests[0].args holds something"),
        ({"tests": [{"assert": "assert f("}]}, "tests[0].assert is not Python"),
        ({"entry_point": "a b"}, "entry_point is 'a b'"),
        ({"limits": {"cpu_s": 0}}, "limits.cpu_s is 0"),
        ({"limits": {"cpu_s": True}}, "limits.cpu_s is True"),
        ({"limits": {"memory_mb": 1.5}}, "limits.memory_mb is 1.5: give a whole number"),
        ({"limits": {"cpu": 1}}, "limits.cpu is not a field: there are cpu_s"),
        ({"test": []}, "test is not a field: there are id, code, tests"),
    ],
)
def test_a_bad_job_says_which_field(change: dict[str, object], message: str) -> None:
    good = {"id": "p", "code": "", "tests": [{"input": "", "output": ""}]}
    with pytest.raises(JobError) as error:
        Job.from_dict(good | change)
    assert message in str(error.value)


def test_jobs_and_results_survive_json(sandbox: LocalSandbox) -> None:
    job = Job("p", "print(1)", [{"input": "", "output": "1"}], mode="all")
    assert Job.from_dict(job.to_dict()) == job
    result = sandbox.judge([job])[0]
    assert type(result).from_dict(result.to_dict()) == result
