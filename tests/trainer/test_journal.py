"""Verdicts are on the disk before they are used, and a resumed stage finds the very ones it had."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwq_rl.recipes_blocks import Domain, DomainCheck
from qwq_rl.runfolder import StageFolder
from qwq_rl.scoring import Scored, Scorer
from qwq_rl.trainer.journal import Journal, Key, journal_of, key_of
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


def keyed(scored: list[Scored], update: int = 1) -> list[tuple[Key, Scored]]:
    return [(key_of(update, place, 0, [place, 7]), one) for place, one in enumerate(scored)]


def test_what_was_written_is_read_back_as_it_was(path: Path, scored: list[Scored]) -> None:
    Journal(path).write(keyed(scored))

    again = Journal(path)

    assert [again.replay(key) for key, _ in keyed(scored)] == scored


@pytest.mark.parametrize("text", ["\ud800", "½ \u2028 \x00 \n", ""])
@pytest.mark.parametrize("number", [0.1 + 0.2, 5e-324, float("inf"), 3])
def test_no_text_or_number_changes(path: Path, text: str, number: float) -> None:
    verdict = Verdict(1.0, text, text, text or None, {text: number}, 1 / 3)
    odd = Scored(None, number, {text: verdict}, {text: False}, 2 / 3)

    Journal(path).write([(key_of(1, 0, 0, []), odd)])
    trimmed = Journal(path)
    trimmed.trim(1)

    assert Journal(path).replay(key_of(1, 0, 0, [])) == odd


@pytest.mark.parametrize("other", [key_of(2, 0, 0, [0, 7]), key_of(1, 1, 0, [0, 7]), key_of(1, 0, 1, [0, 7])])
def test_another_completion_is_judged_for_itself(path: Path, scored: list[Scored], other: Key) -> None:
    Journal(path).write(keyed(scored[:1]))

    again = Journal(path)

    assert again.replay(key_of(1, 0, 0, [0, 7])) == scored[0]
    assert again.replay(other) is None
    assert again.replay(key_of(1, 0, 0, [0, 8])) is None


def test_what_could_not_be_judged_is_judged_again(path: Path, scored: list[Scored]) -> None:
    fault = Scorer(DOMAINS, GATES).score([({**MATH, "reference": {"no": "answer"}}, respond(r"\boxed{4}"))])[0]
    assert fault.reward is None

    Journal(path).write([*keyed([scored[0], fault])])

    assert [Journal(path).replay(key) for key, _ in keyed([scored[0], fault])] == [scored[0], None]


def test_an_open_row_has_a_reward_and_no_score_and_is_replayed(path: Path, scored: list[Scored]) -> None:
    assert (scored[-1].score, scored[-1].reward) == (None, 1 / 3)

    Journal(path).write([(key_of(1, 0, 0, [1]), scored[-1])])

    assert Journal(path).replay(key_of(1, 0, 0, [1])) == scored[-1]


def test_a_torn_last_line_is_passed_over_and_later_ones_are_whole(path: Path, scored: list[Scored]) -> None:
    first, second, third = keyed(scored[:3])
    Journal(path).write([first, second])
    whole = path.read_bytes()
    for cut in (2, 20, len(whole.splitlines()[1])):
        path.write_bytes(whole[:-cut])

        torn = Journal(path)
        assert (torn.replay(first[0]), torn.replay(second[0])) == (first[1], None)
        torn.write([third])

        again = Journal(path)
        assert [again.replay(key) for key, _ in (first, second, third)] == [first[1], None, third[1]]


def test_a_line_of_zeros_that_a_loss_of_power_left_is_passed_over(path: Path, scored: list[Scored]) -> None:
    first, second = keyed(scored[:2])
    Journal(path).write([first])
    with path.open("ab") as file:
        file.write(b"\0" * 100 + b"\n[]\nnull\n{}\n")
    Journal(path).write([second])

    assert [Journal(path).replay(key) for key, _ in (first, second)] == [first[1], second[1]]


def test_trimming_keeps_what_may_be_needed_again(path: Path, scored: list[Scored]) -> None:
    journal = Journal(path)
    for update in (1, 2, 3, 4):
        journal.write(keyed(scored[:2], update))

    again = Journal(path)
    again.trim(3)
    again.write(keyed(scored[:1], 5))

    assert [json.loads(line)["update"] for line in path.read_text().splitlines()] == [3, 3, 4, 4, 5]
    assert again.replay(key_of(2, 0, 0, [0, 7])) is None
    assert again.replay(key_of(3, 0, 0, [0, 7])) == scored[0]


def test_nothing_is_written_where_there_is_nothing(path: Path) -> None:
    journal = Journal(path)
    journal.trim(3)
    journal.write([])

    assert not path.exists()


def test_a_verifier_that_was_mended_is_asked_again(path: Path, scored: list[Scored]) -> None:
    ((key, _),) = keyed(scored[:1])
    Journal(path, "sha256:broken").write([(key, replace(scored[0], reward=0.0))])

    mended = Journal(path, "sha256:mended")
    assert mended.replay(key) is None
    mended.write([(key, scored[0])])

    assert Journal(path, "sha256:mended").replay(key) == scored[0]
    mended.trim(1)
    assert len(path.read_text().splitlines()) == 1


def test_every_process_has_a_file_of_its_own(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path)

    assert [journal_of(folder, rank).name for rank in (0, 1)] == ["verdicts.jsonl", "verdicts-1.jsonl"]


UNSTEADY = """
import os
def verify(problem, response):
    return int.from_bytes(os.urandom(1), "little") / 255  # as a time-out or a server: otherwise each time
"""
ROUND = """
import json, os, signal, sys
from pathlib import Path
from qwq_rl.recipes_blocks import Domain
from qwq_rl.scoring import Scorer
from qwq_rl.trainer.journal import Journal, key_of
from qwq_rl.verifiers import Response
folder, dies = Path(sys.argv[1]), int(sys.argv[2])
journal = Journal(folder / "verdicts.jsonl")
scorer = Scorer({"d": Domain({f"{folder / 'unsteady.py'}:verify": {}})}, [])
row = {"id": "r", "domain": "d", "prompt": "?", "reference": "4"}
for update in (1, 2, 3):
    keys = [key_of(update, 0, sample, [update, sample]) for sample in range(4)]
    scored = [journal.replay(key) for key in keys]
    if None in scored:
        assert set(scored) == {None}
        scored = scorer.score([(row, Response(text=f"{sample}", answer=f"{sample}")) for sample in range(4)])
        journal.write(zip(keys, scored))
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
    assert [entry["update"] for entry in written] == [1] * 4 + [2] * 4
    assert run(dies=0) == 0

    first, again, second, third = map(json.loads, (tmp_path / "used.jsonl").read_text().splitlines())
    assert first == again == [1, [entry["reward"] for entry in written[:4]]]
    assert second == [2, [entry["reward"] for entry in written[4:]]]
    assert third[0] == 3
    assert len(set(first[1] + second[1] + third[1])) > 6
