"""What several tests share: where the project and the published data lie, and one small run of all stages."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from stage_runs import SmallRun

# A runner in the background has SIGINT ignored, and so would every process that a test of Ctrl-C starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before any test imports torch or the Hub's client: one thread is fastest for tiny models, and no test reaches out.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# A busy machine takes its time over an example, which is no failure.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_finish() -> None:
    """What is imported by now stays: a collection of garbage need not look through torch and trl, at 0.3 s a time."""
    gc.freeze()


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A small run for all tests: cold start, rl stage, reward model and general stage, a few updates each."""
    from stage_runs import STAGES, SmallRun, write_recipes  # imports torch, which most tests need not

    from qwq_rl.run_folder.files import RunFolder

    folder = tmp_path_factory.mktemp("small")
    made = SmallRun(write_recipes(folder / "recipes"), RunFolder(folder / "run"))
    for name in STAGES:
        assert made.train(made.run, name) == 0
        gc.freeze()  # every trainer collects garbage several times, and need not look through what torch and trl are
    return made


@pytest.fixture(scope="session")
def published() -> Path:
    """The folder of published data sets: $QWQ_RL_DATA, by default ../shared/data."""
    folder = Path(os.environ.get("QWQ_RL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the published data sets are not at {folder} ($QWQ_RL_DATA)")
    return folder
