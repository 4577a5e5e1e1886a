"""One small run of all stages, shared by the tests of this folder: importing trl alone takes seconds."""

from __future__ import annotations

import gc

import pytest
from stage_runs import STAGES, SmallRun, write_recipes

from qwq_rl.run_folder.files import RunFolder


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A cold start, an rl stage, a reward model and a general stage, each a few updates long."""
    folder = tmp_path_factory.mktemp("small")
    made = SmallRun(write_recipes(folder / "recipes"), RunFolder(folder / "run"))
    for name in STAGES:
        assert made.train(made.run, name) == 0
        gc.freeze()  # every trainer collects garbage several times, and need not look through what torch and trl are
    return made
