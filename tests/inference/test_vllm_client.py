"""Our end of a vLLM server, against one of ours that speaks its wire and fails as real ones do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from vllm_stand_in import StandIn

from qwq_rl.data.tiny.model import build_model, build_tokenizer
from qwq_rl.inference import vllm_client
from qwq_rl.inference.local import generate
from qwq_rl.inference.sampler import Completion
from qwq_rl.inference.vllm_client import CompletionRequest, ServerLost, ServerUnfit, VllmServer
from qwq_rl.inference.vllm_http import answers

EOS = 2


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "start", seed=0)


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "newer", seed=1)


def saved(folder: Path, seed: int) -> Path:
    tokenizer = build_tokenizer()
    build_model(tokenizer, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_client, "_TICK_S", 0.02)
    monkeypatch.setattr(vllm_client, "REFUSED_S", 0.3)


@pytest.fixture
def stand_in(start: Path) -> Iterator[StandIn]:
    server = StandIn(start)
    yield server
    server.stop()


def client(stand_in: StandIn, folder: Path, timeout_s: float = 20.0) -> VllmServer:
    server = VllmServer(stand_in.url, timeout_s)
    server.load(folder)
    server.begin()
    return server


def ask(number: int = 0, **changes: Any) -> CompletionRequest:
    plain = {"samples": 2, "max_tokens": 6, "temperature": 0.8, "seed": 100 + 10 * number, "eos_token_id": EOS}
    return CompletionRequest([60, 61 + number, 62], **plain | changes)  # type: ignore[arg-type]


def expected(folder: Path, request: CompletionRequest) -> list[Completion]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return [
        generate(
            model, [request.prompt_ids], samples=1, max_tokens=request.max_tokens, temperature=request.temperature,
            eos_token_id=request.eos_token_id, pad_token_id=0, seed=request.seed + index,
        )[0][0]
        for index in range(request.samples)
    ]  # fmt: skip


def complete(server: VllmServer, request: CompletionRequest) -> list[Completion]:
    return server.complete(request, lambda: True)


# --- what it is for ---------------------------------------------------------------------------------------------------


def test_samples_come_in_order_with_their_log_probabilities(stand_in: StandIn, start: Path) -> None:
    ends = expected(start, ask())[0].token_ids[2]
    request = ask(samples=24, eos_token_id=ends)

    found = complete(client(stand_in, start), request)

    assert found == expected(start, request)
    assert {one.finish for one in found} == {"stop", "length"}


def test_new_weights_are_those_that_it_samples_from(stand_in: StandIn, start: Path, newer: Path) -> None:
    server = client(stand_in, start)
    before = complete(server, ask())

    server.load(newer)

    assert complete(server, ask()) == expected(newer, ask()) != before
    assert stand_in.loaded == [start, newer]


def test_what_was_cached_under_older_weights_is_forgotten(stand_in: StandIn, start: Path, newer: Path) -> None:
    server = client(stand_in, start)
    complete(server, ask())
    assert stand_in.cached == 1

    server.load(newer)

    assert stand_in.cached == 0


def test_many_requests_are_spread_over_servers_and_keep_their_order(start: Path) -> None:
    several = [StandIn(start), StandIn(start)]
    servers = [client(one, start) for one in several]
    requests = [ask(number) for number in range(10)]

    found = answers(servers, requests, 2, print)

    assert found == [expected(start, request)[:2] for request in requests]
    assert all(one.answered > 0 for one in several)
    for one in several:
        one.stop()


def test_long_work_is_spoken_of(stand_in: StandIn, start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwq_rl.inference.vllm_http._SAY_EVERY_S", -1.0)
    said: list[str] = []

    answers([client(stand_in, start)], [ask(number) for number in range(3)], 1, said.append)

    assert said
    assert "of 3 prompts of this process" in said[-1]


# --- faults -----------------------------------------------------------------------------------------------------------


def test_a_fault_of_the_server_is_asked_again(stand_in: StandIn, start: Path) -> None:
    server = client(stand_in, start)
    stand_in.faults = 3

    assert complete(server, ask()) == expected(start, ask())


def test_a_server_that_keeps_failing_is_lost(stand_in: StandIn, start: Path) -> None:
    server = client(stand_in, start)
    stand_in.faults = 99

    with pytest.raises(ServerLost, match=f"{stand_in.url} failed 4 times at one request .*illegal memory access"):
        complete(server, ask())


def test_a_server_that_dies_is_named_soon(start: Path) -> None:
    stand_in, other = StandIn(start), StandIn(start)
    servers = [client(one, start) for one in (stand_in, other)]
    stand_in.die_after, began = 2, time.monotonic()

    with pytest.raises(ServerLost, match=f"{stand_in.url} .* the same command then goes on from the last"):
        answers(servers, [ask(number) for number in range(40)], 1, print)

    assert time.monotonic() - began < 10
    other.stop()


def test_a_server_that_stands_still_is_lost_after_the_stated_time(stand_in: StandIn, start: Path) -> None:
    server = client(stand_in, start, timeout_s=0.4)
    stand_in.stands_still, began = True, time.monotonic()

    with pytest.raises(ServerLost, match=r"has made no progress for 0 s"):
        answers([server], [ask(0), ask(1)], 2, print)

    assert time.monotonic() - began < 5
    stand_in.stands_still = False


def test_a_slow_server_that_goes_on_is_waited_for(stand_in: StandIn, start: Path) -> None:
    """It is no standing still as long as others get their tokens, though one request waits longer than that."""
    server = client(stand_in, start, timeout_s=1.5)
    stand_in.stands_still, began = True, time.monotonic()

    def wanted() -> bool:
        stand_in._tokens += 1
        stand_in.stands_still = time.monotonic() - began < 3
        return True

    assert server.complete(ask(), wanted) == expected(start, ask())
    assert time.monotonic() - began > 3


def test_a_server_that_was_started_anew_is_not_believed(stand_in: StandIn, start: Path, newer: Path) -> None:
    """It answers as before, from the weights that it was started with."""
    server = client(stand_in, newer)
    stand_in.restart_after = 1

    def round_of_one() -> None:
        complete(server, ask())  # where the machine is slow, a look at the server in between may tell already
        server.check_same()

    with pytest.raises(ServerLost, match=rf"{stand_in.url} was started anew in the middle of a round"):
        round_of_one()


def test_it_is_asked_again_only_while_it_is_the_same(stand_in: StandIn, start: Path) -> None:
    server = client(stand_in, start)
    stand_in.restart()
    stand_in.faults = 1

    with pytest.raises(ServerLost, match="was started anew"):
        complete(server, ask())


def test_a_server_that_comes_up_late_is_waited_for(start: Path) -> None:
    gone = StandIn(start)
    gone.stop()
    said: list[str] = []
    server, began = VllmServer(gone.url, 0.5), time.monotonic()

    with pytest.raises(ServerLost, match=rf"{gone.url} does not answer, for 0 s now .*: start it \(`VLLM_SERVER_DEV"):
        server.wait(said.append)

    assert 0.5 < time.monotonic() - began < 3
    assert len(said) == 1
    assert said[0].startswith(f"waiting for the vLLM server {gone.url} (ConnectionRefusedError")


# --- servers that cannot do it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda one: setattr(one, "dev_mode", False), "was started without VLLM_SERVER_DEV_MODE=1"),
        (lambda one: setattr(one, "version", "0.11.2"), "runs vLLM 0.11.2; 0.22 is the oldest"),
        (lambda one: one.config["model_config"].update(logprobs_mode="raw_logprobs"), "gives raw_logprobs"),
        (lambda one: one.config["device_config"].update(device="cpu"), "add --no-enable-chunked-prefill"),
    ],
)
def test_a_server_that_was_started_otherwise_says_how(stand_in: StandIn, change: Any, told: str) -> None:
    change(stand_in)

    with pytest.raises(ServerUnfit, match=told):
        VllmServer(stand_in.url, 5.0).about()


def test_a_prompt_that_is_too_long_for_it_is_refused(stand_in: StandIn, start: Path) -> None:
    with pytest.raises(
        ServerUnfit, match=r"takes 256 tokens .* a prompt of 3 with rollout.max_tokens 300 may need 303"
    ):
        complete(client(stand_in, start), ask(max_tokens=300))


def test_weights_that_it_does_not_see_are_refused(stand_in: StandIn, tmp_path: Path) -> None:
    with pytest.raises(ServerUnfit, match=r"cannot load the weights in .*/absent: it must see this folder"):
        client(stand_in, tmp_path / "absent")


def test_an_answer_of_another_form_is_refused(stand_in: StandIn, start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = client(stand_in, start)
    monkeypatch.setattr(stand_in, "post", lambda path, body: (200, {"choices": [{"index": 0, "text": "7"}] * 2}))

    with pytest.raises(ServerUnfit, match="answers in another way than vLLM does"):
        complete(server, ask())


def test_a_response_that_ended_for_another_reason_is_refused(stand_in: StandIn, start: Path) -> None:
    """Shorter than asked for, and without the end of sequence: it would be taken for one that was cut off."""
    server = client(stand_in, start)
    choose = stand_in._choice

    def shortened(body: Any, index: int) -> dict[str, Any]:
        return choose(body | {"max_tokens": 2, "stop_token_ids": [511]}, index)

    stand_in._choice = shortened  # type: ignore[method-assign]

    with pytest.raises(ServerUnfit, match="a response that ends after 2 tokens"):
        complete(server, ask())
