"""The command line: help at once, mistakes as one message, exit statuses."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from qwq_rl.cli import VERBS, spoken


def qwq_rl(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qwq_rl.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=60)


def processor_seconds(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert qwq_rl(*arguments).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("check", "--help"), ("report", "--help")])
def test_help_is_there_at_once(arguments: tuple[str, ...]) -> None:
    # A busy machine takes more processor time for the same work.
    assert any(processor_seconds(*arguments) < 0.5 for _ in range(5))


def test_help_names_every_verb_and_shows_examples() -> None:
    done = qwq_rl("--help")
    assert all(f"\n  {verb} " in done.stdout for verb in VERBS)
    assert "qwq-rl run recipes/tiny" in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_without_torch(verb: str) -> None:
    code = (
        "import sys\nfrom qwq_rl.cli import main\n"
        f"try: main([{verb!r}, '--help'])\nexcept SystemExit as exit: assert not exit.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"qwq-rl {verb}" in done.stdout


def test_no_verb_shows_the_help_and_fails() -> None:
    done = qwq_rl()
    assert done.returncode == 2
    assert "usage: qwq-rl VERB" in done.stdout


def test_an_unknown_verb_suggests_the_nearest() -> None:
    done = qwq_rl("reprot", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "qwq-rl: there is no verb reprot: did you mean `qwq-rl report`?\n"


def test_version() -> None:
    assert qwq_rl("--version").stdout.startswith("qwq-rl 0.")


def test_a_mistake_is_one_message_without_a_traceback(tmp_path: Path) -> None:
    done = qwq_rl("run", str(tmp_path / "none"))
    assert done.returncode == 2
    assert str(tmp_path / "none") in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    done = qwq_rl("report", str(tmp_path / "none"))
    assert done.returncode == 3
    assert "no such folder" in done.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -u -m qwq_rl.cli --help | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_a_full_disk_is_one_message() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "qwq_rl.cli", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("error", [PermissionError(13, "denied", "runs/x"), OSError(30, "read-only", "runs/x")])
def test_a_place_that_may_not_be_written_is_one_message(error: OSError, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise error

    assert spoken(fail) == 1
    assert "runs/x" in capsys.readouterr().err
