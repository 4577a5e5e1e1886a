"""The README: what it shows runs, and what it points at is there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from recorded_run import recorded_run

from qwq_rl.config.recipe import load_stage
from qwq_rl.data.row import row_mistakes
from qwq_rl.verifiers import Response, Verdict, load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "CONTRIBUTING.md"]
BENCHMARKS = "benchmarks/README.md"


def example(name: str) -> str:
    (text,) = re.findall(rf"<!-- example: {name} -->\n```\w+\n(.*?)```", README, re.S)
    return str(text)


@pytest.mark.parametrize(("answer", "score"), [("44", 1.0), ("43", 0.0), ("40", 0.0), ("many", 0.0)])
def test_the_verifier_judges_its_row(tmp_path: Path, answer: str, score: float) -> None:
    (tmp_path / "even.py").write_text(example("verifier"))
    row = json.loads(example("row"))

    verdict = load(f"{tmp_path}/even.py:verify", {})(row, Response(answer, answer))

    assert row_mistakes(row, "rl") == []
    assert isinstance(verdict, Verdict)
    assert verdict.score == score


def test_the_commands_run_as_they_stand(tmp_path: Path) -> None:
    """In the order of the page, in a folder with the verifier above them and a run such as `make quickstart` leaves."""
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "even.py").write_text(example("verifier"))
    recorded_run(tmp_path / "runs" / "tiny", tmp_path / "trained.jsonl")
    program = tmp_path / "bin" / "qwq-rl"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom qwq_rl.cli import main\nraise SystemExit(main())\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    said = {}
    for name, script in re.findall(r"<!-- commands: (\w+) -->\n```bash\n(.*?)```", README, re.S):
        done = subprocess.run(
            ["bash", "-ec", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        said[name] = done.stdout + done.stderr

    scores = [json.loads(line)["score"] for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert (list(said), scores) == (["verify", "audit", "rescore"], [1.0, 0.0])
    assert "2 of 2 proven" in said["audit"]
    assert "math on 8 rollouts of runs/tiny: 0 disagreements" in said["rescore"]


def test_the_stage_loads(tmp_path: Path) -> None:
    (tmp_path / "1_math.yaml").write_text(example("stage"))

    assert load_stage(tmp_path / "1_math.yaml").data[0].mapper == "gsm8k"


@pytest.mark.parametrize("page", [*PAGES, BENCHMARKS])
def test_every_link_leads_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text())

    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_the_page_on_benchmarks_names_every_script() -> None:
    text = (ROOT / BENCHMARKS).read_text()

    assert [file.name for file in sorted((ROOT / "benchmarks").glob("*.py")) if f"`{file.name}" not in text] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_and_verb_exists(page: str) -> None:
    from qwq_rl.cli import SHORT, VERBS

    text, makefile = (ROOT / page).read_text(), (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^(?:`|- `)?make ([a-z-]+)", text, re.M)) | set(re.findall(r"`make ([a-z-]+)`", text))

    assert targets
    assert {target for target in targets if not re.search(rf"^{target}:", makefile, re.M)} == set()
    assert set(re.findall(r"^qwq-rl (\w+)", text, re.M)) <= {*VERBS, *SHORT}
