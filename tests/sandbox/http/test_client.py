"""The client over real servers: the same answers as the embedded sandbox, whatever becomes of a server."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from qwq_rl.sandbox import CaseResult, Job, JobError, Limits, LocalSandbox, Result, SandboxUnavailable
from qwq_rl.sandbox.http.client import RemoteSandbox

pytest.importorskip("fastapi", reason="the extra `sandbox-server` is not installed")
from sandbox_servers import TOKEN, Server, serving

SUM = "print(sum(map(int, input().split())))"
TESTS = [{"input": "2 3\n", "output": "5\n"}, {"input": "1 1\n", "output": "2\n"}]
MANY = [{"input": f"{n} 1\n", "output": f"{n + 1}\n"} for n in range(60)]
"""Long enough to be sent by its hash."""


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Server]]:
    with ExitStack() as stack:
        yield [stack.enter_context(serving("--slots", "1", "--most-queue-jobs", "10")) for _ in range(2)]


@pytest.fixture
def client(pair: list[Server]) -> Iterator[RemoteSandbox]:
    with RemoteSandbox([server.url for server in pair], token=TOKEN, require="L2") as one:
        yield one


def told(result: Result) -> Any:
    """What two judgements of one job have in common."""
    cases = [replace(case, cpu_s=0, wall_s=0, memory_mb=0) for case in result.cases]
    return replace(result, cases=tuple(cases), cached=False)


def slow(count: int, seconds: float = 0.3) -> list[Job]:
    """Different jobs that each take a while."""
    code = f"import time\ntime.sleep({seconds})\n{SUM}"
    return [Job(f"s{n}", f"# {n} {time.monotonic_ns()}\n{code}", TESTS[:1]) for n in range(count)]


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_it_answers_as_the_embedded_sandbox_does(client: RemoteSandbox, sandbox: LocalSandbox) -> None:
    jobs = [
        Job("right", SUM, MANY),
        Job("wrong", "print(5)", TESTS),
        Job("call", "def f(x): return [x, None]", [{"args": [1], "expected": [1, None]}], entry_point="f"),
        Job("assert", "def f(x): return 2 * x", [{"assert": "assert f(2) == 5"}], entry_point="f"),
        Job("bytes", "import sys\nsys.stdout.buffer.write(b'\\xff')", [{"input_b64": "/w==", "output_b64": "/w=="}]),
        Job("syntax", "print(", TESTS),
        Job("all", "print(2)", TESTS, mode="all"),
        Job("shell", "read a b; echo $((a + b))", TESTS, language="bash"),
        Job("surrogate", "# \udc80\n" + SUM, TESTS),
    ]

    assert [told(result) for result in client.judge(jobs)] == [told(result) for result in sandbox.judge(jobs)]


def test_equal_jobs_are_sent_once_and_each_gets_its_own_id(client: RemoteSandbox, pair: list[Server]) -> None:
    code, before = f"# {time.monotonic_ns()}\n{SUM}", [server.figures() for server in pair]
    results = client.judge([Job(f"j{n}", code, TESTS) for n in range(9)])
    after = [server.figures() for server in pair]

    assert [result.id for result in results] == [f"j{n}" for n in range(9)]
    name = "qwq_sandbox_job_seconds_count"
    assert sum(new[name] - old[name] for new, old in zip(after, before, strict=True)) == 1


def test_a_test_set_goes_to_a_server_once(pair: list[Server]) -> None:
    tests = [*MANY, {"input": f"{time.monotonic_ns()} 0", "output": "0"}]
    with RemoteSandbox([pair[0].url], token=TOKEN, parallel=1) as client:
        name = 'qwq_sandbox_requests_total{route="/v1/tests/{name}",status="201"}'
        before = pair[0].figures().get(name, 0)
        for number in range(3):
            client.judge([Job("j", f"# {number}\n{SUM}", tests)])
        reference = client.put_tests(tests)
        (result,) = client.judge([Job("j", SUM, tests_ref=reference)])

    assert (result.verdict, result.passed) == ("wrong_answer", 60)
    assert pair[0].figures()[name] == before + 1


def test_work_is_spread_over_the_servers(client: RemoteSandbox, pair: list[Server]) -> None:
    name = "qwq_sandbox_job_seconds_count"
    before = [server.figures()[name] for server in pair]
    client.judge(slow(12, 0.2))

    done = [server.figures()[name] - old for server, old in zip(pair, before, strict=True)]
    assert sum(done) == 12
    assert min(done) >= 3


@pytest.mark.slow
def test_a_full_server_is_waited_for(pair: list[Server]) -> None:
    with RemoteSandbox([pair[0].url], token=TOKEN) as client:
        results: list[Result] = []
        threads = [threading.Thread(target=lambda: results.extend(client.judge(slow(25, 0.05)))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert Counter(result.verdict for result in results) == {"accepted": 75}
    assert pair[0].figures()['qwq_sandbox_requests_total{route="/v1/judge",status="429"}'] >= 1


def test_a_server_that_is_not_there_costs_nothing(pair: list[Server]) -> None:
    urls = [f"http://127.0.0.1:{unused_port()}", pair[0].url]
    with RemoteSandbox(urls, token=TOKEN) as client:
        assert {result.verdict for result in client.judge(slow(6, 0.05))} == {"accepted"}


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_ends_in_the_middle_costs_no_verdict(signal_number: int) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(serving("--slots", "1", "--drain-s", "1")) for _ in range(2)]
        jobs = [*slow(20, 0.15), *(Job(f"w{n}", f"print({n}, -1)", TESTS) for n in range(10))]
        found: list[tuple[int, Result]] = []
        with RemoteSandbox([server.url for server in servers], token=TOKEN) as client:
            for answer in client.judge_each(jobs):
                found.append(answer)
                if len(found) == 4:
                    servers[0].process.send_signal(signal_number)

    assert sorted(index for index, _ in found) == list(range(30))
    assert all(result.id == jobs[index].id for index, result in found)
    verdicts = {index: result.verdict for index, result in found}
    assert [verdicts[index] for index in range(30)] == ["accepted"] * 20 + ["wrong_answer"] * 10


@pytest.mark.slow
def test_all_servers_gone_and_back_again_costs_no_verdict() -> None:
    port = unused_port()
    jobs, found = slow(12, 0.2), []
    with RemoteSandbox([f"http://127.0.0.1:{port}"], token=TOKEN) as client:
        with serving("--slots", "1", "--port", str(port)) as server:
            answers = client.judge_each(jobs)
            found.append(next(answers))
            server.process.kill()
            server.process.wait()
        with serving("--slots", "1", "--port", str(port)):
            found.extend(answers)

    assert sorted(index for index, _ in found) == list(range(12))
    assert {result.verdict for _, result in found} == {"accepted"}


@pytest.mark.slow
def test_without_any_server_left_jobs_are_faults_and_no_scores() -> None:
    jobs = slow(4, 0.5)
    with serving("--slots", "1") as server, RemoteSandbox([server.url], token=TOKEN, patience_s=1) as client:
        answers = client.judge_each(jobs)
        first = next(answers)[1]
        server.process.kill()
        rest = [result for _, result in answers]

    assert first.verdict == "accepted"
    assert {result.verdict for result in rest} <= {"sandbox_error", "accepted"}
    assert rest[-1].verdict == "sandbox_error"
    assert "no sandbox server answers any more" in rest[-1].events[0]
    assert rest[-1].passed == 0


def test_a_server_that_was_never_reached_is_named() -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    with RemoteSandbox([url], patience_s=0.3) as client:
        with pytest.raises(SandboxUnavailable, match=f"no sandbox server answers: {url}: cannot be reached"):
            client.judge(slow(1))
        with pytest.raises(SandboxUnavailable, match="cannot be reached"):
            _ = client.isolation


def test_a_wrong_token_is_no_reason_to_try_again(pair: list[Server]) -> None:
    with RemoteSandbox([pair[0].url], token="wrong") as client, pytest.raises(SandboxUnavailable, match="token"):
        client.judge(slow(1))


def test_a_job_that_the_servers_refuse_is_named(client: RemoteSandbox) -> None:
    with pytest.raises(JobError, match=r"limits\.memory_mb is 9000: this server gives at most 4096"):
        client.judge([Job("big", SUM, TESTS, limits=Limits(memory_mb=9000))])


def test_a_job_that_breaks_every_connection_is_given_up_and_its_companions_are_not(pair: list[Server]) -> None:
    with Cutting(pair[0].port, b"poison") as url, RemoteSandbox([url], token=TOKEN, parallel=1) as client:
        results = client.judge([*slow(5, 0.01), Job("bad", "# poison\n" + SUM, TESTS), *slow(3, 0.01)])

    assert Counter(result.verdict for result in results) == {"accepted": 8, "sandbox_error": 1}
    assert results[5].verdict == "sandbox_error"
    assert "3 times it got no answer" in results[5].events[0]


def test_a_deadline_makes_faults(pair: list[Server]) -> None:
    spin = Job("spin", f"# {time.monotonic_ns()}\nwhile True: pass", TESTS, limits=Limits(cpu_s=30, wall_s=60))
    with RemoteSandbox([pair[0].url], token=TOKEN, deadline_s=1) as client:
        (result,) = client.judge([spin])

    assert result.verdict == "sandbox_error"
    assert "not judged within 1 s" in result.cases[0].stderr


def test_leaving_the_loop_ends_the_programs(pair: list[Server]) -> None:
    with RemoteSandbox([pair[0].url], token=TOKEN, parallel=1) as client:
        spin = [Job("x", f"# {n}\nwhile True: pass", TESTS, limits=Limits(cpu_s=60, wall_s=90)) for n in range(4)]
        for _ in client.judge_each([*slow(1, 0.01), *spin]):
            break

    busy, end = ("qwq_sandbox_queued_jobs", "qwq_sandbox_running_cases"), time.monotonic() + 10
    while any(pair[0].figures()[name] for name in busy) and time.monotonic() < end:
        time.sleep(0.05)
    assert [pair[0].figures()[name] for name in busy] == [0, 0]


def test_programs_are_run_and_the_servers_described(client: RemoteSandbox) -> None:
    ran = client.run("print(input()[::-1])", b"abc\n")

    assert isinstance(ran, CaseResult)
    assert (ran.verdict, ran.stdout) == ("accepted", "cba\n")
    assert client.isolation >= "L2"
    assert "bash" in client.languages()


def test_a_forked_process_may_go_on_with_it(client: RemoteSandbox) -> None:
    client.judge(slow(1, 0.01))
    child = os.fork()
    if not child:
        verdicts = {result.verdict for result in client.judge(slow(3, 0.01))}
        os._exit(0 if verdicts == {"accepted"} else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    "url", ["127.0.0.1:80", "ftp://x", "http://", "http://x:99999", "http://user:word@x", "http://x/?a=1"]
)
def test_what_is_no_url_is_named(url: str) -> None:
    with pytest.raises(ValueError, match="give http://HOST:PORT"):
        RemoteSandbox([url])


class Cutting:
    """A proxy that cuts every connection whose request holds certain bytes."""

    def __init__(self, port: int, poison: bytes) -> None:
        self._port, self._poison = port, poison
        self._listener = socket.create_server(("127.0.0.1", 0))

    def __enter__(self) -> str:
        threading.Thread(target=self._accept, daemon=True).start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._port))
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 20):
                if self._poison in data:
                    break
                target.sendall(data)
        except OSError:
            pass
        for one in (source, target):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
