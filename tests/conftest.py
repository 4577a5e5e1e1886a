"""What several tests share: where the published data lies, and where the project does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def published() -> Path:
    """The folder of published data sets: $QWQ_RL_DATA, by default ../shared/data."""
    folder = Path(os.environ.get("QWQ_RL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the published data sets are not at {folder} ($QWQ_RL_DATA)")
    return folder
