"""The server over HTTP: what it answers, what it refuses, and that a client who leaves costs nothing."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any, cast

import pytest

from qwq_rl.sandbox import Job, LocalSandbox, SandboxUnavailable
from qwq_rl.sandbox import tests_hash as hash_of
from qwq_rl.sandbox.http.admission import Bounds
from qwq_rl.sandbox.http.client import RemoteSandbox
from qwq_rl.sandbox.http.service import Service

pytest.importorskip("fastapi", reason="the extra `sandbox-server` is not installed")
import uvicorn
from sandbox_servers import TOKEN, Server, serving

from qwq_rl.sandbox.http.server import build

SUM = "print(sum(map(int, input().split())))"
TESTS = [{"input": "2 3\n", "output": "5\n"}, {"input": "1 1\n", "output": "2\n"}]
SPIN = "while True: pass"
BOUNDS = ["--slots", "2", "--most-body-mb", "1", "--most-queue-jobs", "40", "--most-batch-jobs", "50"]
BOUNDS += ["--most-cpu-s", "20", "--most-text-kb", "100"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(*BOUNDS) as one:
        yield one


def job(code: str = SUM, **fields: Any) -> dict[str, Any]:
    return {"id": "j", "code": code, **({} if "tests_ref" in fields else {"tests": TESTS}), **fields}


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.05)


def test_a_batch_gets_one_line_a_job_with_its_isolation_and_the_floor(server: Server) -> None:
    status, lines = server.ask(
        "POST", "/v1/judge", {"jobs": [job(id="a"), job("print(5)", id="b"), job("1 / 0", id="c")]}
    )

    assert status == 200
    found = {line["result"]["id"]: line for line in lines}
    assert {name: line["index"] for name, line in found.items()} == {"a": 0, "b": 1, "c": 2}
    verdicts = {name: line["result"]["verdict"] for name, line in found.items()}
    assert verdicts == {"a": "accepted", "b": "wrong_answer", "c": "runtime_error"}
    assert {line["floor"] for line in lines} == {"L2"}
    assert {line["result"]["isolation"] >= "L2" for line in lines} == {True}


def test_results_come_as_they_are_ready(server: Server) -> None:
    slow = job("import time\ntime.sleep(3)\n" + SUM, id="slow", limits={"wall_s": 20})
    response = server.open("POST", "/v1/judge", {"jobs": [slow, job(id="quick")]})
    started = time.monotonic()

    first = json.loads(response.readline())

    assert first["result"]["id"] == "quick"
    assert time.monotonic() - started < 2.5
    assert json.loads(response.readline())["result"]["verdict"] == "accepted"


def test_a_program_is_run_without_tests(server: Server) -> None:
    code = "import sys\nprint(input() * 2)\nprint('careful', file=sys.stderr)\nsys.exit(3)"
    status, told = server.ask("POST", "/v1/run", {"code": code, "stdin": "ab\n"})

    assert status == 200
    assert (told["stdout"], told["exit"], told["verdict"]) == ("abab\n", 3, "runtime_error")
    assert told["stderr"] == "careful\n"
    assert (told["floor"], told["runtime"].split()[0]) == ("L2", "python")


def test_a_test_set_is_put_in_once_and_named_by_its_hash(server: Server) -> None:
    tests = [{"input": f"{n} 1\n", "output": f"{n + 1}\n"} for n in range(7)]
    name = hash_of(tests)

    assert server.ask("GET", f"/v1/tests/{name}")[0] == 404
    status, told = server.ask("POST", "/v1/judge", {"jobs": [job(tests_ref=name)]})
    assert (status, told["missing"]) == (409, [name])
    assert server.ask("PUT", f"/v1/tests/{name}", tests) == (201, {"hash": name, "tests": 7})
    assert server.ask("PUT", f"/v1/tests/{name}", tests)[0] == 200
    assert server.ask("GET", f"/v1/tests/{name}") == (200, {"hash": name})
    (line,) = server.ask("POST", "/v1/judge", {"jobs": [job(tests_ref=name)]})[1]
    assert (line["result"]["verdict"], line["result"]["passed"]) == ("accepted", 7)


def test_a_test_set_under_another_hash_is_refused(server: Server) -> None:
    status, told = server.ask("PUT", f"/v1/tests/{'0' * 64}", TESTS)

    assert status == 422
    assert hash_of(TESTS) in told["error"]


@pytest.mark.parametrize("token", [None, "another-token-altogether", ""])
def test_without_the_token_nothing_is_done(server: Server, token: str | None) -> None:
    for method, path in [("POST", "/v1/judge"), ("POST", "/v1/run"), ("PUT", "/v1/tests/x"), ("GET", "/v1/tests/x")]:
        status, told = server.ask(method, path, {"jobs": [job()]}, token)
        assert (status, "token" in told["error"]) == (401, True)


def test_health_readiness_and_figures_need_no_token_and_say_the_isolation(server: Server) -> None:
    assert server.ask("GET", "/healthz", token=None)[0] == 200
    status, told = server.ask("GET", "/readyz", token=None)
    assert (status, told["ready"], told["floor"], told["slots"]) == (200, True, "L2", 2)
    assert told["isolation"] >= "L2"
    assert "python" in told["languages"]
    assert server.figures()[f'qwq_sandbox_isolation{{level="{told["isolation"]}"}}'] == 1


def test_figures_count_verdicts_requests_and_attempts_to_get_out(server: Server) -> None:
    before = server.figures()
    break_out = "import socket\ntry: socket.socket()\nexcept OSError: pass\n" + SUM
    (line,) = server.ask("POST", "/v1/judge", {"jobs": [job(break_out)]})[1]
    after = server.figures()

    kinds = [event.removeprefix("attempt: ") for event in line["result"]["events"]]
    assert kinds
    for name in (
        f'qwq_sandbox_attempts_total{{kind="{kinds[0]}"}}',
        f'qwq_sandbox_jobs_total{{verdict="{line["result"]["verdict"]}"}}',
        'qwq_sandbox_requests_total{route="/v1/judge",status="200"}',
        "qwq_sandbox_job_seconds_count",
    ):
        assert after[name] == before.get(name, 0) + 1, name


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "not JSON"),
        (b"[" * 200_000, 400, "not JSON"),
        (b'{"jobs": [' + b"9" * 10_000 + b"]}", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        ([], 400, "give"),
        ({"jobs": []}, 400, "at least one"),
        ({"jobs": [job()] * 51}, 413, "at most 50"),
        ({"jobs": [job()], "hurry": True}, 400, "hurry is not a field"),
        ({"jobs": [job()], "deadline_s": -1}, 400, "deadline_s"),
        ({"jobs": [job()], "require": "L9"}, 400, "require"),
        ({"jobs": [job(), job(language="cobol")]}, 422, "jobs[1]: language is 'cobol'"),
        ({"jobs": [job(limits={"cpu_s": 1000})]}, 422, "at most 20"),
        ({"jobs": [job("x" * (1 << 20))]}, 413, "longer than 1 MiB"),
        (
            {"jobs": [job(tests=[{"assert": "assert " + "1," * 60_000}])]},
            422,
            "jobs[0]: an assert or a checker has 117 KiB",
        ),
        ({"jobs": [job(checker="#" * 200_000)]}, 422, "this server takes at most 100"),
        ({"jobs": [job(tests=[{"assert": "assert " + "-" * 90_000 + "1"}])]}, 422, "not Python"),
    ],
)
def test_what_is_malformed_or_too_much_is_named(server: Server, body: Any, status: int, said: str) -> None:
    answered, told = server.ask("POST", "/v1/judge", body)

    assert answered == status
    assert said in told["error"]
    assert len(told["error"]) < 1000


def test_a_compressed_body_is_refused_before_it_is_read(server: Server) -> None:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/v1/judge", b"x", {"Authorization": f"Bearer {TOKEN}", "Content-Encoding": "gzip"})

    assert connection.getresponse().status == 415


def test_a_body_of_unknown_length_ends_at_the_bound(server: Server) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * (1 << 16)

    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request("POST", "/v1/judge", endless(), {"Authorization": f"Bearer {TOKEN}"}, encode_chunked=True)
        status = connection.getresponse().status
    except (BrokenPipeError, ConnectionResetError):  # it answered and hung up while the body was on its way
        status = 413

    assert status == 413
    assert server.ask("POST", "/v1/judge", {"jobs": [job()]})[0] == 200
    assert server.figures()["qwq_sandbox_held_bytes"] == 0


def test_who_leaves_has_his_programs_ended(server: Server) -> None:
    cancelled = server.figures()["qwq_sandbox_cancelled_jobs_total"]
    spin = [job(f"# {n}\n{SPIN}", limits={"cpu_s": 20, "wall_s": 60}) for n in range(6)]
    body = json.dumps({"jobs": spin}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as leaving:
        head = ["POST /v1/judge HTTP/1.1", "Host: x", f"Authorization: Bearer {TOKEN}", f"Content-Length: {len(body)}"]
        leaving.sendall("\r\n".join([*head, "", ""]).encode() + body)
        until(lambda: server.figures()["qwq_sandbox_running_cases"] >= 1)

    until(lambda: server.figures()["qwq_sandbox_running_cases"] == 0, 10)
    figures = server.figures()
    assert figures["qwq_sandbox_cancelled_jobs_total"] == cancelled + 6
    assert (figures["qwq_sandbox_queued_jobs"], figures["qwq_sandbox_held_bytes"]) == (0, 0)


def test_a_deadline_ends_what_is_left_and_says_so(server: Server) -> None:
    spin = job(SPIN, id="spin", limits={"cpu_s": 20, "wall_s": 60})
    started = time.monotonic()
    status, lines = server.ask("POST", "/v1/judge", {"jobs": [spin, job(id="quick")], "deadline_s": 1.5})

    assert status == 200
    told = {line["index"]: line for line in lines}
    assert told[1]["result"]["verdict"] == "accepted"
    assert (told[0]["late"], "deadline" in told[0]["error"]) == (True, True)
    assert time.monotonic() - started < 10
    assert server.ask("POST", "/v1/run", {"code": SPIN, "deadline_s": 0.5, "limits": {"cpu_s": 20}})[0] == 504


def test_a_full_server_says_when_to_come_again_and_loses_nothing(server: Server) -> None:
    busy = {"jobs": [job(f"# {n}\nimport time\ntime.sleep(0.2)\n{SUM}", tests=TESTS[:1]) for n in range(30)]}
    response = server.open("POST", "/v1/judge", busy)
    until(lambda: server.figures()["qwq_sandbox_queued_jobs"] > 0)

    refused = server.open("POST", "/v1/judge", {"jobs": [job(f"# more {n}") for n in range(20)]})

    assert refused.status == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert "try again later" in json.loads(refused.read())["error"]
    lines = [json.loads(line) for line in response if line.strip()]
    assert [line["result"]["verdict"] for line in lines] == ["accepted"] * 30


def test_sigterm_lets_what_is_under_way_end() -> None:
    with serving("--slots", "1") as server:
        slow = job("import time\ntime.sleep(1.5)\n" + SUM, tests=TESTS[:1])
        response = server.open("POST", "/v1/judge", {"jobs": [slow]})
        until(lambda: server.figures()["qwq_sandbox_running_cases"] == 1)
        server.process.send_signal(signal.SIGTERM)

        assert json.loads(response.readline())["result"]["verdict"] == "accepted"
        assert server.process.wait(15) == 0
        with pytest.raises(ConnectionRefusedError):
            server.ask("GET", "/healthz")


def refusal(*options: str, token: str = "") -> str:
    command = [sys.executable, "-m", "qwq_rl.cli", "sandbox", "serve", "--port", "0", *options]
    environment = {"PATH": "/usr/bin:/bin", "QWQ_RL_SANDBOX_TOKEN": token}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def test_an_address_open_to_others_needs_a_token() -> None:
    assert "there is no token" in refusal("--host", "0.0.0.0")
    assert "too short" in refusal(token="secret")


def test_an_address_that_is_taken_is_named(server: Server) -> None:
    assert "cannot be listened on" in refusal("--port", str(server.port))


@contextmanager
def weak_server(**options: Any) -> Iterator[Server]:
    """A server whose sandbox lacks a wall or the like, in this process."""
    with LocalSandbox(1, **options) as sandbox:
        service = Service(sandbox, "L1", Bounds())
        asyncio.run(service.prove())
        inner = uvicorn.Server(uvicorn.Config(build(service, None), log_level="warning"))
        listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=inner.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Server(cast(Any, None), listener.getsockname()[1], "")
        finally:
            inner.should_exit = True
            thread.join()


def test_who_asks_for_more_isolation_than_there_is_is_refused() -> None:
    with weak_server(without=["landlock"]) as server:
        assert server.ask("GET", "/readyz")[1]["isolation"] == "L1"
        asked: dict[str, dict[str, Any]] = {"/v1/judge": {"jobs": [job()]}, "/v1/run": {"code": SUM, "stdin": "2 3"}}
        for path, body in asked.items():
            assert server.ask("POST", path, {**body, "require": "L1"}, None)[0] == 200
            status, told = server.ask("POST", path, {**body, "require": "L2"}, None)
            assert (status, told["error"]) == (412, "this server reaches isolation L1, and L2 is required")
        with (
            RemoteSandbox([server.url], require="L2") as client,
            pytest.raises(SandboxUnavailable, match="reaches isolation L1, and L2 is required"),
        ):
            client.judge([Job("j", SUM, TESTS)])


def test_a_server_with_room_for_one_test_set_judges_jobs_with_many() -> None:
    sets = [[{"input": f"{n} {m}\n", "output": f"{n + m}\n"} for m in range(60)] for n in range(3)]
    with weak_server(test_bytes=1) as server, RemoteSandbox([server.url], parallel=1) as client:
        results = client.judge([Job("j", SUM, tests) for tests in sets])
    assert [(result.verdict, result.passed) for result in results] == [("accepted", 60)] * 3


def test_a_server_says_which_test_set_had_to_go_for_another() -> None:
    with weak_server(test_bytes=1) as server:
        names = [hash_of(tests) for tests in (TESTS, TESTS[:1])]
        for name, tests in zip(names, (TESTS, TESTS[:1]), strict=True):
            assert server.ask("PUT", f"/v1/tests/{name}", tests, None)[0] == 201
        status, told = server.ask("POST", "/v1/judge", {"jobs": [job(tests_ref=name) for name in names]}, None)
    assert (status, told["missing"]) == (409, names[:1])


def test_many_who_wait_and_leave_leave_nothing_behind(server: Server) -> None:
    before = server.figures()["qwq_sandbox_open_files"]
    for number in range(60):
        with socket.create_connection(("127.0.0.1", server.port)) as one:
            body = json.dumps({"jobs": [job(f"# left {number}\n{SUM}")]}).encode()
            head = ["POST /v1/judge HTTP/1.1", "Host: x", f"Authorization: Bearer {TOKEN}"]
            head.append(f"Content-Length: {len(body) + number % 2}")  # every second one sends less than it says
            one.sendall("\r\n".join([*head, "", ""]).encode() + body)

    until(lambda: server.figures()["qwq_sandbox_queued_jobs"] == 0)
    until(lambda: server.figures()["qwq_sandbox_open_files"] <= before + 2)
    assert server.figures()["qwq_sandbox_held_bytes"] == 0
    assert server.ask("POST", "/v1/judge", {"jobs": [job()]})[0] == 200
