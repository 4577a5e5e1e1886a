"""Processes: that all of one ends, what it cost, and what is said when it fails."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from qwq_rl.pipeline.processes import (
    Process,
    ProcessEnd,
    StageProcess,
    accelerate_command,
    environment,
    explain_failure,
)

LAUNCHER = str(Path(__file__).parent.parent / "processes" / "launcher.py")
TWO_RANKS = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
use_cpu: true
num_processes: 2
num_machines: 1
mixed_precision: 'no'
"""


def program(tmp_path: Path, code: str, launched: bool = True) -> Process:
    script = tmp_path / "program.py"
    script.write_text(code)
    launcher = [LAUNCHER] if launched else []
    return Process(
        StageProcess("train x", [sys.executable, *launcher, str(script)], tmp_path / "x" / "stage.log", launched)
    )


def end(process: Process) -> ProcessEnd:
    deadline = time.monotonic() + 60
    while (ended := process.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return ended


def test_a_mistake_of_the_user_in_an_evaluation_is_its_own_message(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "qwq_rl.evals.evaluate",
        "--model",
        str(tmp_path / "nowhere"),
        "--out",
        str(tmp_path),
    ]
    process = Process(StageProcess("evaluate x", [*command, "--sets", "tiny/final"], tmp_path / "x.log", False))

    message = explain_failure(end(process)).splitlines()[0]

    assert message.startswith("evaluate x: ")
    assert "nowhere" in message


def wait_for(process: Process, word: str) -> None:
    deadline = time.monotonic() + 30
    while word not in process.job.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_processor_time_of_all_its_processes_is_counted(tmp_path: Path) -> None:
    code = "import time\nwhile time.process_time() < 0.3: pass"
    ended = end(program(tmp_path, code))
    assert ended.status == 0
    assert 0.3 <= ended.cpu_seconds < 3


def test_only_the_work_below_the_launcher_is_asked_to_stop(tmp_path: Path) -> None:
    stop = "signal.signal(2, lambda *_: (print('saved'), sys.exit(5)))"
    process = program(tmp_path, f"import signal, sys, time\n{stop}\nprint('ready')\ntime.sleep(60)")
    wait_for(process, "ready")
    process.interrupt()
    process.interrupt()  # said once, however often it is repeated
    assert end(process).status == 1
    text = process.job.log.read_text()
    assert text.count("saved") == 1
    assert "returned non-zero exit status 5" in text


def test_a_process_without_launcher_is_asked_itself(tmp_path: Path) -> None:
    process = program(tmp_path, "import time\nprint('ready')\ntime.sleep(60)", launched=False)
    wait_for(process, "ready")
    process.interrupt()
    assert end(process).status == -signal.SIGINT


def test_what_a_dead_launcher_left_is_ended_too(tmp_path: Path) -> None:
    process = program(tmp_path, "import os, time\nprint(os.getpid(), 'ready')\ntime.sleep(60)")
    wait_for(process, "ready")
    child = int(process.job.log.read_text().split()[0])
    os.kill(process.pid, signal.SIGKILL)
    assert end(process).status == -signal.SIGKILL
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_kill_ends_what_does_not_listen(tmp_path: Path) -> None:
    process = program(tmp_path, "import signal, time\nsignal.signal(2, signal.SIG_IGN)\nprint('ready')\ntime.sleep(60)")
    wait_for(process, "ready")
    process.interrupt()
    assert process.poll() is None
    process.kill()
    assert end(process).status == -signal.SIGKILL


def test_a_mistake_of_the_user_is_given_as_it_was_said(tmp_path: Path) -> None:
    said = "print('loading')\nprint('error: rows.jsonl:3: no prompt\\nwrite one', file=sys.stderr)"
    ended = end(program(tmp_path, f"import sys\n{said}\nsys.exit(2)"))
    assert explain_failure(ended).splitlines()[:2] == ["train x: rows.jsonl:3: no prompt", "write one"]


def test_a_crash_is_quoted_without_the_launchers_own(tmp_path: Path) -> None:
    message = explain_failure(end(program(tmp_path, "print('\\rstep 1\\rstep 2')\nraise ValueError('torn')")))
    assert "train x failed (exit status 1)" in message
    assert "| step 2" in message
    assert "step 1" not in message
    assert message.count("Traceback") == 1
    assert message.endswith("whole log: " + str(tmp_path / "x" / "stage.log"))


def test_only_the_last_start_is_quoted(tmp_path: Path) -> None:
    end(program(tmp_path, "raise ValueError('the first')"))
    message = explain_failure(end(program(tmp_path, "raise ValueError('the second')")))
    assert "the second" in message
    assert "the first" not in message


def test_a_kill_is_called_one(tmp_path: Path) -> None:
    message = explain_failure(end(program(tmp_path, "import os\nos.kill(os.getpid(), 9)")))
    assert "train x was killed (SIGKILL" in message


def test_the_callers_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environment()["OMP_NUM_THREADS"] == "3"
    assert environment()["TOKENIZERS_PARALLELISM"] == "false"


@pytest.mark.slow
def test_the_rank_that_failed_first_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(TWO_RANKS)
    (tmp_path / "program.py").write_text(
        "import os, sys, time\nif os.environ['RANK'] == '1':\n  sys.exit('error: rank 1 is torn')\ntime.sleep(60)"
    )
    command = [*accelerate_command(tmp_path / "two.yaml"), str(tmp_path / "program.py")]
    ended = end(Process(StageProcess("train x", command, tmp_path / "stage.log", launched=True)))
    assert explain_failure(ended).splitlines()[0] == "train x: rank 1 is torn"
