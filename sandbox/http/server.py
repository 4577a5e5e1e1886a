"""The HTTP routes: judge a batch as a stream, run a program for a tool, keep test sets (docs/sandbox_server.md)."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwq_rl.sandbox.http import prometheus
from qwq_rl.sandbox.http.admission import Bounds, Refused, Visit, check_job, check_texts
from qwq_rl.sandbox.http.service import RequestJobs, Service
from qwq_rl.sandbox.local import SandboxUnavailable
from qwq_rl.sandbox.protocol import LEVELS, Job, JobError, Limits, Result, tests_hash
from qwq_rl.sandbox.stored_tests import UnknownTests

_BODY_SECONDS = 120.0
_SEND_SECONDS = 120.0
"""A request ends if the client needs longer to send its body, or to read a part of the answer."""
_RUN_FIELDS = {"code", "language", "stdin", "stdin_b64", "limits", "require", "deadline_s"}


@dataclass(frozen=True)
class JudgeRequest:
    """A request to judge or run, after it was read and checked."""

    jobs: tuple[Job, ...]
    require: str | None
    deadline_s: float


def build(service: Service, token: str | None) -> FastAPI:
    """The application. Without a token, everybody who can reach it may use it."""

    @contextlib.asynccontextmanager
    async def alive(_: FastAPI) -> AsyncIterator[None]:
        proving = asyncio.create_task(service.keep_proving())
        yield
        proving.cancel()

    app = FastAPI(title="qwq-rl sandbox", docs_url=None, redoc_url=None, lifespan=alive)
    app.add_middleware(_RequestCounter, service=service)
    app.add_exception_handler(Refused, _refusal_response)
    app.add_exception_handler(JobError, _refusal_response)
    app.add_exception_handler(SandboxUnavailable, _refusal_response)
    app.add_exception_handler(HTTPException, _refusal_response)
    app.include_router(_health_routes(service))
    app.include_router(_work_routes(service), dependencies=[Depends(_Token(token))])
    return app


def _health_routes(service: Service) -> APIRouter:
    """Routes that need no token, since they show nothing of what is judged."""
    router = APIRouter()

    @router.get("/healthz", summary="Does it live? Where not, restart it.")
    async def healthz() -> JSONResponse:
        alive = service.is_alive()
        return JSONResponse({"alive": alive, **service.state()}, 200 if alive else 503)

    @router.get("/readyz", summary="Does it take jobs, at the isolation that it must have?")
    async def readyz() -> JSONResponse:
        why_not = service.why_not_ready()
        return JSONResponse({"ready": not why_not, "why_not": why_not, **service.state()}, 503 if why_not else 200)

    @router.get("/metrics", summary="Figures for Prometheus")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(service.metrics(), media_type=prometheus.CONTENT_TYPE)

    return router


def _work_routes(service: Service) -> APIRouter:
    router, bounds = APIRouter(), service.admission.bounds

    @router.post("/v1/judge", summary="Judge jobs; one line of JSON a result, as they come")
    async def judge(request: Request) -> Response:
        service.refuse_unless_ready()
        visit = service.admission.visit()
        try:
            body = await _body(request, visit)
            # in a thread: parsing many jobs would hold up all other requests
            judge_request = await asyncio.to_thread(_read_batch, body, bounds)
            # again: the server may have begun to shut down while the body came
            service.refuse_unless_ready(judge_request.require)
            test_hashes = {job.tests_ref for job in judge_request.jobs if job.tests_ref}
            if missing := {name for name in test_hashes if not service.sandbox.has_tests(name)}:
                raise Refused(409, "test sets are missing: put them in first", missing=sorted(missing))
            visit.take_jobs(len(judge_request.jobs))
            return _Results(await service.begin(judge_request.jobs, visit, judge_request.deadline_s), service)
        except BaseException:
            visit.close()
            raise

    @router.post("/v1/run", summary="Run one program, without tests")
    async def run(request: Request) -> Response:
        service.refuse_unless_ready()
        visit = service.admission.visit()
        try:
            judge_request = _read_run(await _body(request, visit), bounds)
            service.refuse_unless_ready(judge_request.require)
            visit.take_jobs(1)
            batch = await service.begin(judge_request.jobs, visit, judge_request.deadline_s)
        except BaseException:
            visit.close()
            raise
        async for answers in batch.answers(request.receive):
            for _, answer in answers:
                return _run_answer(answer, service)
        return Response(status_code=499)  # the client closed the connection

    @router.put("/v1/tests/{name}", summary="Keep a test set under its hash")
    async def put_tests(name: str, request: Request) -> JSONResponse:
        visit = service.admission.visit()
        try:
            body = await _body(request, visit)
            was_kept = service.sandbox.has_tests(name)
            count = await asyncio.to_thread(_keep_tests, service, name, body)
        finally:
            visit.close()
        return JSONResponse({"hash": name, "tests": count}, 200 if was_kept else 201)

    @router.get("/v1/tests/{name}", summary="Is this test set here? Its tests are not told.")
    async def has_tests(name: str) -> JSONResponse:
        if not service.sandbox.has_tests(name):
            raise Refused(404, f"there is no test set {name[:80]!r}")
        return JSONResponse({"hash": name})

    return router


class _Results(Response):
    """An answer in lines of JSON, as results come. It cancels the work if the client leaves or does not read."""

    def __init__(self, batch: RequestJobs, service: Service) -> None:
        super().__init__(media_type="application/x-ndjson")
        del self.headers["content-length"]
        self._batch, self._floor = batch, service.floor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the lines as they come."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with contextlib.aclosing(self._batch.answers(receive)) as stream:
            async for answers in stream:
                text = "".join(self._line(index, answer) for index, answer in answers) or "\n"
                try:
                    async with asyncio.timeout(_SEND_SECONDS):
                        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
                except TimeoutError:
                    return  # without the last part, so that the client does not take the answer as complete
        await send({"type": "http.response.body", "body": b""})

    def _line(self, index: int, answer: Result | BaseException) -> str:
        if isinstance(answer, Result):
            message: dict[str, Any] = {"index": index, "floor": self._floor, "result": answer.to_dict()}
        else:
            message = {"index": index, "error": str(answer), "late": isinstance(answer, TimeoutError)}
        return json.dumps(message) + "\n"


def _run_answer(answer: Result | BaseException, service: Service) -> JSONResponse:
    if isinstance(answer, TimeoutError):
        raise Refused(504, "the deadline passed before the program had its turn or ended")
    if isinstance(answer, BaseException):
        raise Refused(503, str(answer), retry_after=5)
    run_fields = {"isolation": answer.isolation, "floor": service.floor, "runtime": answer.runtime}
    return JSONResponse({**answer.cases[0].to_dict(), **run_fields, "events": list(answer.events)})


async def _body(request: Request, visit: Visit) -> bytes:
    """The body of a request, limited in size and time. Raises `Refused`."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, "the body is compressed: send it as it is")
    parts: list[bytes] = []
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                visit.take_bytes(len(part))
                parts.append(part)
    except TimeoutError:
        raise Refused(408, f"the body did not come within {_BODY_SECONDS:.0f} s") from None
    except ClientDisconnect:
        raise Refused(400, "the body ended early") from None
    return b"".join(parts)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON that can be read: {error}") from None


