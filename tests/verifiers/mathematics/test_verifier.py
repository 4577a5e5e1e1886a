"""The math verifier as a whole: algebra in its own process, faults of ours never scored, real golds."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
import venv
from itertools import pairwise
from pathlib import Path

import mpmath
import pytest

from qwq_rl.verifiers import Response, Verdict, load
from qwq_rl.verifiers.mathematics.verifier import gold_answer, math

BOMB = r"\prod_{k=1}^{10^7}k"


def said(answer: str, gold: object, finish: str = "stop") -> Verdict:
    response = Response(text=answer, answer=answer, finish=finish)  # type: ignore[arg-type]
    verdict = load("math", {"deadline_s": 10.0})({"reference": gold}, response)  # however busy the machine
    assert isinstance(verdict, Verdict)
    return verdict


def boxed(text: str) -> str:
    return f"\\boxed{{{text}}}"


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        (r"2\sqrt{3}", r"\sqrt{12}", 1.0),
        ("(x-1)(x+1)", "x^2-1", 1.0),
        (r"\frac{\pi}{2}", r"\pi/2", 1.0),
        (r"\sqrt{16}", "4", 1.0),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", 1.0),
        ("(x-1)(x+2)", "x^2-1", 0.0),
        (r"\sqrt{17}", "4", 0.0),
        ("5x", "5", 0.0),
        (r"\sum_{k=1}^{3} k", "6", 1.0),
        (r"\sum_{k=1}^{3} k", "7", 0.0),
    ],
)
def test_algebra_decides_what_is_not_plain_arithmetic(answer: str, gold: str, score: float) -> None:
    assert said(boxed(answer), gold).score == score


@pytest.mark.parametrize(
    ("reference", "gold"),
    [
        ("4", "4"),
        (4, "4"),
        (0.5, "0.5"),
        (boxed("4"), "4"),
        ("6 * 12\n#### 72", "72"),
        ("so " + boxed("3"), "3"),
        ("", ""),
    ],
)
def test_a_reference_may_be_boxed_or_follow_hashes(reference: object, gold: str) -> None:
    assert gold_answer(reference) == gold


@pytest.mark.parametrize("reference", ["", None, True, [1], {"answer": 4}, r"\frac{1}{", "}{"])
def test_a_bad_reference_is_told(reference: object) -> None:
    verdict = said(boxed("4"), reference)
    assert (verdict.score, verdict.status) == (None, "bad_reference")


def test_an_unfinished_response_says_so() -> None:
    verdict = said("", "4", finish="length")
    assert (verdict.score, verdict.status) == (0.0, "no_answer")
    assert "ran out of tokens" in verdict.reason


def test_several_boxes_are_one_list_so_that_hedging_fails() -> None:
    assert said(r"\boxed{4} or \boxed{5}", "4").score == 0.0


def test_a_very_long_answer_is_not_compared() -> None:
    verdict = said(boxed("x+" * 2000 + "x"), "4x")
    assert verdict.score == 0.0
    assert "at most 3000" in verdict.reason


def test_braces_that_do_not_match_reach_no_parser() -> None:
    assert "cannot be read" in said(r"the answer is \foo{x}}+{y", "x+y").reason


def test_a_bomb_scores_nothing_and_the_next_answer_is_judged() -> None:
    verifier = math(deadline_s=1.0)
    started = time.monotonic()
    verdict = verifier({"reference": r"\sqrt{2}"}, Response(text="", answer=boxed(BOMB)))
    assert isinstance(verdict, Verdict)
    assert (verdict.score, verdict.status) == (0.0, "timeout"), verdict.reason
    assert time.monotonic() - started < 60
    after = verifier({"reference": r"\sqrt{2}"}, Response(text="", answer=boxed(r"\frac{2}{\sqrt{2}}")))
    assert isinstance(after, Verdict)
    assert after.score == 1.0


def test_a_reference_that_hangs_is_not_the_response_s_fault() -> None:
    verdict = math(deadline_s=1.0)({"reference": BOMB}, Response(text="", answer=boxed(r"\sqrt{2}")))
    assert isinstance(verdict, Verdict)
    assert (verdict.score, verdict.status) == (None, "undecided")


def test_threads_get_their_own_answers() -> None:
    found: dict[int, float | None] = {}

    def ask(number: int) -> None:
        found[number] = said(boxed(f"\\sum_{{k=1}}^{{{number}}} 1"), f"{number - number % 2}").score

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {number: float(number % 2 == 0) for number in range(2, 10)}


def test_a_forked_child_asks_a_process_of_its_own() -> None:
    assert said(boxed(r"\sum_{k=1}^{3} k"), "6").score == 1.0
    child = os.fork()
    if child == 0:
        os._exit(0 if said(boxed(r"\sum_{k=1}^{4} k"), "10").score == 1.0 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert said(boxed(r"\sum_{k=1}^{5} k"), "15").score == 1.0


def test_without_math_verify_only_algebra_is_a_fault(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", symlinks=True)
    script = (
        "from qwq_rl.verifiers.mathematics.verifier import math\n"
        "from qwq_rl.verifiers.contract import Response\n"
        "said = lambda answer, gold: math()({'reference': gold}, Response(text='', answer=answer))\n"
        "assert said(r'\\boxed{0.5}', '1/2').score == 1.0\n"
        "verdict = said(r'\\boxed{\\sum_{k=1}^{3} k}', '6')\n"
        "assert (verdict.score, verdict.status) == (None, 'undecided'), verdict\n"
        "assert \"pip install 'qwq-rl[math]'\" in verdict.reason, verdict\n"
    )
    root = Path(__file__).resolve().parents[3]
    (tmp_path / "mpmath").symlink_to(Path(mpmath.__file__).parent)
    bare = tmp_path / "bare" / "bin" / "python"
    subprocess.run(
        [bare, "-c", script], check=True, env={"PYTHONPATH": f"{root}:{tmp_path}"}, cwd=tmp_path, timeout=120
    )


def test_ordinary_answers_start_no_process_and_import_no_algebra(published: Path) -> None:
    with (published / "math" / "gsm8k_test.jsonl").open() as file:
        golds = [gold_answer(json.loads(line)["answer"]) for line in file]
    verifier, before = math(deadline_s=4.5), _children()  # a process of its own, if it were started
    scores = [verifier({"reference": gold}, Response(text="", answer=boxed(f"{gold}.0"))) for gold in golds]
    assert [score for score in scores if not isinstance(score, Verdict) or score.score != 1.0] == []
    assert _children() == before


def test_published_golds_pass_against_themselves_and_not_against_the_next(published: Path) -> None:
    with (published / "math" / "math500.jsonl").open() as file:
        golds = [json.loads(line)["answer"] for line in file][:120]
    assert [gold for gold in golds if said(boxed(gold.replace(r"\frac", r"\dfrac")), gold).score != 1.0] == []
    pairs = [(left, right) for left, right in pairwise(golds) if left.split("=")[-1] != right.split("=")[-1]]
    assert [pair for pair in pairs if said(boxed(pair[0]), pair[1]).score != 0.0] == []


def _children() -> set[str]:
    """The processes that this one has started."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
