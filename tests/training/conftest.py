"""A cold start that the stages of this folder's slow tests begin from."""

from __future__ import annotations

import pytest
from stage_runs import SmallRun, write_recipes

from qwq_rl.run_folder.files import RunFolder


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """The recipes, and a run of them whose first stage is trained."""
    folder = tmp_path_factory.mktemp("small")
    made = SmallRun(write_recipes(folder / "recipes"), RunFolder(folder / "run"))
    assert made.train(made.run, "0_cold_start") == 0
    return made