def _read_batch(body: bytes, bounds: Bounds) -> JudgeRequest:
    """Read `{"jobs": [...], "require": level, "deadline_s": seconds}`. Raises `Refused` and `JobError`."""
    content = _parsed(body)
    if not isinstance(content, dict) or not isinstance(content.get("jobs"), list) or not content["jobs"]:
        raise Refused(400, 'give {"jobs": [...]} with at least one job')
    if len(content["jobs"]) > (limit := bounds.batch_jobs):
        raise Refused(413, f"there are {len(content['jobs'])} jobs: this server takes at most {limit} at once")
    if unknown := sorted(set(content) - {"jobs", "require", "deadline_s"}):
        raise Refused(400, f"{unknown[0][:80]} is not a field: there are jobs, require, deadline_s")
    jobs = []
    for index, value in enumerate(content["jobs"]):
        try:
            if isinstance(value, dict):
                check_texts(value.get("tests"), value.get("checker"), bounds)
            jobs.append(Job.from_dict(value))
            check_job(jobs[-1], bounds)
        except JobError as error:
            raise JobError(f"jobs[{index}]: {error}") from None
    return JudgeRequest(tuple(jobs), _level(content), _deadline(content, bounds))


def _read_run(body: bytes, bounds: Bounds) -> JudgeRequest:
    """Read `{"code", "language", "stdin" | "stdin_b64", "limits", ...}`. Raises `Refused` and `JobError`."""
    content = _parsed(body)
    if not isinstance(content, dict) or "code" not in content or ("stdin" in content and "stdin_b64" in content):
        raise Refused(400, 'give {"code": ..., "stdin": ...}')
    if unknown := sorted(set(content) - _RUN_FIELDS):
        raise Refused(400, f"{unknown[0][:80]} is not a field: there are {', '.join(sorted(_RUN_FIELDS))}")
    test = {"input_b64": content["stdin_b64"]} if "stdin_b64" in content else {"input": content.get("stdin", "")}
    limits = Limits.from_dict(content.get("limits", {}))
    job = Job("run", content["code"], [test], language=content.get("language", "python"), limits=limits, run_only=True)
    check_job(job, bounds)
    return JudgeRequest((job,), _level(content), _deadline(content, bounds))


