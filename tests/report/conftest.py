"""One made-up run for all tests of the page; a test that changes a run copies or writes its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import write_run

from qwq_rl.report.build import write_report


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of five stages."""
    return write_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="session")
def page(run: Path) -> Path:
    """Its page."""
    return write_report(run)
