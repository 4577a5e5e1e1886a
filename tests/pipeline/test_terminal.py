"""The rows of the board, read from files that another process writes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from qwq_rl.pipeline import terminal
from qwq_rl.pipeline.terminal import Board, StageView, StageWatch, Tail, numbers
from qwq_rl.run_folder.files import StageFolder, append_line, write_lines


def line(update: int, **more: Any) -> dict[str, Any]:
    return {"update": update, "time": 100.0 + update / 2, "loss": 1.5, "reward": 0.613} | more


def test_a_tail_takes_up_what_is_new(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "metrics.jsonl")
    assert tail.read() == []
    append_line(tail.path, line(1))
    assert [one["update"] for one in tail.read()] == [1]
    append_line(tail.path, line(2))
    assert [one["update"] for one in tail.read()] == [1, 2]


def test_a_tail_waits_for_a_line_to_be_whole(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "metrics.jsonl")
    tail.path.write_text('{"update": 1}\n{"upd')
    assert tail.read() == [{"update": 1}]
    with tail.path.open("a") as file:
        file.write('ate": 2}\n')
    assert tail.read() == [{"update": 1}, {"update": 2}]


def test_a_tail_starts_again_where_the_file_was_cut_back(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "metrics.jsonl")
    write_lines(tail.path, [line(1), line(2), line(3)])
    tail.read()
    write_lines(tail.path, [line(1), line(2), line(3, reward=0.9)])
    assert tail.read()[-1]["reward"] == 0.9


def test_a_row_says_how_far_how_fast_and_how_long_still(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "1_math_code")
    write_lines(folder.metrics, [line(update) for update in range(1, 41)])
    view = StageWatch(folder, 100).view(seconds=20)
    assert (view.update, view.steps, view.rate, view.remaining) == (40, 100, 2.0, 30.0)
    assert view.line() == "1_math_code: 40/100  reward 0.61  2.0/s  0:30 left"


def test_a_stage_that_has_not_begun(tmp_path: Path) -> None:
    assert StageWatch(StageFolder(tmp_path / "x"), 100).view(seconds=3).line() == "x: 0/100  starting"


def test_held_out_accuracy_stands_beside_the_reward() -> None:
    evaluation = {"domains": {"math": {"sampled": {"mean": 0.8}}, "code": {"sampled": {"mean": None}}}}
    assert numbers(line(1, tokens={"mean": 17.2}), evaluation) == "reward 0.61  math 0.80  17 tokens"
    assert numbers({"update": 1, "loss": 1.5, "accuracy": 0.62}, None) == "loss 1.500  accuracy 0.62"


def test_without_a_terminal_a_plain_line_comes_now_and_then() -> None:
    output = io.StringIO()
    board = Board(Console(file=output, width=100))
    views = [StageView("a", "running", 3, 10, "loss 1.0"), StageView("b", "waiting")]
    with board:
        board.show(views, [("evaluate c", 4.2)])
        assert output.getvalue() == ""
        board._next_plain -= terminal.PLAIN_SECONDS
        board.show(views, [("evaluate c", 4.2)])
        board.show(views, [("evaluate c", 4.2)])
    assert output.getvalue() == "a: 3/10  loss 1.0\nevaluate c: 4 s\n"


def test_on_a_terminal_every_stage_has_a_row() -> None:
    output = io.StringIO()
    board = Board(Console(file=output, width=100, force_terminal=True))
    with board:
        board.show([StageView("a", "running", 3, 10, "loss 1.0", 2.0, 3.5), StageView("b", "waiting")], [])
    text = output.getvalue()
    assert "loss 1.0" in text
    assert "0:03 left" in text
    assert "waiting" in text