def _level(content: dict[str, Any]) -> str | None:
    level = content.get("require")
    if level is not None and level not in LEVELS:
        raise Refused(400, f"require is {level!r}: give one of {', '.join(LEVELS)}")
    return level


def _deadline(content: dict[str, Any], bounds: Bounds) -> float:
    seconds = content.get("deadline_s", bounds.deadline_s)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise Refused(400, f"deadline_s is {seconds!r}: give a number above 0")
    return min(float(seconds), bounds.deadline_s)


def _keep_tests(service: Service, name: str, body: bytes) -> int:
    tests = _parsed(body)
    if not isinstance(tests, list) or not tests:
        raise Refused(400, "give a list of at least one test")
    if len(tests) > (limit := service.admission.bounds.job_tests):
        raise Refused(413, f"there are {len(tests)} tests: this server takes at most {limit}")
    check_texts(tests, None, service.admission.bounds)
    if tests_hash(tests) != name:
        raise Refused(422, f"these tests have the hash {tests_hash(tests)}, not {name[:80]}")
    service.sandbox.put_tests(tests)
    return len(tests)


class _Token:
    """A dependency that refuses requests without the token."""

    def __init__(self, token: str | None) -> None:
        self._expected = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, request: Request) -> None:
        header = request.headers.get("authorization", "").encode()
        # compare_digest takes the same time for every wrong token, which tells an attacker nothing
        if self._expected is not None and not hmac.compare_digest(header, self._expected):
            raise Refused(401, "the token is missing or wrong: send `Authorization: Bearer TOKEN`")


async def _refusal_response(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code)
    if isinstance(error, UnknownTests):  # it was dropped for other test sets after the check
        error = Refused(409, str(error), missing=[error.name])
    if not isinstance(error, Refused):
        status, wait = (422, None) if isinstance(error, JobError) else (503, 5)
        error = Refused(status, str(error), retry_after=wait)
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.body, error.status, headers)


class _RequestCounter:
    """Middleware that counts requests by route and status."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                path = getattr(route, "path", "none")
                self._service.requests.add(path, str(message["status"]))
            await send(message)

        await self._app(scope, receive, noted if scope["type"] == "http" else send)
