"""The pure functions under the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import EVALUATION, LAUNCH

from qwq_rl.report.bars import micro_score
from qwq_rl.report.charts import UNIT, Frame, Point, Series, fitted, line_chart, plain_axis, round_ticks, time_line
from qwq_rl.report.load import load_run
from qwq_rl.report.markup import data_block, duration, number, short, signed
from qwq_rl.report.rollouts import choose_groups, clipped, outcome, sample_stage
from qwq_rl.report.timing import jobs_of, wall_parts
from qwq_rl.report.training import smooth, thinned
from qwq_rl.report.verdict import sentences


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123, "+0.12"), (-0.123, "−0.12"), (-0.001, "0.00"), (None, "–"), (float("nan"), "–")],
)
def test_differences_are_signed_unless_they_vanish(value: float | None, text: str) -> None:
    assert signed(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.00042, "4.2e-4"), (12345, "12.3k"), (-0.5, "−0.5"), (100, "100"), (2.5e6, "2.5M")]
)
def test_axis_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_a_value_that_rounds_to_zero_has_no_minus() -> None:
    assert number(-0.001) == "0.00"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (8.44, "8.4 s"),
        (59.4, "59 s"),
        (59.7, "1 min 00 s"),
        (59.99, "1 min 00 s"),
        (252, "4 min 12 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_carry_over(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_ticks_are_round_and_enclose_the_range() -> None:
    assert round_ticks(0.13, 0.94, 4) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert round_ticks(5.0, 5.0)[0] < 5.0 < round_ticks(5.0, 5.0)[-1]


def test_data_cannot_leave_its_block() -> None:
    text = "</script><!-- \u2028 \ud800"
    block = data_block([text])
    assert block.count("<") == 2
    assert json.loads(block.removeprefix('<script type="application/json">').removesuffix("</script>")) == [text]
    block.encode()


def test_smoothing_keeps_a_straight_line_and_its_ends() -> None:
    values = [float(value) for value in range(120)]
    assert smooth(values) == pytest.approx(values)


def test_thinning_keeps_the_first_and_the_last() -> None:
    kept = thinned(1000, 40)
    assert (kept[0], kept[-1], len(kept)) == (0, 999, 40)
    assert thinned(3, 40) == [0, 1, 2]


def test_points_are_drawn_where_their_values_say() -> None:
    frame = Frame(100, 100, left=0, right=0, top=0, bottom=0)
    chart = line_chart([Series("a", 0, (Point(0, 0, "x"), Point(1, 1, "y")))], plain_axis(1, ""), UNIT, frame, "name")
    assert 'd="M0 100L100 0"' in chart


def test_a_vertical_axis_starts_at_zero_unless_that_is_far() -> None:
    assert fitted([0.2, 0.9]).low == 0.0
    assert fitted([9.0, 9.5]).low >= 8.5


def test_stages_are_equally_wide_over_updates_and_to_scale_over_time(run: Path) -> None:
    spans = {clock: time_line([load_run(run)], clock).spans for clock in ("updates", "cpu")}
    assert [span.stage for span in spans["updates"]] == ["0_cold_start", "1_math_code", "2_general"]
    assert [span.end - span.start for span in spans["updates"]] == pytest.approx([1 / 3] * 3)
    widths = [(span.end - span.start) / span.seconds for span in spans["cpu"]]
    assert widths == pytest.approx([widths[0]] * 3)


def test_a_point_lies_at_its_update_within_its_stage(run: Path) -> None:
    line = time_line([load_run(run)], "updates")
    assert line.place("1_math_code", {"update": 5}) == pytest.approx(0.5)
    assert line.place("1_control", {"update": 5}) is None


def test_the_control_is_recognised_without_a_summary(run: Path) -> None:
    whole = load_run(run)
    assert whole.control is not None
    assert (whole.control.name, whole.control_of) == ("1_control", "1_math_code")
    assert [stage.name for stage in whole.line] == ["0_cold_start", "1_math_code", "2_general"]


def test_the_parts_of_a_stage_add_up_to_the_time_of_its_process(run: Path) -> None:
    whole = load_run(run)
    for stage in whole.stages:
        process = stage.entry["finished"] - stage.entry["started"]
        assert sum(wall_parts(whole, stage).values()) == pytest.approx(process, abs=0.01), stage.name


def test_evaluation_is_the_time_in_which_the_clock_stood_still(run: Path) -> None:
    whole = load_run(run)
    stage = whole.stage("1_math_code")
    assert stage is not None
    parts = wall_parts(whole, stage)
    assert parts["generate"] == pytest.approx(0.21 * stage.updates)
    assert parts["evaluation"] == pytest.approx(EVALUATION * len(stage.evaluations), abs=0.05)
    assert parts["start and end"] == pytest.approx(LAUNCH + 9.5 + 0.4 + 0.6, abs=0.1)


def test_a_pause_without_an_evaluation_is_no_part_of_a_stage(run: Path) -> None:
    whole = load_run(run)
    stage = whole.stage("1_math_code")
    assert stage is not None
    later = tuple({**line, "time": line["time"] + 3600 * (line["update"] > 5)} for line in stage.metrics)
    alone = replace(whole, pipeline={})
    before = wall_parts(alone, replace(stage, evaluations=()))
    assert wall_parts(alone, replace(stage, evaluations=(), metrics=later)) == pytest.approx(before)


def test_jobs_start_at_zero_in_order_and_restarts_share_a_row(run: Path) -> None:
    whole = load_run(run)
    jobs = jobs_of(whole)
    starts = [job.spans[0].started for job in jobs]
    assert starts == sorted(starts)
    assert (starts[0], len(jobs)) == (0.0, 9)
    again = [*whole.pipeline["jobs"], {**whole.pipeline["jobs"][0], "status": 137}]
    rows = jobs_of(replace(whole, pipeline={**whole.pipeline, "jobs": again}))
    assert [span.well for span in rows[0].spans] == [True, False]


def test_evaluations_lie_on_the_clock_of_the_training(run: Path) -> None:
    stage = load_run(run).stage("1_math_code")
    assert stage is not None
    clock = {line["update"]: line["cpu_seconds"] for line in stage.metrics}
    assert [line["cpu_seconds"] for line in stage.evaluations[1:]] == [
        clock[line["update"]] for line in stage.evaluations[1:]
    ]


def test_the_verdict_states_gains_and_the_control(run: Path) -> None:
    whole = load_run(run)
    first, second, control = sentences(whole)
    area = whole.summary["stages"]["1_math_code"]["sets"]["tiny/final"]["domains"]["math"]["sampled"]["mean"]
    assert first.startswith("Reinforcement learning (math code) lifted pass@1 on math from <b>")
    assert f"to <b>{area:.2f}</b>" in first
    assert second.startswith("Then reinforcement learning (general) lifted pass@1 on general")
    assert "ahead on math" in control


def test_a_loss_is_called_a_loss(run: Path) -> None:
    whole = load_run(run)
    summary = json.loads(json.dumps(whole.summary))
    lost = {"difference": {"mean": -0.2, "low": -0.25, "high": -0.15}, "lower95": -0.24, "prompts": 300}
    summary["stages"]["2_general"]["against"]["sets"]["tiny/final"]["domains"]["math"] = lost
    second = sentences(replace(whole, summary=summary))[1]
    assert "lowered math (<b>−0.20</b>, no lower than −0.24)" in second


def test_a_run_that_a_gate_stopped_says_so_first(run: Path) -> None:
    whole = load_run(run)
    gate = {"measure": "pass_at_k", "scope": "code/lists", "value": 0.0, "above": 0.0, "passed": False}
    stopped = replace(whole.stages[0], status="failed")
    pipeline = {"stages": {stopped.name: {"gates": [gate]}}}
    first = sentences(replace(whole, stages=(stopped,), pipeline=pipeline))[0]
    said = "its gates found pass_at_k of code/lists <b>0.00</b>, not above 0.00"
    assert first == f"The run stopped at cold start: {said}."


def verdict(score: float | None) -> dict[str, object]:
    return {"v": {"score": score, "status": "x"}}


@pytest.mark.parametrize(
    ("rollout", "word"),
    [
        ({"reward": 1.0, "verdicts": verdict(1.0), "gates": {"finished": True}}, "correct"),
        ({"reward": 0.0, "verdicts": verdict(1.0), "gates": {"finished": False}}, "wrong"),
        ({"reward": 0.4, "verdicts": verdict(0.4), "gates": {}}, "wrong"),
        ({"reward": None, "verdicts": verdict(1.0), "gates": {}}, "fault"),
        ({"reward": 0.0, "verdicts": verdict(None), "gates": {}}, "fault"),
        ({"reward": 0.6, "verdicts": {}, "gates": {"finished": True}}, "open"),
    ],
)
def test_a_fault_is_never_shown_as_a_wrong_answer(rollout: dict[str, object], word: str) -> None:
    assert outcome(rollout) == word


def test_groups_are_shown_whole_and_by_turns_over_domains() -> None:
    groups = {("math" if index < 8 else "code", index): [0] * 8 for index in range(16)}
    chosen = choose_groups(groups, 3, 24)
    assert len(chosen) == 3
    assert {domain for domain, _ in chosen} == {"math", "code"}
    assert choose_groups({("math", 0): [0] * 64}, 3, 24) == [("math", 0)]


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    text = clipped("a" * 5000 + "b" * 5000, 300)
    assert text.startswith("a" * 200)
    assert text.endswith("b" * 100)
    assert "[… 9700 characters left out …]" in text


def test_rollouts_stay_within_their_budget(run: Path) -> None:
    stage = load_run(run).stage("2_general")
    assert stage is not None
    whole = len(data_block(sample_stage(stage, 10**7)).encode())
    half = sample_stage(stage, whole // 2)
    assert len(data_block(half).encode()) <= whole // 2 + 200
    assert [half["updates"][0]["u"], half["updates"][-1]["u"]] == [1, 6]


def test_an_interval_that_begins_at_0_is_drawn_from_there() -> None:
    assert '<path class="bar" d="M0 6H96"/>' in micro_score({"mean": 0.5, "low": 0.0, "high": 1.0}, 1)
