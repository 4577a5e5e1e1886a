"""What `make install` says before it does anything: a missing Python, and how much it is about to download."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TORCH = "torch==2.13.0"
linux_only = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="elsewhere pip takes the CPU build anyway"
)


def say(script: str, *arguments: str | Path, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        ["sh", ROOT / ".ci" / script, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


def test_a_missing_python_is_named_with_its_packages(tmp_path: Path) -> None:
    status, said = say("venv", "no-such-python", tmp_path / "venv")

    assert status == 1
    assert said == "There is no no-such-python here. Debian and Ubuntu: sudo apt install python3 python3-venv\n"


def test_an_old_python_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.2" || exit 1\n')
    old.chmod(0o755)

    status, said = say("venv", old, tmp_path / "venv")

    assert status == 1
    assert said.startswith(f"Python 3.11 or newer is needed, and {old} is Python 3.9.2;")


def test_a_python_without_venv_names_the_package(tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1 ;; *) exec {sys.executable} "$@" ;; esac\n')
    bare.chmod(0o755)
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"

    status, said = say("venv", bare, tmp_path / "venv")

    assert status == 1
    assert said.endswith(f"Debian and Ubuntu: sudo apt install {package}\n")


@pytest.mark.slow
def test_a_half_made_environment_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").write_text("")

    status, _ = say("venv", sys.executable, tmp_path / "venv")

    assert status == 0
    subprocess.run([tmp_path / "venv/bin/python", "-m", "pip", "--version"], check=True, capture_output=True)


@pytest.fixture
def bare_pip(tmp_path: Path) -> Path:
    """A pip beside a Python that has no torch."""
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "pip").write_text(f'#!/bin/sh\nexec {sys.executable} -m pip "$@"\n')
    for name in ("python", "pip"):
        (tmp_path / name).chmod(0o755)
    return tmp_path / "pip"


@linux_only
def test_without_a_cpu_build_the_size_is_said_first(bare_pip: Path, tmp_path: Path) -> None:
    status, said = say("which-torch", bare_pip, TORCH, PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS=str(tmp_path))

    assert status == 0
    assert "a download of 2.7 GB" in said
    assert "PIP_EXTRA_INDEX_URL" in said


@linux_only
@pytest.mark.parametrize("form", ["{}", "file://{}", "/nowhere {}"])
def test_a_cpu_build_on_disk_is_taken_in_silence(bare_pip: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").touch()

    said = say("which-torch", bare_pip, TORCH, PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS=form.format(tmp_path))

    assert said == (0, "")


@linux_only
def test_a_cpu_index_is_taken_in_silence(bare_pip: Path) -> None:
    index = "https://example.org/whl/cpu"

    assert say("which-torch", bare_pip, TORCH, PIP_CONFIG_FILE=os.devnull, PIP_EXTRA_INDEX_URL=index) == (0, "")
