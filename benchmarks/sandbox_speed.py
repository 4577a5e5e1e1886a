"""What a judged run costs, side by side with a bare interpreter and with what a server without isolation does.

    python benchmarks/sandbox_speed.py [--runs 1000] [--growth 10000] [--json FILE]

Everything is judged by CPU seconds of all processes, the caller included, since wall time says more about what else
the machine does. The rows repeat in turns, idle and with busy processes beside, so that drift hits all of them alike.
"bare" is `python -I -S -E` of the same interpreter, the cheapest way to run a program without any isolation; "server"
stands in for a code server without isolation, and does what those do a run: a JSON request over HTTP, a new folder, the
program in a file, a shell that runs `python FILE`, the output back as JSON. It is measured with three Pythons, since
what stands in site-packages decides what a start costs: the interpreter of this benchmark with its packages
("installed"), the same in an empty virtual environment ("empty"), and the system's own ("system").
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from qwq_rl.sandbox import Job, Limits, LocalSandbox

PYTHON = os.path.realpath(sys.executable)
SYSTEM_PYTHON = "/usr/bin/python3"
PROGRAM = "a, b = map(int, input().split())\nprint(a + b)"
TICK = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure everything that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=600, help="runs a row and turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--growth", type=int, default=0, help="so many runs to look for leaks after (10000 is the claim)"
    )
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    given = parser.parse_args()
    figures: dict[str, Any] = {"interpreter": sys.version.split()[0], "cores": len(os.sched_getaffinity(0))}
    for name, busy in (("idle", 0), ("busy", figures["cores"])):
        with beside(busy):
            figures[name] = costs(given.runs, given.turns)
        for row, cost in figures[name].items():
            print(f"{name:5} {row:28} {cost:9.3f}", flush=True)
    figures["false time-outs of 12"] = false_time_outs()
    print("false time-outs, 12 programs of 0.5 s CPU in flight:", figures["false time-outs of 12"], flush=True)
    figures["killed"] = killed()
    print("workers killed under load:", figures["killed"], flush=True)
    if given.growth:
        figures["growth"] = growth(given.growth)
        print(f"after {given.growth} runs:", figures["growth"], flush=True)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


def costs(runs: int, turns: int) -> dict[str, float]:
    """Median CPU milliseconds a run of each row, and the ratios, taken turn by turn."""
    few = max(20, runs // 10)
    with LocalSandbox() as sandbox, server() as url, tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=False, symlinks=True)
        pythons = {"installed": PYTHON, "empty": f"{folder}/bin/python"}
        pythons |= {"system": SYSTEM_PYTHON} if os.path.exists(SYSTEM_PYTHON) else {}
        found: dict[str, list[float]] = {
            row: [] for row in ("sandbox", "bare", *(f"server, {name}" for name in pythons))
        }
        sandbox.judge(jobs(50, "warm"))
        level = sandbox.isolation
        for python in pythons.values():
            served(url, python)
        for turn in range(turns):
            found["sandbox"].append(cpu_of(lambda turn=turn: judged(sandbox, runs, turn), sandbox) / runs)
            found["bare"].append(cpu_of(lambda: [bare() for _ in range(few)]) / few)
            for name, python in pythons.items():
                cost = cpu_of(lambda python=python: [served(url, python) for _ in range(few)]) / few
                found[f"server, {name}"].append(cost)
    ratios = {
        f"sandbox / {row}": statistics.median(a / b for a, b in zip(found["sandbox"], found[row], strict=True))
        for row in found
        if row != "sandbox"
    }
    named = {
        f"{row} ms{f' ({level})' if row == 'sandbox' else ''}": statistics.median(found[row]) * 1000 for row in found
    }
    return named | ratios


def jobs(count: int, name: str) -> list[Job]:
    """Programs that differ, so that nothing is answered from memory."""
    return [Job(f"{n}", f"{PROGRAM}  # {name} {n}", [{"input": f"{n} 3", "output": f"{n + 3}"}]) for n in range(count)]


def judged(sandbox: LocalSandbox, runs: int, turn: int) -> None:
    """Have so many programs judged; all must be accepted."""
    results = sandbox.judge(jobs(runs, f"turn {turn}"))
    assert all(result.verdict == "accepted" for result in results)


def bare() -> None:
    """Run the program in an interpreter of its own, without walls."""
    command = [PYTHON, "-I", "-S", "-E", "-c", PROGRAM]
    assert subprocess.run(command, input=b"2 3", capture_output=True, check=True).stdout == b"5\n"


def served(url: str, python: str) -> None:
    """Run the program through a server that starts `python` for it."""
    asked = json.dumps({"python": python, "code": PROGRAM, "stdin": "2 3"}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, asked)) as reply:
        assert json.load(reply)["stdout"] == "5\n"


class Handler(BaseHTTPRequestHandler):
    """A server that runs programs as the known ones do: a file, a shell, an interpreter, no walls."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Run the program of one request."""
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "main.py").write_text(given["code"])
            shell = ["/bin/bash", "-c", f"{given['python']} {folder}/main.py"]
            ended = subprocess.run(shell, input=given["stdin"], capture_output=True, text=True, cwd=folder, check=False)
        body = json.dumps({"status": "Success", "stdout": ended.stdout, "stderr": ended.stderr}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing of requests."""
        return


@contextmanager
def server() -> Iterator[str]:
    """In a thread of this process, whose CPU time is counted."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/"
        running.shutdown()


def cpu_of(action: Callable[[], object], sandbox: LocalSandbox | None = None) -> float:
    """CPU seconds of this process, its ended children, and a sandbox's processes with all of theirs."""
    before = spent(sandbox)
    action()
    return spent(sandbox) - before


def spent(sandbox: LocalSandbox | None) -> float:
    """CPU seconds so far, of all that `cpu_of` counts."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for pid in processes(sandbox) if sandbox else []:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:15])) / TICK
    return total


def processes(sandbox: LocalSandbox) -> list[int]:
    """The launcher and the fork server; children that have ended count with it."""
    assert sandbox._link is not None
    launcher = sandbox._link.process.pid
    return [launcher, *map(int, Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split())]


@contextmanager
def beside(count: int) -> Iterator[None]:
    """Busy processes, while this lasts."""
    busy = [subprocess.Popen([PYTHON, "-I", "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def false_time_outs() -> dict[str, int]:
    """Of twelve honest programs at once: under the sandbox's CPU limit, and under a wall limit four times as long."""
    code = "import time\nwhile time.process_time() < 0.5: pass\nprint({})"
    limits = Limits(cpu_s=0.6, wall_s=60)
    twelve = [Job(str(n), code.format(n), [{"input": "", "output": str(n)}], limits=limits) for n in range(12)]
    with LocalSandbox() as sandbox:
        ours = sum(result.verdict != "accepted" for result in sandbox.judge(twelve))
    running = [subprocess.Popen([PYTHON, "-c", job.code], stdout=subprocess.DEVNULL) for job in twelve]
    deadline, theirs = time.monotonic() + 2.0, 0
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            theirs += 1
            process.kill()
            process.wait()
    return {"CPU limit of 0.6 s": ours, "wall limit of 2 s": theirs}


def killed() -> dict[str, int]:
    """Kill the fork server four times under a load: every job must be answered once, none wrongly."""
    right, wrong = jobs(300, "right"), [Job(f"-{job.id}", f"{job.code} - 1", job.tests) for job in jobs(300, "wrong")]
    wrong = [Job(job.id, job.code.replace("a + b", "a - b - 9"), job.tests) for job in wrong]
    with LocalSandbox() as sandbox:
        sandbox.isolation  # noqa: B018  (starts it)
        results: list[Any] = []
        worker = threading.Thread(target=lambda: results.extend(sandbox.judge_each([*right, *wrong])))
        worker.start()
        for _ in range(4):
            time.sleep(0.8)
            if sandbox._link is not None:
                os.kill(sandbox._link.process.pid, signal.SIGKILL)
        worker.join()
        expected = {job.id: "accepted" for job in right} | {job.id: "wrong_answer" for job in wrong}
        said = [(result.id, result.verdict) for _, result in results]
        faults = sum(verdict == "sandbox_error" for _, verdict in said)
        wrongly = sum(verdict not in (expected[name], "sandbox_error") for name, verdict in said)
        died = sandbox.load.fork_servers_died
    return {"jobs": len(expected), "answered": len({name for name, _ in said}), "twice": len(said) - len(set(said)),
            "wrongly": wrongly, "faults": faults, "fork servers killed": died}  # fmt: skip


def growth(runs: int) -> dict[str, int]:
    """What there is more of after many runs: descriptors here and in the fork server, processes, KiB, files, groups."""
    with LocalSandbox(remember=0) as sandbox:
        sandbox.judge(jobs(500, "warm"))
        before = held(sandbox)
        for turn in range(runs // 500):
            judged(sandbox, 500, turn)
        after = held(sandbox)
    return {name: after[name] - before[name] for name in before}


def held(sandbox: LocalSandbox) -> dict[str, int]:
    """What there is now of all that `growth` looks at."""
    server = processes(sandbox)[-1]
    status = Path(f"/proc/{server}/status").read_text()
    return {
        "descriptors here": len(os.listdir("/proc/self/fd")),
        "descriptors with the fork server": len(os.listdir(f"/proc/{server}/fd")),
        "children and zombies": len(Path(f"/proc/{server}/task/{server}/children").read_text().split()),
        "fork server KiB": int(status.split("VmRSS:")[1].split()[0]),
        "caller KiB": int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]),
        "temporary files": len(list(Path(tempfile.gettempdir()).glob("qwq-sandbox*"))),
    }


if __name__ == "__main__":
    main()
