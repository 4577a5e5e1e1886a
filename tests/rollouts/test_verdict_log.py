"""Verdicts are on the disk before they are used, and a resumed stage finds the very ones it had."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwq_rl.config.blocks import Domain, DomainCheck
from qwq_rl.data.row import Row
from qwq_rl.rewards.reward import Scored
from qwq_rl.rewards.scorer import Scorer
from qwq_rl.rollouts.verdict_log import Key, VerdictLog, keys_of, verdict_log_of, verdict_logs_beside
from qwq_rl.run_folder.files import StageFolder
from qwq_rl.verifiers import Response, Verdict

DOMAINS = {
    "math": Domain({"math": {}}, checks=(DomainCheck("repetition", "penalty"), DomainCheck("think_format", "gate"))),
    "chat": Domain({}, reward_model=1.0),
}
MATH = {"id": "m", "domain": "math", "prompt": "?", "verifier": "math", "reference": "4"}
CHAT = {"id": "c", "domain": "chat", "prompt": "?"}
GATES = ["think_closed", "finished", "answered"]


def respond(answer: str, **rest: Any) -> Response:
    return Response(text=f"<think>hm</think>{answer}", answer=answer, reasoning="hm", **rest)


@pytest.fixture(scope="module")
def scored() -> list[Scored]:
    """What real responses got: right, wrong, cut off, repeating itself, without an answer, open."""
    answers = [r"\boxed{4}", r"\boxed{½}", "no box", " ", r"\boxed{4}" + " and so on" * 300]
    items = [(MATH, respond(answer)) for answer in answers]
    items += [(MATH, respond(r"\boxed{4}", finish="length")), (CHAT, respond("hello"))]
    found = Scorer(DOMAINS, GATES).score(items, [*[None] * 6, 1 / 3])
    assert len({one.reward for one in found}) >= 3
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stage" / "verdicts.jsonl"


COUNTS = {"math": {"judged": 3, "retries": 1}}


def key(update: int = 1, place: int = 0, sample: int = 0, row: Row = MATH, token_ids: Sequence[int] = (0, 7)) -> Key:
    return keys_of(update, place, row, [token_ids] * (sample + 1))[sample]


def keyed(scored: list[Scored], update: int = 1) -> list[tuple[Key, Scored]]:
    return [(key(update, place, token_ids=[place, 7]), one) for place, one in enumerate(scored)]


def test_what_was_written_is_read_back_as_it_was(path: Path, scored: list[Scored]) -> None:
    VerdictLog(path).write(1, keyed(scored), COUNTS)

    again = VerdictLog(path)

    keys = [key for key, _ in keyed(scored)]
    assert [again.replay(key) for key in keys] == scored
    assert again.counts(keys) == [COUNTS]


@pytest.mark.parametrize("text", ["\ud800", "½ \u2028 \x00 \n", ""])
@pytest.mark.parametrize("number", [0.1 + 0.2, 5e-324, float("inf"), 3])
def test_no_text_or_number_changes(path: Path, text: str, number: float) -> None:
    verdict = Verdict(1.0, text, text, text or None, {text: number}, 1 / 3)
    odd = Scored(None, number, {text: verdict}, {text: False}, 2 / 3)

    VerdictLog(path).write(1, [(key(), odd)], COUNTS)
    trimmed = VerdictLog(path)
    trimmed.trim(1)

    assert VerdictLog(path).replay(key()) == odd


@pytest.mark.parametrize(
    "other",
    [{"update": 2}, {"place": 1}, {"sample": 1}, {"token_ids": (0, 8)}, {"row": {**MATH, "reference": "5"}}],
)
def test_another_completion_is_judged_for_itself(path: Path, scored: list[Scored], other: dict[str, Any]) -> None:
    VerdictLog(path).write(1, keyed(scored[:1]), COUNTS)

    again = VerdictLog(path)

    assert again.replay(key()) == scored[0]
    assert again.replay(key(**other)) is None
    assert again.counts([key(**other)]) == []


def test_what_could_not_be_judged_is_judged_again(path: Path, scored: list[Scored]) -> None:
    fault = Scorer(DOMAINS, GATES).score([({**MATH, "reference": {"no": "answer"}}, respond(r"\boxed{4}"))])[0]
    assert fault.reward is None

    VerdictLog(path).write(1, keyed([scored[0], fault]), COUNTS)

    assert [VerdictLog(path).replay(key) for key, _ in keyed([scored[0], fault])] == [scored[0], None]


def test_an_open_row_has_a_reward_and_no_score_and_is_replayed(path: Path, scored: list[Scored]) -> None:
    assert (scored[-1].score, scored[-1].reward) == (None, 1 / 3)

    VerdictLog(path).write(1, [(key(row=CHAT), scored[-1])], {})

    assert VerdictLog(path).replay(key(row=CHAT)) == scored[-1]


def test_a_torn_last_line_is_passed_over_and_later_ones_are_whole(path: Path, scored: list[Scored]) -> None:
    first, second, third = keyed(scored[:3])
    VerdictLog(path).write(1, [first], COUNTS)
    VerdictLog(path).write(1, [second], COUNTS)
    whole = path.read_bytes()
    for cut in (2, 20, len(whole.splitlines()[1])):
        path.write_bytes(whole[:-cut])

        torn = VerdictLog(path)
        assert (torn.replay(first[0]), torn.replay(second[0])) == (first[1], None)
        torn.write(1, [third], COUNTS)

        again = VerdictLog(path)
        assert [again.replay(key) for key, _ in (first, second, third)] == [first[1], None, third[1]]


def test_a_line_of_zeros_that_a_loss_of_power_left_is_passed_over(path: Path, scored: list[Scored]) -> None:
    first, second = keyed(scored[:2])
    VerdictLog(path).write(1, [first], COUNTS)
    with path.open("ab") as file:
        file.write(b"\0" * 100 + b"\n[]\nnull\n{}\n")
    VerdictLog(path).write(1, [second], COUNTS)

    assert [VerdictLog(path).replay(key) for key, _ in (first, second)] == [first[1], second[1]]


def test_trimming_keeps_what_may_be_needed_again(path: Path, scored: list[Scored]) -> None:
    log = VerdictLog(path)
    for update in (1, 2, 3, 4):
        log.write(update, keyed(scored[:2], update), COUNTS)

    again = VerdictLog(path)
    again.trim(3)
    again.write(5, keyed(scored[:1], 5), COUNTS)

    assert [json.loads(line)["update"] for line in path.read_text().splitlines()] == [3, 4, 5]
    assert again.replay(key(2)) is None
    assert again.replay(key(3)) == scored[0]


def test_nothing_is_written_where_there_is_nothing(path: Path) -> None:
    log = VerdictLog(path)
    log.trim(3)
    log.write(3, [], COUNTS)

    assert not path.exists()


def test_a_verifier_that_was_mended_is_asked_again(path: Path, scored: list[Scored]) -> None:
    VerdictLog(path, "sha256:broken").write(1, [(key(), replace(scored[0], reward=0.0))], COUNTS)

    mended = VerdictLog(path, "sha256:mended")
    assert mended.replay(key()) is None
    mended.write(1, [(key(), scored[0])], COUNTS)

    assert VerdictLog(path, "sha256:mended").replay(key()) == scored[0]
    mended.trim(1)
    assert len(path.read_text().splitlines()) == 1


def test_what_was_judged_in_two_calls_has_the_counts_of_both(path: Path, scored: list[Scored]) -> None:
    first, second = keyed(scored[:2])
    log = VerdictLog(path)
    log.write(1, [first], {"math": {"judged": 2, "faults": 1}})
    log.write(1, [second], {"math": {"judged": 1}})

    assert VerdictLog(path).counts([first[0], second[0]]) == [
        {"math": {"judged": 2, "faults": 1}},
        {"math": {"judged": 1}},
    ]


def test_a_completion_that_was_judged_again_counts_as_it_was_judged_last(path: Path, scored: list[Scored]) -> None:
    log = VerdictLog(path)
    log.write(1, [(key(), scored[1])], {"math": {"judged": 9}})
    log.write(1, [(key(), scored[0])], COUNTS)

    again = VerdictLog(path)

    assert again.replay(key()) == scored[0]
    assert again.counts([key()]) == [COUNTS]


def test_what_is_left_of_a_call_of_which_something_changed_is_not_intact(path: Path, scored: list[Scored]) -> None:
    first, second, third = (key for key, _ in keyed(scored[:3]))
    log = VerdictLog(path)
    log.write(1, keyed(scored[:2]), COUNTS)
    log.write(1, keyed(scored[:3])[2:], COUNTS)

    again = VerdictLog(path)

    assert again.intact([first, second, third]) == {first, second, third}
    assert again.intact([first, third, key(9)]) == {third}


def test_every_process_has_a_file_of_its_own(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path)

    assert [verdict_log_of(folder, rank).name for rank in (0, 1)] == ["verdicts.jsonl", "verdicts-1.jsonl"]


@pytest.mark.parametrize(("world", "asked"), [(1, ["verdicts-1.jsonl"]), (2, []), (3, ["verdicts-1.jsonl"])])
def test_another_number_of_processes_looks_into_all_journals(
    tmp_path: Path, scored: list[Scored], world: int, asked: list[str]
) -> None:
    folder = StageFolder(tmp_path / "1_math_code")
    first, second = keyed(scored[:2])
    for rank, entry in enumerate((first, second)):
        VerdictLog(verdict_log_of(folder, rank)).write(1, [entry], COUNTS)

    beside = verdict_logs_beside(folder, 0, world)
    log = VerdictLog(verdict_log_of(folder, 0), others=beside)

    assert [path.name for path in beside] == asked
    assert [log.replay(key) for key, _ in (first, second)] == [first[1], second[1] if asked else None]


def test_a_journal_forgets_its_own_entries_and_leaves_those_of_others(tmp_path: Path, scored: list[Scored]) -> None:
    folder = StageFolder(tmp_path / "1_math_code")
    first, second = keyed(scored[:2])
    for rank, entry in enumerate((first, second)):
        VerdictLog(verdict_log_of(folder, rank)).write(1, [entry], COUNTS)

    VerdictLog(verdict_log_of(folder, 0), others=[verdict_log_of(folder, 1)]).trim(2)

    assert VerdictLog(verdict_log_of(folder, 0)).replay(first[0]) is None
    assert VerdictLog(verdict_log_of(folder, 1)).replay(second[0]) == second[1]


UNSTEADY = """
import os
def verify(problem, response):
    return int.from_bytes(os.urandom(1), "little") / 255  # as a time-out or a server: otherwise each time
