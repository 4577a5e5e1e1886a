"""Drawing tasks: the split is decided by the operands alone, and a teacher slips as often as it is said to."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_rl.data.tiny.code_tasks import shift
from qwq_rl.data.tiny.math_tasks import FAMILIES, apply, chain, worked
from qwq_rl.data.tiny.task import Teacher, draw, split_of


@given(st.tuples(st.integers(), st.integers()))
def test_the_split_of_operands_never_changes(operands: tuple[int, int]) -> None:
    assert split_of(operands) == split_of(tuple(operands))


def test_a_fifth_of_all_operands_is_final_and_most_are_for_training() -> None:
    shares = Counter(split_of((a, b)) for a in range(100) for b in range(100))

    assert shares["final"] / 10_000 == pytest.approx(0.20, abs=0.02)
    assert shares["tuning"] / 10_000 == pytest.approx(0.15, abs=0.02)
    assert shares["train"] / 10_000 == pytest.approx(0.65, abs=0.02)


@pytest.mark.parametrize("split", ["train", "tuning", "final"])
def test_what_is_drawn_lies_in_the_split_and_has_no_prompt_twice(split: str) -> None:
    tasks = draw(chain, Random(0), split, "normal", 100)  # type: ignore[arg-type]

    assert len({task.prompt for task in tasks}) == len(tasks) == 100
    assert {split_of(task.operands) for task in tasks} == {split}


def test_a_family_that_runs_out_gives_what_it_has() -> None:
    tasks = draw(shift, Random(0), "tuning", "normal", 100_000)

    # 125 operand tuples, 8 ways to join each, 15 % of them for tuning.
    assert 50 < len(tasks) < 300


@pytest.mark.parametrize("family", FAMILIES)
def test_the_check_is_right_even_where_the_teacher_is_wrong(family: object) -> None:
    always = Teacher(slip=1.0, rng=Random(3))

    task = family(Random(5), "normal", always)  # type: ignore[operator]
    right = family(Random(5), "normal", Teacher())  # type: ignore[operator]

    assert (task.prompt, task.check) == (right.prompt, right.check)
    assert task.reasoning != right.reasoning


def test_a_teacher_goes_on_from_its_slip() -> None:
    lines, value = worked((1, 2, 3), ("+", "*"), Teacher(slip=1.0, rng=Random(0)))

    first, second = lines.split("\n")
    assert int(first[-1]) != apply("+", 1, 2)
    assert second[0] == first[-1]
    assert int(second[-1]) != apply("*", int(first[-1]), 3)
    assert value == int(second[-1])


@given(st.integers(0, 4), st.integers(0, 2**32))
def test_a_slip_is_another_number_of_the_choices(right: int, seed: int) -> None:
    slipped = Teacher(slip=1.0, rng=Random(seed)).result(right, 5)

    assert slipped in set(range(5)) - {right}


def test_a_teacher_that_never_slips_draws_no_random_numbers() -> None:
    rng = Random(0)

    Teacher(rng=rng).result(2, 5)

    assert rng.random() == Random(0).random()
