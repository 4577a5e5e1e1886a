"""When a stage skips an update, tells of something, or stops."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from qwq_rl.config.blocks import LimitsBlock
from qwq_rl.rollouts.rollout import summarise_round
from qwq_rl.training.safeguards import ALARM, WINDOW, Event, LimitReached, Safeguards

Line = dict[str, Any]
NAN, INFINITE = math.nan, math.inf


def line(update: int, reward: float | None, domain: str = "math", logprob: float | None = -0.5) -> Line:
    known = None if logprob is None else [logprob, logprob]
    segment = {"role": "model", "text": r"hm </think> \boxed{9}", "token_ids": [1, 2], "logprobs": known}
    status = "fault" if reward is None else "correct" if reward else "wrong"
    reason = "the checker's disk is gone" if reward is None else "9 is not the reference 4"
    verdict: Line = {"score": reward, "status": status, "reason": reason, "answer": "9", "metrics": {}, "seconds": 0.0}
    judged = {"reward": reward, "score": reward, "verdicts": {"math": verdict}, "gates": {"finished": True}}
    placed = {"row": "sum-1", "domain": domain, "family": domain, "group": 0, "sample": 0, "update": update}
    return {**placed, **judged, "prompt": "2 + 2?", "segments": [segment], "finish": "stop"}


def look(safeguards: Safeguards, update: int, *rewards: float | None, **rest: Any) -> list[Event]:
    return see(safeguards, [line(update, reward, **rest) for reward in rewards])


def see(safeguards: Safeguards, lines: list[Line]) -> list[Event]:
    return safeguards.after_round(summarise_round(lines), lines, {"sum-1": {"id": "sum-1", "reference": "4"}})


def resumed(safeguards: Safeguards, limits: LimitsBlock) -> Safeguards:
    """As a process that comes after a kill finds it: through a file."""
    again = Safeguards(limits)
    again.load_state_dict(json.loads(json.dumps(safeguards.state_dict())))
    return again


def test_a_healthy_stage_is_left_alone() -> None:
    safeguards = Safeguards(LimitsBlock(gradient_norm=10.0, entropy=0.1, kl=1.0))

    for update in range(1, 40):
        assert look(safeguards, update, 0.0, 1.0) == []
        assert safeguards.before_step(update, 0.4, 0.01) == "step"
        assert safeguards.after_update({"update": update, "kl": 0.02, "gap": {"mean": 1e-3, "max": 0.4}}) == []

    assert safeguards.skipped == 0


def test_by_default_only_what_can_never_be_healthy_stops_a_stage() -> None:
    safeguards = Safeguards(LimitsBlock())

    for update in range(1, 40):
        look(safeguards, update, 0.0, 1.0, logprob=-1e-9)
        assert safeguards.before_step(update, 1e9, 1e9) == "step"
        assert safeguards.after_update({"update": update, "kl": 1e9}) == []


def test_too_much_that_could_not_be_judged_stops_the_stage() -> None:
    safeguards = Safeguards(LimitsBlock(fault_share=0.25))
    look(safeguards, 1, 1.0, 0.0, 0.0, None)

    with pytest.raises(LimitReached) as stopped:
        look(safeguards, 2, 1.0, 0.0, None, None)

    assert str(stopped.value) == (
        "update 2: 2 of 4 responses could not be judged, more than limits.fault_share 0.25. "
        "The verifiers say: the checker's disk is gone"
    )
    assert stopped.value.exit_status == 4


def test_first_rounds_without_a_reward_stop_the_stage_with_a_diagnosis() -> None:
    safeguards = Safeguards(LimitsBlock(zero_rounds=3))
    assert look(safeguards, 1, 0.0, 0.0) == look(safeguards, 2, 0.0, 0.0) == []

    with pytest.raises(LimitReached) as stopped:
        look(safeguards, 3, 0.0, 0.0)

    said = str(stopped.value)
    assert said.startswith(
        "update 3: every reward has been 0 since the stage began, in 3 rounds; limits.zero_rounds is 3"
    )
    assert "`9`, and the reference is `4` (row sum-1)" in said
    assert "Most likely: the answers are read and are wrong" in said


@pytest.mark.parametrize("limit", [2, None])
def test_a_stage_that_once_had_a_reward_may_lose_it(limit: int | None) -> None:
    safeguards = Safeguards(LimitsBlock(zero_rounds=limit))
    look(safeguards, 1, 0.0, 0.1 if limit else 0.0)

    for update in range(2, 9):
        assert look(safeguards, update, 0.0, 0.0) == []


def test_a_round_of_which_nothing_could_be_judged_counts_neither_way() -> None:
    safeguards = Safeguards(LimitsBlock(zero_rounds=2, fault_share=1.0))
    look(safeguards, 1, 0.0)
    look(safeguards, 2, None)

    with pytest.raises(LimitReached, match="in 2 rounds"):
        look(safeguards, 3, 0.0, None)


def test_a_domain_without_a_reward_is_told_of_once() -> None:
    safeguards = Safeguards(LimitsBlock(zero_rounds=2))
    told = [see(safeguards, [line(update, 1.0), line(update, 0.0, "code")]) for update in (1, 2, 3, 4)]

    assert [len(events) for events in told] == [0, 1, 0, 0]
    event = told[1][0]
    assert (event.update, event.kind, event.figures) == (2, "zero_rewards", {"rounds": 2, "responses": 1})
    assert event.text.startswith("every reward of the domain code has been 0 in its first 2 rounds.\nWhat is seen in 1")


@pytest.mark.parametrize(
    ("norm", "loss", "why"),
    [
        (NAN, 0.1, "the norm of its gradient is nan"),
        (INFINITE, 0.1, "the norm of its gradient is inf"),
        (0.1, NAN, "its loss is nan"),
        (0.1, -INFINITE, "its loss is -inf"),
        (10.5, 0.1, "the norm of its gradient is 10.5, above limits.gradient_norm 10"),
    ],
)
def test_an_update_that_would_do_harm_is_skipped_and_told_of(norm: float, loss: float, why: str) -> None:
    safeguards = Safeguards(LimitsBlock(gradient_norm=10.0))

    assert safeguards.before_step(7, norm, loss) == "skip"

    (event,) = safeguards.after_update({"update": 7})
    assert (event.update, event.kind, event.text) == (7, "skipped", f"update 7 is skipped: {why}")
    assert all(math.isfinite(value) for value in event.line()["figures"].values())
    assert safeguards.after_update({"update": 8}) == []
    assert safeguards.skipped == 1


def test_a_norm_at_its_limit_is_applied() -> None:
    assert Safeguards(LimitsBlock(gradient_norm=10.0)).before_step(1, 10.0, 0.0) == "step"


def test_too_many_skipped_in_a_row_stop_the_stage() -> None:
    safeguards = Safeguards(LimitsBlock(gradient_norm=1.0, skipped_updates=2))
    norms = [2.0, 2.0, 0.5, 3.0, 3.0]
    assert [safeguards.before_step(update, norm, 0.0) for update, norm in enumerate(norms)] == [
        "skip", "skip", "step", "skip", "skip",
    ]  # fmt: skip

    with pytest.raises(LimitReached) as stopped:
        safeguards.before_step(5, 4.0, 0.0)

    said = str(stopped.value)
    assert said.startswith(
        "update 5 is skipped: the norm of its gradient is 4, above limits.gradient_norm 1. "
        "Since update 3 none was applied, 3 in a row, more than limits.skipped_updates 2. "
    )
    assert "a smaller update.lr" in said
    assert safeguards.skipped == 5


def test_a_loss_that_is_no_number_may_stop_at_once() -> None:
    with pytest.raises(LimitReached, match=r"Since update 4 none was applied, 1 in a row, .* are no numbers any more"):
        Safeguards(LimitsBlock(skipped_updates=0)).before_step(4, NAN, NAN)


def test_an_entropy_that_stays_low_stops_the_stage() -> None:
    safeguards = Safeguards(LimitsBlock(entropy=0.2))
    for update in range(1, WINDOW + 2):
        look(safeguards, update, 0.0, 1.0, logprob=-1.0)
    for update in range(WINDOW + 2, WINDOW + 10):
        look(safeguards, update, 0.0, 1.0, logprob=-0.1)

    with pytest.raises(LimitReached) as stopped:
        look(safeguards, WINDOW + 10, 0.0, 1.0, logprob=-0.1)

    # The mean of ten falls below 0.2 with the ninth that is low.
    assert str(stopped.value).startswith(
        f"update {WINDOW + 10}: the policy's entropy is 0.19 nats a token over the 10 rounds since update 11, where it "
        "was 1: below limits.entropy 0.2."
    )


def test_few_rounds_say_nothing_of_the_entropy() -> None:
    safeguards = Safeguards(LimitsBlock(entropy=0.2))
    for update in range(1, WINDOW):
        look(safeguards, update, 0.0, 1.0, logprob=-0.1)

    with pytest.raises(LimitReached):
        look(safeguards, WINDOW, 0.0, 1.0, logprob=-0.1)


def test_an_entropy_that_nobody_can_tell_is_no_low_one() -> None:
    assert look(Safeguards(LimitsBlock()), 1, 0.0, 1.0, logprob=None) == []

    with pytest.raises(LimitReached, match="the sampler gives no log-probabilities"):
        look(Safeguards(LimitsBlock(entropy=0.2)), 1, 0.0, 1.0, logprob=None)


@pytest.mark.parametrize("kl", [1.5, NAN])
def test_a_policy_that_runs_away_stops_the_stage(kl: float) -> None:
    safeguards = Safeguards(LimitsBlock(kl=1.0))
    assert safeguards.after_update({"update": 1, "kl": 1.0}) == safeguards.after_update({"update": 2, "kl": None}) == []

    with pytest.raises(LimitReached, match=rf"update 3: the KL divergence to the reference is {kl} .* limits.kl 1: "):
        safeguards.after_update({"update": 3, "kl": kl})


def test_a_gap_is_an_alarm_when_it_begins_and_a_stop_when_it_is_too_large() -> None:
    safeguards = Safeguards(LimitsBlock(gap=0.5))
    means = [0.01, 0.5 * ALARM, 0.06, 0.2, 0.01, 0.07]

    told = [safeguards.after_update({"update": at, "gap": {"mean": mean, "max": 3.0}}) for at, mean in enumerate(means)]

    assert [[event.kind for event in events] for events in told] == [[], [], ["gap"], [], [], ["gap"]]
    assert told[2][0].text.startswith(
        "the log-probabilities of sampler and trainer differ by 0.06 nats a token in the mean (at most 3); "
        "above limits.gap 0.5 the stage stops."
    )
    assert told[2][0].line()["figures"] == {"mean": 0.06, "max": 3.0}
    for bad in (0.51, NAN):
        with pytest.raises(LimitReached, match=r"above limits.gap 0.5: .* did not get the newest weights"):
            safeguards.after_update({"update": 9, "gap": {"mean": bad, "max": 3.0}})


def test_a_gap_that_nobody_measured_is_none() -> None:
    assert Safeguards(LimitsBlock()).after_update({"update": 1, "gap": None}) == []
    assert Safeguards(LimitsBlock(gap=None)).after_update({"update": 1, "gap": {"mean": 9.0, "max": 9.0}}) == []


def test_a_resumed_stage_goes_on_counting_where_it_was() -> None:
    limits = LimitsBlock(zero_rounds=8, gradient_norm=1.0, skipped_updates=4, entropy=0.2, gap=0.5)

    def go(interrupted: bool) -> list[str]:
        safeguards, said = Safeguards(limits), []
        for update in range(1, 15):
            try:
                events = see(
                    safeguards, [line(update, 0.0, "code", -0.1), line(update, float(update > 6), logprob=-0.1)]
                )
                events += safeguards.after_update({"update": update, "gap": {"mean": 0.1 * (update % 3), "max": 1.0}})
                step = safeguards.before_step(update, 2.0 if update % 5 else 0.5, 0.0)
                said += [step, *(event.text for event in events)]
            except LimitReached as stopped:
                said.append(str(stopped))
            safeguards = resumed(safeguards, limits) if interrupted else safeguards
        return [*said, str(safeguards.skipped)]

    undisturbed = go(interrupted=False)
    assert go(interrupted=True) == undisturbed
    assert any("of the domain code has been 0 in its first 8" in text for text in undisturbed)
    assert any("below limits.entropy" in text for text in undisturbed)
    assert any("sampler and trainer differ" in text for text in undisturbed)
    assert any("is skipped: the norm of its gradient is 2" in text for text in undisturbed)
