"""`qwq-rl verify`: one verdict a row in input order, mistakes with their lines, a summary, honest exit statuses."""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest

from qwq_rl.audit.responses import LineMistake, ResponseCheck, read_asked, read_response
from qwq_rl.audit.verify import main, percentile, verdict_line
from qwq_rl.cli import main as qwq_rl
from qwq_rl.cli import spoken
from qwq_rl.errors import RowError, UserError
from qwq_rl.verifiers import BUILT_IN, Verdict

RIGHT = {"id": "a", "reference": "42", "response": r"<think>6 * 7</think> \boxed{42}"}
WRONG = {"id": "b", "reference": "42", "response": r"\boxed{41}"}
PAGE = ("verifier", "verify_row", "self_answer")
OWN = """\
import time

def verify(problem, response):
    return response.answer == problem["reference"]

def fragile(problem, response):
    if response.answer == "boom":
        raise OSError("the server is gone")
    return 1.0

def fine(problem, response):
    return -0.5

def strict(threshold=1, names=()):
    return lambda problem, response: len(response.answer) >= threshold and response.answer in names

def slow(problem, response):
    time.sleep(0.5)
    return True
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


def write(folder: Path, *rows: dict[str, Any] | str) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def one(row: dict[str, Any], **options: Any) -> Any:
    """What `read_response` makes of a row."""
    return read_response(row, options.get("opened", False))


def test_verdicts_come_in_input_order_with_their_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sub" / "verdicts.jsonl"
    rows = [{"reference": str(at), "response": rf"\boxed{{{at % 2}}}"} for at in range(150)]

    assert main(["math", write(tmp_path, *rows), "--out", str(out)]) == 0

    assert [line["id"] for line in lines(out)] == [str(at) for at in range(1, 151)]
    assert [line["score"] for line in lines(out)] == [1.0, 1.0, *[0.0] * 148]
    told = capsys.readouterr()
    assert told.out == ""
    assert "math: 150 rows" in told.err
    assert "2 of 150 have 1" in told.err
    assert "wrong 148 (98.7%), correct 2 (1.3%)" in told.err


def test_without_out_the_verdicts_go_to_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["math", write(tmp_path, RIGHT, WRONG)]) == 0
    assert [json.loads(line)["status"] for line in capsys.readouterr().out.splitlines()] == ["correct", "wrong"]


def test_every_malformed_row_is_named_at_once_and_the_others_are_judged(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    rows = write(
        tmp_path,
        RIGHT,
        "no json",
        {"refrence": "1", "response": "1"},
        {"reference": "1"},
        "",
        {**WRONG, "finish": "x"},
        WRONG,
    )

    with pytest.raises(RowError) as told:
        main(["math", rows, "--out", str(out)])

    assert [line["id"] for line in lines(out)] == ["a", "b"]
    assert str(told.value).splitlines() == [
        f"{rows}:2: not JSON: Expecting value at column 1",
        f"{rows}:3: has no `reference`; did you mean `refrence`?",
        f"{rows}:4: has no `response`",
        f"{rows}:6: `finish` is 'x'; it is one of stop, length, tool_limit, parse_error, environment_error",
        "4 rows are malformed; the other 2 were judged",
    ]


def test_many_malformed_rows_are_counted(tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r"\.\.\. and 30 more"):
        main(["math", write(tmp_path, *["{}"] * 50)])


def test_an_empty_file_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="it has no rows"):
        main(["math", write(tmp_path)])


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="there is no such file"):
        main(["math", str(tmp_path / "none.jsonl")])


def test_the_file_that_is_read_is_never_written_over(tmp_path: Path) -> None:
    rows = write(tmp_path, RIGHT)
    with pytest.raises(UserError, match="name another"):
        main(["math", rows, "--out", rows])
    assert lines(Path(rows)) == [RIGHT]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--out", "."], r"--out \. is a folder; name a file"),
        (["--audit", "--out", "."], r"--out \. is a folder; name a file"),
        (["--out", "rows.jsonl/x/y"], r"its folder cannot be made: Not a directory"),
        (["--audit", "--jobs", "2"], "--jobs does nothing with --audit"),
        (["--param", "percent=stict"], r"refuses its parameters \{'percent': 'stict'\}: .*`lenient` or `strict`$"),
    ],
)
def test_a_wrong_argument_is_told_before_anything_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], what: str
) -> None:
    write(tmp_path, RIGHT)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=what):
        main(["math", "rows.jsonl", *arguments])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--limit", "x"], "--limit: x is no whole number of at least 1"),
        (["--jobs", "0"], "--jobs: 0 is no whole number of at least 1"),
        (["--fault-share", "5"], "--fault-share: 5 is no share: write a number from 0 to 1"),
    ],
)
def test_a_number_out_of_range_is_told(capsys: pytest.CaptureFixture[str], arguments: list[str], what: str) -> None:
    with pytest.raises(SystemExit):
        main(["math", "rows.jsonl", *arguments])
    assert what in capsys.readouterr().err


def test_the_help_names_every_built_in_verifier_and_what_the_exit_status_means(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert [name for name in BUILT_IN if f" {name}" not in said] == []
    assert "exit status: 0" in said


def test_a_verifier_that_is_not_there_is_told_before_rows_are_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean `math`"):
        main(["maths", str(tmp_path / "none.jsonl")])


def test_rows_from_standard_input_and_from_gzip_and_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = "".join(json.dumps(row) + "\n" for row in (RIGHT, WRONG)).encode()
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(data))
    pq.write_table(pa.Table.from_pylist([RIGHT, WRONG]), tmp_path / "rows.parquet")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    for source in ("-", str(tmp_path / "rows.jsonl.gz"), str(tmp_path / "rows.parquet")):
        assert main(["math", source]) == 0
        assert [json.loads(line)["score"] for line in capsys.readouterr().out.splitlines()] == [1.0, 0.0]


def test_a_file_that_is_no_gzip_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_text("plain")
    with pytest.raises(RowError, match="not a readable gzip file"):
        main(["math", str(tmp_path / "rows.jsonl.gz")])


def test_several_processes_judge_alike(tmp_path: Path, own: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write(tmp_path, *[{"reference": str(at), "response": str(at // 2)} for at in range(200)])
    told = []
    for jobs in ("1", "2"):
        assert main([f"{own}:verify", rows, "--jobs", jobs]) == 0
        told.append([(line["id"], line["score"]) for line in map(json.loads, capsys.readouterr().out.splitlines())])
    assert told[0] == told[1]
    assert len(told[0]) == 200


def test_parameters_are_yaml_and_win_over_the_recipe(
    tmp_path: Path, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "stage.yaml"
    recipe.write_text(
        f"domains:\n  d: {{verifiers: {{mine: {{use: '{own}:strict', threshold: 3, names: [abc, ab]}}}}}}\n"
    )
    rows = write(tmp_path, *[{"reference": None, "response": text} for text in ("abc", "ab")])

    for extra, scores in (([], [1.0, 0.0]), (["--param", "threshold=2"], [1.0, 1.0])):
        assert main(["mine", rows, "--recipe", str(recipe), *extra]) == 0
        assert [json.loads(line)["score"] for line in capsys.readouterr().out.splitlines()] == scores
    assert main([f"{own}:strict", rows, "--param", "names=[ab]"]) == 0


def test_a_recipe_without_the_name_and_a_parameter_without_value_are_told(tmp_path: Path) -> None:
    recipe = tmp_path / "stage.yaml"
    recipe.write_text("domains:\n  d: {verifiers: {math: {}}}\n")
    with pytest.raises(UserError, match="did you mean `math`"):
        main(["maths", "x.jsonl", "--recipe", str(recipe)])
    with pytest.raises(UserError, match="KEY=VALUE"):
        main(["math", "x.jsonl", "--param", "deadline_s"])


def test_too_many_faults_are_a_failure_that_low_scores_are_not(
    tmp_path: Path, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["math", write(tmp_path, WRONG, WRONG)]) == 0
    rows = write(tmp_path, {"reference": 1, "response": "boom"}, {"reference": 1, "response": "x"})
    assert main([f"{own}:fragile", rows]) == 1
    told = capsys.readouterr()
    assert "the server is gone" in told.out
    assert "50.0% could not be judged" in told.err
    assert main([f"{own}:fragile", rows, "--fault-share", "0.5"]) == 0


def test_a_penalty_is_judged_in_its_own_range(tmp_path: Path, own: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write(tmp_path, {"reference": None, "response": "x"})
    assert main([f"{own}:fine", rows]) == 1
    assert main([f"{own}:fine", rows, "--role", "penalty"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["score"] == -0.5


# --- what a row asks --------------------------------------------------------------------------------------------------


def asked(
    folder: Path, row: dict[str, Any], verifier: str = "math", check: str | None = None
) -> ResponseCheck | LineMistake:
    (found,) = read_asked(write(folder, row), verifier, check=check, responses=False)
    return found


CHECKS = [{"verifier": "math", "reference": "1"}, {"verifier": "exact", "reference": "2", "role": "gate"}]


@pytest.mark.parametrize(
    ("row", "verifier", "check", "reference", "role"),
    [
        ({"reference": "5"}, "math", None, "5", "score"),
        ({"verifier": "math", "reference": "5"}, "own.py:verify", None, "5", "score"),
        ({"checks": CHECKS}, "math", None, "1", "score"),
        ({"checks": CHECKS}, "exact", None, "2", "gate"),
        ({"checks": CHECKS}, "own.py:verify", "math", "1", "score"),
        ({"checks": CHECKS[:1]}, "own.py:verify", None, "1", "score"),
        ({"grade": {"verifier": "math", "reference": "7"}}, "math", None, "7", "score"),
        ({}, "think_format", None, None, "score"),
    ],
)
def test_which_check_of_a_row_is_asked(
    tmp_path: Path, row: dict[str, Any], verifier: str, check: str | None, reference: Any, role: str
) -> None:
    found = asked(tmp_path, row, verifier, check)
    assert isinstance(found, ResponseCheck), found
    assert (found.check.verifier, found.check.reference, found.check.role) == (verifier, reference, role)


@pytest.mark.parametrize(
    ("row", "check", "what"),
    [
        ({"checks": CHECKS}, None, "say which is meant with --check NAME"),
        ({"checks": CHECKS}, "maths", "has no check `maths`; did you mean `math`?"),
        ({"checks": [{"verifer": "math"}]}, None, "unknown key `verifer`"),
        ({"solution": 3}, None, "`solution` must be a string or null"),
    ],
)
def test_what_a_row_asks_must_be_clear(tmp_path: Path, row: dict[str, Any], check: str | None, what: str) -> None:
    found = asked(tmp_path, row, "own.py:verify", check)
    assert isinstance(found, LineMistake)
    assert what in found.what


# --- responses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "answer"),
    [
        ("<think>a</think> b", False, "a", "b"),
        ("a</think> b", False, "a", "b"),
        ("b", False, "", "b"),
        ("b", True, "b", ""),
        ("<think>b", False, "<think>b", ""),
        ("a</think>b<|im_end|>", True, "a", "b"),
        ("a</think>b</think>c<|im_end|>\n", False, "a</think>b", "c"),
    ],
)
def test_thinking_is_split_as_in_training(text: str, opened: bool, reasoning: str, answer: str) -> None:
    response = one({"response": text}, opened=opened)
    assert (response.reasoning, response.answer, response.text) == (reasoning, answer, text)


def test_of_messages_the_last_one_counts_with_its_reasoning() -> None:
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "reasoning_content": "hm", "content": "b"}]
    response = one({"response": messages, "finish": "length"})
    assert (response.reasoning, response.answer, response.finish) == ("hm", "b", "length")
    assert response.text == "<think>\nhm\n</think>\n\nb"
    assert list(response.messages) == messages


def test_structured_calls_are_judged_as_the_text_they_stand_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    row = {
        "reference": {"calls": [{"name": "f", "arguments": {"a": 1}}]},
        "response": [{"role": "assistant", "content": None, "tool_calls": [call]}],
    }
    assert main(["tool_call", write(tmp_path, row)]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == 1.0


@pytest.mark.parametrize(
    ("response", "what"),
    [
        (7, "text or a list of messages"),
        ([], "text or a list of messages"),
        ([{"role": "user", "content": "x"}], "is the user's"),
        ([{"role": "assistant", "content": 1}], "must be texts or null"),
        ([{"role": "assistant", "content": None, "tool_calls": [1]}], "calls with a `name`"),
    ],
)
def test_a_response_of_another_form_is_told(response: Any, what: str) -> None:
    with pytest.raises(RowError, match=what):
        one({"response": response})


# --- lines, figures, the audit ----------------------------------------------------------------------------------------


def test_a_line_is_json_whatever_the_verdict_holds() -> None:
    verdict = Verdict(0.0, "wrong", "no\nlines", "\ud800", {"a": float("nan"), "b": 1.0}, 0.1)
    line = json.loads(verdict_line("x", verdict))
    assert line["metrics"] == {"b": 1.0}
    assert "\n" not in verdict_line("x", verdict)


def test_a_lone_surrogate_does_not_lose_a_verdict(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    rows = write(tmp_path, r'{"id": "a", "reference": "42", "response": "\\boxed{\ud800}"}', RIGHT)
    assert main(["math", rows, "--out", str(out)]) == 0
    assert [line["score"] for line in lines(out)] == [0.0, 1.0]


def test_percentiles_are_values_that_were_there() -> None:
    values = array("d", [float(value) for value in range(1, 201)])
    assert (percentile(values, 50), percentile(values, 99), percentile(array("d"), 50)) == (100.0, 198.0, 0.0)


def test_an_audit_passes_or_fails_by_its_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    good, bad = {"id": "g", "reference": "42"}, {"id": "h", "reference": "42", "solution": r"\boxed{41}"}

    assert main(["math", write(tmp_path, good), "--audit"]) == 0
    assert main(["math", write(tmp_path, good, bad), "--audit", "--out", str(report)]) == 1

    assert "h (row 2): its solution does not pass" in capsys.readouterr().out
    (finding,) = json.loads(report.read_text())["findings"]
    assert (finding["id"], finding["place"], finding["kind"]) == ("h", 2, "solution")


def test_published_rows_are_audited_through_a_mapper(tmp_path: Path) -> None:
    good = {"question": "2+2?", "answer": "It is 4.\n#### 4"}
    assert main(["math", write(tmp_path, good), "--mapper", "gsm8k", "--audit"]) == 0
    with pytest.raises(RowError, match=r":2: the mapper `gsm8k` failed"):
        main(["math", write(tmp_path, good, {"question": "?"}), "--mapper", "gsm8k", "--audit"])


def test_an_audit_names_malformed_rows_too(tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r":2: not JSON"):
        main(["math", write(tmp_path, {"reference": "1"}, "x"), "--audit"])


def test_an_interrupted_run_keeps_what_it_judged(tmp_path: Path, own: str) -> None:
    import signal
    import time

    out = tmp_path / "out.jsonl"
    rows = write(tmp_path, *[{"reference": "x", "response": "x"}] * 5000)
    command = [sys.executable, "-m", "qwq_rl.cli", "verify", f"{own}:verify", rows, "--out", str(out)]
    (tmp_path / "own.py").write_text(
        "import time\ndef verify(problem, response):\n    time.sleep(0.002)\n    return True\n"
    )
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (out.exists() and out.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        told = process.stderr.read()
    assert process.returncode == 130
    assert "stopped: the verdicts of the first" in told
    assert 0 < len(lines(out)) < 5000


def test_the_command_line_says_bad_rows_in_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert spoken(lambda: main(["math", write(tmp_path, "x")])) == 2
    assert "rows.jsonl:1: not JSON" in capsys.readouterr().err
    assert qwq_rl(["verify", "math", write(tmp_path, RIGHT)]) == 0


def test_the_example_of_the_page_is_judged_and_audited(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (root / "docs" / "verifiers.md").read_text()
    found = {name: re.search(rf"<!-- example: {name} -->\n```\w+\n(.*?)```", page, re.S) for name in PAGE}
    texts = {name: match[1] for name, match in found.items() if match}
    assert list(texts) == list(PAGE)
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "colours.py").write_text(f"{texts['verifier']}\n\n{texts['self_answer']}")
    (tmp_path / "rows.jsonl").write_text(texts["verify_row"])
    monkeypatch.chdir(tmp_path)

    assert main(["my_lab/colours.py:verify", "rows.jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "correct"
    assert main(["my_lab/colours.py:verify", "rows.jsonl", "--audit"]) == 0
    assert "1 of 1 proven" in capsys.readouterr().out