"""
ROUND = """
import json, os, signal, sys
from pathlib import Path
from qwq_rl.config.blocks import Domain
from qwq_rl.rewards.scorer import Scorer
from qwq_rl.rollouts.verdict_log import VerdictLog, keys_of
from qwq_rl.verifiers import Response
folder, dies = Path(sys.argv[1]), int(sys.argv[2])
log = VerdictLog(folder / "verdicts.jsonl")
scorer = Scorer({"d": Domain({f"{folder / 'unsteady.py'}:verify": {}})}, [])
row = {"id": "r", "domain": "d", "prompt": "?", "reference": "4"}
for update in (1, 2, 3):
    keys = keys_of(update, 0, row, [[update, sample] for sample in range(4)])
    scored = [log.replay(key) for key in keys]
    if None in scored:
        assert set(scored) == {None}
        scored = scorer.score([(row, Response(text=f"{sample}", answer=f"{sample}")) for sample in range(4)])
        log.write(update, zip(keys, scored), scorer.counts)
    if update == dies:
        os.kill(os.getpid(), signal.SIGKILL)
    with (folder / "used.jsonl").open("a") as file:
        file.write(json.dumps([update, [one.reward for one in scored]]) + "\\n")
"""


def test_a_process_killed_between_writing_and_using_uses_the_same_when_it_comes_again(tmp_path: Path) -> None:
    (tmp_path / "unsteady.py").write_text(UNSTEADY)

    def run(dies: int) -> int:
        command = [sys.executable, "-c", ROUND, str(tmp_path), str(dies)]
        return subprocess.run(command, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode

    assert run(dies=2) == -signal.SIGKILL
    written = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [call["update"] for call in written] == [1, 2]
    rewards = [[entry["reward"] for entry in call["scored"]] for call in written]
    assert run(dies=0) == 0

    first, again, second, third = map(json.loads, (tmp_path / "used.jsonl").read_text().splitlines())
    assert first == again == [1, rewards[0]]
    assert second == [2, rewards[1]]
    assert third[0] == 3
    assert len(set(first[1] + second[1] + third[1])) > 6
