"""The README: what it shows runs, and what it points at is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from qwq_rl.recipe import load_stage
from qwq_rl.row_format import row_mistakes
from qwq_rl.verifiers import Response, Verdict, load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "CONTRIBUTING.md"]


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


def test_the_stage_loads(tmp_path: Path) -> None:
    (tmp_path / "1_math.yaml").write_text(example("stage"))

    assert load_stage(tmp_path / "1_math.yaml").data[0].mapper == "gsm8k"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text())

    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_and_verb_exists(page: str) -> None:
    from qwq_rl.cli import SHORT, VERBS

    text, makefile = (ROOT / page).read_text(), (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^(?:`|- `)?make ([a-z-]+)", text, re.M)) | set(re.findall(r"`make ([a-z-]+)`", text))

    assert targets
    assert {target for target in targets if not re.search(rf"^{target}:", makefile, re.M)} == set()
    assert set(re.findall(r"^qwq-rl (\w+)", text, re.M)) <= {*VERBS, *SHORT}
