from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq_rl.data.order import mix
from qwq_rl.data.prompt_source import Prompt, PromptSource, Sampling
from qwq_rl.data.row import Row
from qwq_rl.errors import RunStateError

Sources = list[tuple[list[Row], float]]
both = pytest.mark.parametrize("sampling", get_args(Sampling))


def rows_of(source: str, domains: str, family: str | None = None) -> list[Row]:
    """One row a letter, whose domain the letter is."""
    return [
        {"id": f"{source}-{at}", "domain": domain, "family": family and f"{family}{at % 2}"}
        for at, domain in enumerate(domains)
    ]


def ids(drawn: Sequence[Prompt]) -> list[str]:
    return [one.row["id"] for one in drawn]


shapes = st.lists(
    st.tuples(st.text("ab", min_size=1, max_size=7), st.sampled_from([0.0, 0.3, 1, 2.5])), min_size=1, max_size=4
).filter(lambda shape: any(weight for _, weight in shape))


def built(shape: Sequence[tuple[str, float]]) -> Sources:
    return [(rows_of(str(at), domains, "f"), weight) for at, (domains, weight) in enumerate(shape)]


# --- draws ------------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(shapes, st.integers(0, 3), st.integers(1, 9), st.integers(1, 6))
def test_uniform_without_refills_is_the_order_of_mix(
    shape: list[tuple[str, float]], seed: int, prompts: int, updates: int
) -> None:
    sources = built(shape)
    source = PromptSource(sources, seed, "uniform")
    rounds = [source.draw(update, prompts) for update in range(1, updates + 1)]

    assert [one.row for drawn in rounds for one in drawn] == mix(sources, seed, prompts, updates)
    assert all([one.place for one in drawn] == list(range(prompts)) for drawn in rounds)
    assert all(one.row in sources[one.source][0] for drawn in rounds for one in drawn)


@settings(max_examples=50, deadline=None)
@given(shapes, st.integers(1, 9), st.integers(1, 4))
def test_adaptive_gives_each_place_to_the_source_that_uniform_does(
    shape: list[tuple[str, float]], prompts: int, updates: int
) -> None:
    uniform, adaptive = (PromptSource(built(shape), 0, sampling) for sampling in ("uniform", "adaptive"))

    for update in range(updates):
        drawn = [source.draw(update, prompts) for source in (uniform, adaptive)]
        assert [one.source for one in drawn[0]] == [one.source for one in drawn[1]]


def test_adaptive_repeats_a_row_within_a_round_only_when_its_source_has_no_others() -> None:
    source = PromptSource([(rows_of("x", "aaaa"), 1.0)], 0, "adaptive")

    assert set(Counter(ids(source.draw(1, 4))).values()) == {1}
    assert sorted(Counter(ids(source.draw(2, 10))).values()) == [2, 2, 3, 3]


def test_adaptive_draws_differ_between_rounds_and_seeds_and_not_between_runs() -> None:
    def drawn(seed: int, update: int) -> list[str]:
        return ids(PromptSource([(rows_of("x", "a" * 50), 1.0)], seed, "adaptive").draw(update, 10))

    assert drawn(0, 1) == drawn(0, 1)
    assert drawn(0, 1) != drawn(0, 2)
    assert drawn(0, 1) != drawn(1, 1)


