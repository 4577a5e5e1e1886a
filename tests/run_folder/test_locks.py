"""One process at a time: real processes, real kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qwq_rl.errors import RunStateError
from qwq_rl.run_folder.locks import hold, holder

HOLD = """
import subprocess, sys, time, os
from pathlib import Path
from qwq_rl.run_folder.locks import hold
with hold(Path(sys.argv[1]), "the trainer of 1_math_code"):
    {inside}
    print("held", flush=True)
    time.sleep(60)
"""


def start_holder(path: Path, inside: str = "pass") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(inside=inside), str(path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    while process.stdout.readline() != "held\n":
        assert process.poll() is None
    return process


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_free_after_the_block(tmp_path: Path) -> None:
    path = tmp_path / "stage" / "stage.lock"
    with hold(path, "the trainer of a"):
        pass
    assert holder(path) is None
    with hold(path, "the trainer of a"):
        assert holder(path) is not None


def test_an_absent_lock_is_free(tmp_path: Path) -> None:
    assert holder(tmp_path / "stage.lock") is None


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "stage.lock"
    process = start_holder(path)
    try:
        with pytest.raises(RunStateError) as caught, hold(path, "the trainer of 1_math_code"):
            pass
    finally:
        end(process)
    message = str(caught.value)
    assert f"kill {process.pid}" in message
    assert "the trainer of 1_math_code is still alive" in message
    assert time.strftime("since %Y-%m-%d") in message
    assert "left by a launcher" not in message


def test_a_killed_holder_leaves_nothing_to_remove(tmp_path: Path) -> None:
    path = tmp_path / "stage.lock"
    end(start_holder(path))
    assert path.read_text() != ""
    assert holder(path) is None
    with hold(path, "the next"):
        pass


@pytest.mark.parametrize(
    "inside",
    [
        "subprocess.Popen(['sleep', '60'], close_fds=False, stdout=subprocess.DEVNULL)",
        "os.fork() or (os.close(1), time.sleep(60))",
        "os.fork() or (os.close(1), os.fork(), time.sleep(60))",
    ],
    ids=["child started with exec", "forked child", "forked grandchild"],
)
def test_a_child_does_not_keep_the_lock_of_a_dead_holder(tmp_path: Path, inside: str) -> None:
    path = tmp_path / "stage.lock"
    process = start_holder(path, inside)
    end(process)
    try:
        wait_until(lambda: holder(path) is None)
        os.killpg(process.pid, 0)  # raises where no child outlived the holder
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_an_orphan_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "stage.lock"
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], sys.argv[2]])"
    launcher = subprocess.Popen(
        [sys.executable, "-c", start, HOLD.format(inside="pass"), str(path)], stdout=subprocess.DEVNULL
    )
    wait_until(lambda: holder(path) is not None)
    launcher.kill()
    launcher.wait()
    orphan = holder(path)
    assert orphan is not None
    try:
        with pytest.raises(RunStateError, match=f"left by a launcher that died: stop it with `kill {orphan.pid}`"):
            hold(path, "x").__enter__()
    finally:
        os.kill(orphan.pid, signal.SIGKILL)


def test_a_forked_child_that_leaves_the_block_releases_nothing(tmp_path: Path) -> None:
    path = tmp_path / "stage.lock"
    child = 0
    try:
        with hold(path, "the trainer of a"):
            child = os.fork()
            if child:
                os.waitpid(child, 0)
                assert holder(path) is not None
    finally:
        if child == 0:
            os._exit(0)
