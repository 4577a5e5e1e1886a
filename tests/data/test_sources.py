"""Rows: what is read from each source, every mistake with its line, and the order in which training sees them."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq_rl.data.order import mix
from qwq_rl.data.row import Check, Row, checks_of, grading_checks_of, prompt_messages
from qwq_rl.data.sources import load_rows
from qwq_rl.errors import RowError

GOOD: Row = {"id": "a", "domain": "math", "prompt": "1 + 1 = ?", "verifier": "math", "reference": "2"}
SFT: Row = {
    "id": "s",
    "domain": "math",
    "messages": [{"role": "user", "content": "1 + 1 = ?"}, {"role": "assistant", "content": "2"}],
}
PREFERENCE: Row = {"id": "p", "prompt": "greet Ann", "chosen": "hello Ann !", "rejected": "go away"}


def write(folder: Path, *rows: Any) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def mistakes(source: str, **options: Any) -> list[str]:
    with pytest.raises(RowError) as caught:
        load_rows(source, **options)
    return str(caught.value).split("\n")


def only_mistake(folder: Path, row: Row, **options: Any) -> str:
    (line,) = mistakes(write(folder, row), **options)
    return line.removeprefix(f"{folder}/rows.jsonl:1: ")


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [GOOD, SFT, PREFERENCE], ids=["rl", "sft", "preference"])
def test_a_good_row_comes_back_unchanged(tmp_path: Path, row: Row) -> None:
    row = {**row, "level": 5, "source": {"book": "x"}}

    assert load_rows(write(tmp_path, row)) == [row]


def test_blank_lines_and_a_byte_order_mark_are_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\n")

    assert load_rows(str(path)) == [GOOD]


def test_parquet_gives_the_rows_that_json_lines_give(tmp_path: Path) -> None:
    rows = [{**SFT, "id": f"s{at}"} for at in range(3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")

    assert load_rows(str(tmp_path / "rows.parquet")) == load_rows(write(tmp_path, *rows))


def test_limit_keeps_the_first_rows(tmp_path: Path) -> None:
    rows = [{**GOOD, "id": str(at)} for at in range(5)]

    assert [row["id"] for row in load_rows(write(tmp_path, *rows), limit=2)] == ["0", "1"]


def test_a_mapper_turns_published_rows_into_rows(tmp_path: Path) -> None:
    source = write(tmp_path, {"question": "1 + 1 = ?", "answer": "1 + 1 = 2\n#### 2"})

    (row,) = load_rows(source, mapper="gsm8k")

    assert checks_of(row) == [Check("math", "2", "score")]


# --- what is said of mistakes -----------------------------------------------------------------------------------------


def test_every_mistake_of_a_file_is_listed_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    bad = {"id": 7, "domain": "math", "promt": "1 + 1 = ?"}
    path.write_bytes(json.dumps(GOOD).encode() + b"\n{'id': 1}\n[1]\n\xff\xfe\n\n" + json.dumps(bad).encode() + b"\n")

    assert mistakes(str(path)) == [
        f"{path}:2: not JSON: Expecting property name enclosed in double quotes at column 2",
        f"{path}:3: a JSON list, where one JSON object a line is needed",
        f"{path}:4: not UTF-8: byte 1 of the line is 0xff",
        f"{path}:6: column `prompt` is missing: is it the column `promt`?",
        f"{path}:6: `id` must be a string that is not empty, not 7, a number",
    ]


def test_twenty_mistakes_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    lines = mistakes(write(tmp_path, *({**GOOD, "id": ""} for _ in range(33))))

    assert len(lines) == 21
    assert lines[-1].startswith("... and 13 more in ")


def test_a_repeated_id_names_both_lines(tmp_path: Path) -> None:
    (line,) = mistakes(write(tmp_path, GOOD, {**GOOD, "id": "b"}, GOOD))

    assert line.endswith("rows.jsonl:3: the id 'a' is taken by line 1; every row needs its own")


def test_rows_of_another_kind_are_named(tmp_path: Path) -> None:
    said = only_mistake(tmp_path, SFT, kind="rl")

    assert said == "this looks like a row of kind sft; a row of kind rl is needed, with `prompt`"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": ""}, "`prompt` is empty"),
        ({"prompt": 3}, "`prompt` must be a list of messages or one string, not 3, a number"),
        ({"prompt": [{"role": "usr", "content": "hi"}]}, "unknown role 'usr'; did you mean `user`?"),
        ({"prompt": [{"role": "user", "contents": "hi"}]}, "has no `content`; did you mean `contents`?"),
        ({"prompt": [{"role": "user", "content": None}]}, "must have a string as `content`, not null"),
        ({"prompt": [{"role": "assistant", "content": "hi"}]}, "nothing left to answer"),
        ({"tools": "add"}, "`tools` must be a list of function schemas or null, not 'add', a string"),
        ({"tools": [{"type": "function"}]}, "`tools[0]` must be a function schema with a `name`"),
        ({"solution": ["4"]}, "`solution` must be a string or null, not ['4'], a list"),
        ({"verifier": 3}, "`verifier` must be a verifier's name, not 3, a number"),
        ({"checks": [{"verifier": "math"}]}, "has both `checks` and `verifier`"),
        (
            {"grade": {"verifier": "math", "role": "gates"}},
            "`grade` has the unknown role 'gates'; did you mean `gate`?",
        ),
    ],
)
def test_one_mistake_gives_one_sentence(tmp_path: Path, change: Row, said: str) -> None:
    assert said in only_mistake(tmp_path, {**GOOD, **change})


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"checks": {"verifier": "math"}}, "`checks` must be a list of {verifier, reference, role}"),
        ({"checks": ["math"]}, "`checks[0]` must be {verifier, reference, role}, not 'math', a string"),
        ({"checks": [{"verifer": "math"}]}, "`checks[0]` has the unknown key `verifer`; did you mean `verifier`?"),
        (
            {"checks": [{"verifier": "math", "role": "bonus"}]},
            "unknown role 'bonus'; it is one of score, gate, penalty",
        ),
        ({"verifer": "math", "reference": "2"}, "unknown column `verifer`; did you mean `verifier`?"),
        ({"verifier": "math", "refrence": "2"}, "`verifier` has no `reference`; did you mean `refrence`?"),
        ({"chekcs": [{"verifier": "math"}]}, "unknown column `chekcs`; did you mean `checks`?"),
    ],
)
def test_a_mistake_in_the_checks_is_never_an_open_row(tmp_path: Path, columns: Row, said: str) -> None:
    row = {"id": "a", "domain": "math", "prompt": "1 + 1 = ?", **columns}

    assert said in "\n".join(mistakes(write(tmp_path, row)))


def test_a_conversation_without_the_assistants_end_is_refused(tmp_path: Path) -> None:
    said = only_mistake(tmp_path, {**SFT, "messages": SFT["messages"][:1]})

    assert said == "the last of `messages` is the user's: there is nothing to learn from"


def test_a_preference_without_its_rejected_reply_is_refused(tmp_path: Path) -> None:
    row = {key: value for key, value in PREFERENCE.items() if key != "rejected"}

    assert only_mistake(tmp_path, row) == "column `rejected` is missing"


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, GOOD)

    (line,) = mistakes(str(tmp_path / "row.jsonl"))

    assert line == f"{tmp_path}/row.jsonl: there is no such file; {tmp_path} has rows.jsonl"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    (line,) = mistakes(str(tmp_path / "dta" / "rows.jsonl"))

    assert line.endswith(f"the folder {tmp_path}/dta does not exist either")


def test_a_generated_set_is_read_by_its_name_and_seed() -> None:
    first, again, other = (load_rows("tiny/math", seed=seed, limit=20, kind="rl") for seed in (0, 0, 1))

    assert first == again != other


def test_an_unknown_generated_set_names_the_nearest() -> None:
    (line,) = mistakes("tiny/tunning")

    assert line.startswith("tiny/tunning: there is no such set; did you mean `tuning`? (tiny/ has math, ")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert mistakes(write(tmp_path)) == [f"{tmp_path}/rows.jsonl: it has no rows"]


def test_a_pretty_printed_file_is_told_what_form_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps([GOOD], indent=1))

    assert "one whole JSON object a line is needed" in mistakes(str(path))[0]


def test_a_torn_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 and then nothing")

    assert mistakes(str(path))[0].startswith(f"{path}: not a readable Parquet file: ")


@pytest.mark.parametrize("source", ["rows.csv", "rows", "../x/y", "a/b/c"])
def test_an_unknown_source_lists_the_forms(source: str) -> None:
    assert "it must be a .jsonl or .parquet file, tiny/NAME, or a Hub id" in mistakes(source)[0]


def test_what_a_mapper_raises_is_the_rows_mistake(tmp_path: Path) -> None:
    (line,) = mistakes(write(tmp_path, {"question": "1 + 1 = ?", "answr": "2"}), mapper="gsm8k")

    assert line.endswith(":1: the mapper `gsm8k` failed: column 'answer' is missing (the row has question, answr)")


# --- checks and prompts -----------------------------------------------------------------------------------------------


def test_the_shorthand_is_one_check_of_role_score() -> None:
    assert checks_of(GOOD) == checks_of({**GOOD, "verifier": None, "checks": [{"verifier": "math", "reference": "2"}]})


def test_a_row_without_checks_is_open() -> None:
    assert checks_of({"id": "a", "checks": None, "verifier": None}) == []


def test_a_reference_alone_is_left_to_the_domains_verifier(tmp_path: Path) -> None:
    (row,) = load_rows(write(tmp_path, {key: value for key, value in GOOD.items() if key != "verifier"}))

    assert checks_of(row) == []


def test_evaluation_grades_by_the_rows_grade_alone() -> None:
    row = {**GOOD, "grade": {"verifier": "constraints", "reference": {"all": []}}}

    assert grading_checks_of(row) == [Check("constraints", {"all": []}, "score")]
    assert grading_checks_of(GOOD) == checks_of(GOOD)


def test_a_text_prompt_is_one_user_message() -> None:
    assert prompt_messages(GOOD) == [{"role": "user", "content": "1 + 1 = ?"}]


# --- the order of training --------------------------------------------------------------------------------------------


def numbered(source: int, count: int) -> list[Row]:
    return [{"source": source, "id": f"{source}-{at}"} for at in range(count)]


sizes_and_weights = st.lists(
    st.tuples(st.integers(1, 7), st.sampled_from([0.1, 0.25, 0.3, 1, 2, 3, 7.5])), min_size=1, max_size=5
)


@settings(max_examples=100, deadline=None)
@given(sizes_and_weights, st.integers(0, 3), st.integers(1, 9), st.integers(1, 12))
def test_no_source_is_ever_a_row_ahead_and_whole_shares_are_met(
    shape: list[tuple[int, float]], seed: int, prompts: int, updates: int
) -> None:
    sources = [(numbered(at, size), weight) for at, (size, weight) in enumerate(shape)]
    weights = [Fraction(str(weight)) for _, weight in shape]

    order = mix(sources, seed, prompts, updates)

    assert len(order) == prompts * updates
    for update in range(1, updates + 1):
        given_so_far = Counter(row["source"] for row in order[: prompts * update])
        due = [weight / sum(weights) * prompts * update for weight in weights]
        assert all(given_so_far[at] < share + 1 for at, share in enumerate(due))
        if all(share.denominator == 1 for share in due):
            assert [given_so_far[at] for at in range(len(due))] == due


@settings(max_examples=50, deadline=None)
@given(sizes_and_weights, st.integers(0, 3), st.integers(1, 40))
def test_each_epoch_of_a_source_sees_every_row_once(shape: list[tuple[int, float]], seed: int, prompts: int) -> None:
    order = mix([(numbered(at, size), weight) for at, (size, weight) in enumerate(shape)], seed, prompts, 1)

    for at, (size, _) in enumerate(shape):
        walked = [row["id"] for row in order if row["source"] == at]
        for start in range(0, len(walked), size):
            epoch = walked[start : start + size]
            assert len(set(epoch)) == len(epoch)


def test_a_longer_run_begins_with_the_shorter_one() -> None:
    sources = [(numbered(0, 10), 1.0), (numbered(1, 3), 2.0)]

    assert mix(sources, 5, 4, 20)[:28] == mix(sources, 5, 4, 7)


def test_a_sources_own_order_depends_on_no_other_source() -> None:
    alone = mix([(numbered(0, 10), 1.0)], 5, 15, 1)
    beside = [row for row in mix([(numbered(0, 10), 1.0), (numbered(1, 3), 1.0)], 5, 30, 1) if row["source"] == 0]

    assert beside == alone


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first, second = (mix([(numbered(0, 40), 1.0)], seed, 40, 2) for seed in (0, 1))

    assert first[:40] != first[40:]
    assert first[:40] != second[:40]


def test_the_order_is_the_same_on_every_machine() -> None:
    order = mix([(numbered(0, 4), 1.0), (numbered(1, 2), 1.0)], 0, 8, 1)

    assert [row["id"] for row in order] == ["0-0", "1-0", "0-1", "1-1", "0-3", "1-1", "0-2", "1-0"]


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_weights_that_are_no_shares_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must"):
        mix([(numbered(at, 2), weight) for at, weight in enumerate(weights)], 0, 4, 1)


def test_a_source_without_weight_is_never_used() -> None:
    order = mix([(numbered(0, 2), 1.0), ([], 0.0)], 0, 4, 1)

    assert {row["source"] for row in order} == {0}