def test_adaptive_prefers_what_is_solved_at_times_and_still_retries_the_rest() -> None:
    source = PromptSource([(rows_of("x", "a" * 30), 1.0)], 0, "adaptive")
    rows = sorted((one.row for one in source.draw(0, 30)), key=lambda row: int(row["id"][2:]))
    source.learn([(row, (0.0, 0.5, 1.0)[at // 10]) for at, row in enumerate(rows)])

    seen = Counter(one.row["id"] for update in range(1, 2001) for one in source.draw(update, 1))
    unsolved, at_times, solved = (sum(seen[row["id"]] for row in rows[at : at + 10]) for at in (0, 10, 20))

    assert at_times / 2000 == pytest.approx(0.25 / 0.29, abs=0.03)
    assert unsolved / 2000 == pytest.approx(0.02 / 0.29, abs=0.02)
    assert solved / 2000 == pytest.approx(0.02 / 0.29, abs=0.02)


def test_adaptive_judges_a_row_that_was_never_tried_by_its_family() -> None:
    source = PromptSource([(rows_of("x", "a" * 40, "f"), 1.0)], 0, "adaptive")
    hopeless = [row for row in rows_of("x", "a" * 40, "f") if row["family"] == "f0"][:10]
    source.learn([(row, 0.0) for row in hopeless * 10])

    seen = Counter(one.row["family"] for update in range(1000) for one in source.draw(update, 1))

    assert seen["f1"] / 1000 == pytest.approx(20 * 0.25 / (20 * 0.25 + 20 * 0.02), abs=0.03)


PRINT = """
from tests.data.test_prompt_source import *
source = PromptSource([(rows_of("x", "abab" * 9, "f"), 1.0), (rows_of("y", "abc" * 9, "g"), 2.0)], 3, "adaptive")
first = source.draw(1, 6) + source.refill({"b": 2, "a": 3})
source.learn([(one.row, one.place / 10) for one in first])
print(json.dumps(ids(first + source.draw(2, 6) + source.refill({"c": 1, "a": 2}))))
"""


@pytest.mark.slow
def test_the_draws_do_not_depend_on_the_hashes_of_strings() -> None:
    said = {
        subprocess.run(
            [sys.executable, "-c", PRINT],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }

    assert len(said) == 1


# --- refills ----------------------------------------------------------------------------------------------------------


@both
@settings(max_examples=100, deadline=None)
@given(
    shape=shapes,
    prompts=st.integers(1, 6),
    refills=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5)), max_size=4),
)
def test_a_refill_is_of_the_domain_and_new_to_the_round_while_there_are_others(
    sampling: Sampling, shape: list[tuple[str, float]], prompts: int, refills: list[tuple[str, int]]
) -> None:
    sources = built(shape)
    there = Counter(row["domain"] for rows, weight in sources if weight for row in rows)
    source = PromptSource(sources, 0, sampling)
    drawn = source.draw(1, prompts)
    for domain, count in refills:
        if domain not in there:
            continue
        more = source.refill({domain: count})
        assert [one.row["domain"] for one in more] == [domain] * count
        before = {one.row["id"] for one in drawn if one.row["domain"] == domain}
        assert len({*ids(more)} - before) == min(count, there[domain] - len(before))
        drawn += more

    assert [one.place for one in drawn] == list(range(len(drawn)))
    assert all(one.row in sources[one.source][0] for one in drawn)


def test_a_row_that_a_refill_took_is_passed_over_in_its_epoch() -> None:
    source = PromptSource([(rows_of("x", "ab" * 6), 1.0)], 0, "uniform")
    drawn = source.draw(1, 4)
    drawn += source.refill({"a": 1})
    drawn += source.draw(2, 3) + source.refill({"b": 1})
    drawn += source.draw(3, 3)

    assert len(set(ids(drawn))) == 12
    assert len(set(ids(source.draw(4, 12)))) == 12


def test_refills_of_later_rounds_take_rows_that_no_refill_took_before() -> None:
    source = PromptSource([(rows_of("x", "a" * 14 + "b" * 10), 1.0)], 0, "uniform")
    drawn = [one for update in range(1, 4) for one in source.draw(update, 1) + source.refill({"b": 2})]

    assert len(set(ids(drawn))) == 9


def test_a_refill_goes_into_the_next_epoch_where_this_one_has_no_more_of_the_domain() -> None:
    rows = rows_of("x", "ab" + "b" * 10 + "a")
    source = PromptSource([(rows, 1.0)], 0, "uniform")
    taken = [source.draw(update, 1) + source.refill({"a": 2}) for update in range(1, 3)]
    rest = [one for update in range(3, 30) for one in source.draw(update, 1)]

    everything = Counter(ids([one for drawn in taken for one in drawn] + rest))
    assert all(set(ids(drawn)) >= {"x-0", "x-12"} for drawn in taken)
    assert max(everything.values()) - min(everything.values()) <= 1


@both
def test_refills_share_out_by_weight_and_part_of_the_domain_over_all_rounds(sampling: Sampling) -> None:
    sources: Sources = [(rows_of("x", "a" * 40), 1.0), (rows_of("y", "ab" * 20), 6.0), (rows_of("z", "a" * 9), 0.0)]
    source = PromptSource(sources, 0, sampling)
    given_by: Counter[int] = Counter()
    for update in range(40):
        source.draw(update, 1)
        given_by.update(one.source for one in source.refill({"a": 1}))

    assert given_by == {0: 10, 1: 30}


@both
def test_a_source_that_has_no_more_leaves_its_part_to_the_others(sampling: Sampling) -> None:
    source = PromptSource([(rows_of("x", "a"), 100.0), (rows_of("y", "aaaaa"), 1.0)], 0, sampling)
    drawn = source.draw(1, 1)

    assert sorted(ids(drawn + source.refill({"a": 5}))) == ["x-0", "y-0", "y-1", "y-2", "y-3", "y-4"]


@both
def test_a_row_that_two_sources_have_comes_once_in_a_refill(sampling: Sampling) -> None:
    source = PromptSource([(rows_of("x", "aaaa"), 1.0), (copy.deepcopy(rows_of("x", "aaaa")), 1.0)], 0, sampling)
    source.draw(1, 1)

    assert len(set(ids(source.refill({"a": 3})))) == 3


@both
def test_the_order_of_the_domains_does_not_matter(sampling: Sampling) -> None:
    drawn = []
    for lacking in ({"a": 2, "b": 3}, {"b": 3, "a": 2}):
        source = PromptSource([(rows_of("x", "ab" * 20), 1.0)], 0, sampling)
        drawn.append(ids(source.draw(1, 2) + source.refill(lacking)))

    assert drawn[0] == drawn[1]


def test_a_domain_that_no_source_with_weight_has_is_refused() -> None:
    source = PromptSource([(rows_of("x", "a"), 1.0), (rows_of("y", "b"), 0.0)], 0, "uniform")
    source.draw(1, 1)

    for domain in ("b", "c"):
        with pytest.raises(ValueError, match=f"domain '{domain}'"):
            source.refill({domain: 1})


# --- learning, and going on -------------------------------------------------------------------------------------------


def test_what_cannot_be_learned_is_refused_and_nothing_of_it_is_kept() -> None:
    rows = rows_of("x", "aaa")
    source = PromptSource([(rows, 1.0)], 0, "adaptive")
    for outcomes in ([(rows[0], 0.5), (rows[1], 1.5)], [(rows[0], float("nan"))], [(rows[0], 1.0), ({"id": "?"}, 1.0)]):
        with pytest.raises(ValueError, match=r"between 0 and 1|no source has"):
            source.learn(outcomes)

    assert source.state_dict()["successes"]["problems"] == []


def test_rows_of_two_sources_with_the_same_id_are_told_apart() -> None:
    first, second = [{"id": "1", "domain": "a"}], [{"id": "1", "domain": "b"}]
    source = PromptSource([(first, 1.0), (second, 1.0)], 0, "adaptive")
    source.learn([({"id": "1", "domain": "b"}, 1.0)])

    assert source.state_dict()["successes"]["problems"] == [1]


actions = st.lists(
    st.one_of(
        st.tuples(st.just("draw"), st.integers(1, 6)),
        st.tuples(st.just("refill"), st.dictionaries(st.sampled_from("ab"), st.integers(0, 4))),
        st.tuples(st.just("learn"), st.lists(st.sampled_from([0.0, 0.3, 1.0]), max_size=6)),
        st.tuples(st.just("resume"), st.none()),
    ),
    max_size=20,
)


@both
@settings(max_examples=100, deadline=None)
@given(shape=shapes, seed=st.integers(0, 2), actions=actions)
def test_a_resumed_source_goes_on_exactly(
    sampling: Sampling, shape: list[tuple[str, float]], seed: int, actions: list[tuple[str, object]]
) -> None:
    domains = {row["domain"] for rows, weight in built(shape) if weight for row in rows}
    straight, resumed = (PromptSource(built(shape), seed, sampling) for _ in range(2))
    drawn: list[Prompt] = []
    for update, (action, argument) in enumerate(actions):
        if action == "resume":
            state = json.loads(json.dumps(resumed.state_dict()))
            resumed = PromptSource(built(shape), seed, sampling)
            resumed.load_state_dict(state)
        elif action == "learn":
            outcomes = [(one.row, success) for one, success in zip(drawn, argument, strict=False)]  # type: ignore[call-overload]
            straight.learn(outcomes)
            resumed.learn(copy.deepcopy(outcomes))
        elif action == "draw":
            drawn = straight.draw(update, argument)  # type: ignore[arg-type]
            assert resumed.draw(update, argument) == drawn  # type: ignore[arg-type]
        else:
            lacking = {domain: count for domain, count in argument.items() if domain in domains}  # type: ignore[attr-defined]
            more = straight.refill(lacking)
            assert resumed.refill(lacking) == more
            drawn = drawn + more

    assert resumed.state_dict() == straight.state_dict()


def test_the_state_replaces_all_that_was_there() -> None:
    one, other = (PromptSource([(rows_of("x", "ab" * 9), 1.0)], 0, "uniform") for _ in range(2))
    state = one.state_dict()
    other.learn([(drawn.row, 1.0) for drawn in other.draw(1, 5) + other.refill({"a": 2})])
    other.load_state_dict(state)

    assert other.state_dict() == state
    assert other.draw(1, 20) == one.draw(1, 20)


@pytest.mark.parametrize("domains", ["aab", "aba", "abaa"])
def test_a_state_of_other_rows_is_refused_and_changes_nothing(domains: str) -> None:
    source, before = (PromptSource([(rows_of("x", letters), 1.0)], 0, "uniform") for letters in (domains, "abb"))
    before.draw(1, 2)
    untouched = source.state_dict()

    with pytest.raises(RunStateError, match="other training rows"):
        source.load_state_dict(before.state_dict())
    assert source.state_dict() == untouched


@both
def test_the_state_is_of_the_size_of_what_was_tried(sampling: Sampling) -> None:
    source = PromptSource([(rows_of("x", "ab" * 10_000), 1.0)], 0, sampling)
    source.learn([(drawn.row, 0.5) for drawn in source.draw(1, 10) + source.refill({"a": 3})])

    assert len(json.dumps(source.state_dict())) < 2000
