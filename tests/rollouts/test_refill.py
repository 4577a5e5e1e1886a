from __future__ import annotations

from collections import Counter
from math import nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_rl.rollouts.collect import choose, lacking, useful


@pytest.mark.parametrize(
    ("rewards", "teaches"),
    [
        ([0.0, 1.0], True),
        ([0.0, 0.0], False),
        ([0.3, 0.3, 0.3], False),
        ([1.0, None], False),
        ([None, 0.0, 1.0], True),
        ([nan, nan, 1.0], False),
        ([nan, 0.0, 1.0], True),
        ([None, None], False),
        ([], False),
    ],
)
def test_a_group_teaches_where_two_judged_rewards_differ(rewards: list[float | None], teaches: bool) -> None:
    assert useful(rewards) == teaches


def test_a_domain_lacks_what_its_useful_groups_leave_of_its_quota() -> None:
    groups = [("math", True), ("math", False), ("code", True), ("code", True), ("code", True)]

    assert lacking({"math": 3, "code": 2, "general": 1, "agent": 0}, groups) == {"math": 2, "general": 1}


def test_useful_groups_come_first_and_useless_ones_fill_up_by_place() -> None:
    groups = [
        (0, "math", False),
        (1, "math", False),
        (2, "code", True),
        (3, "math", True),
        (4, "math", True),
        (5, "code", True),
    ]

    assert choose(groups, {"math": 3, "code": 1}) == [0, 2, 3, 4]


def test_a_domain_with_too_few_groups_gives_all_it_has() -> None:
    assert choose([(0, "math", False), (1, "code", True)], {"math": 3, "code": 0}) == [0]


groups_of_a_round = st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=12)


@given(groups_of_a_round, st.randoms(), st.integers(0, 5), st.integers(0, 5))
def test_the_choice_does_not_depend_on_the_order_of_arrival(
    groups: list[tuple[str, bool]], random: object, first: int, second: int
) -> None:
    placed = [(place, domain, teaches) for place, (domain, teaches) in enumerate(groups)]
    arrived = list(placed)
    random.shuffle(arrived)  # type: ignore[attr-defined]

    assert choose(arrived, {"a": first, "b": second}) == choose(placed, {"a": first, "b": second})


@given(groups_of_a_round, st.integers(0, 5), st.integers(0, 5))
def test_a_useful_group_is_left_out_only_when_its_quota_is_full_of_useful_ones(
    groups: list[tuple[str, bool]], first: int, second: int
) -> None:
    quota = {"a": first, "b": second}
    chosen = choose([(place, domain, teaches) for place, (domain, teaches) in enumerate(groups)], quota)

    found = Counter(groups[place] for place in chosen)
    for domain, due in quota.items():
        there = Counter(groups)
        assert found[domain, True] == min(due, there[domain, True])
        assert found[domain, False] == min(due - found[domain, True], there[domain, False])
