"""The seconds of a stage: over restarts, without what is not training."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from qwq_rl.training.clock import Clock, process_cpu_seconds


def work(seconds: float) -> None:
    """Use so many CPU seconds, however busy the machine."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_it_counts_on_top_of_earlier_processes() -> None:
    clock = Clock(base_cpu=100.0, base_wall=200.0)

    work(0.05)

    assert 100.05 <= clock.cpu_seconds() < 101
    assert clock.wall_seconds() >= 200.05


def test_waiting_takes_wall_time_and_no_cpu_time() -> None:
    clock = Clock()

    time.sleep(0.1)

    assert clock.wall_seconds() >= 0.1
    assert clock.cpu_seconds() < 0.05


def test_what_is_paused_is_not_counted() -> None:
    clock = Clock()

    with clock.paused():
        work(0.1)
        inside = clock.cpu_seconds(), clock.wall_seconds()
        again = clock.cpu_seconds(), clock.wall_seconds()
    work(0.03)

    assert inside == again
    assert inside[0] < 0.02
    assert 0.03 <= clock.cpu_seconds() < 0.1
    assert clock.wall_seconds() >= 0.03


def test_it_goes_on_after_an_error_in_a_pause() -> None:
    clock = Clock()

    with pytest.raises(OSError, match="full"), clock.paused():
        raise OSError("full")
    work(0.02)

    assert clock.cpu_seconds() >= 0.02


def test_the_children_that_have_ended_count() -> None:
    before = process_cpu_seconds()

    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.2: pass"], check=True)

    assert process_cpu_seconds() - before >= 0.2
