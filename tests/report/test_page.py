"""The written file: well formed, alone, and carrying the run's numbers."""

from __future__ import annotations

import json
import random
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from synthetic import write_run
from synthetic_rollouts import HOSTILE

from qwq_rl.errors import RunStateError
from qwq_rl.report.build import main, write_report

VOID = {"meta", "link", "input", "br", "hr", "img"}


class Outline(HTMLParser):
    """Collects ids and loads, and fails on a tag that closes another one."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action") and value]
        if tag == "script":
            self.scripts.append(found)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def rollout_data(page: str, name: str = "rollout-data") -> list[dict[str, Any]]:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page)
    assert found
    return json.loads(found.group(1))


def test_the_page_is_well_formed_and_its_anchors_are_unique(page: Path) -> None:
    outline = Outline(page.read_text())
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    anchors = [load for load in outline.loads if load.startswith("#")]
    assert {anchor[1:] for anchor in anchors} <= set(outline.ids)


def test_the_page_loads_nothing(page: Path) -> None:
    text = page.read_text()
    assert [load for load in Outline(text).loads if not load.startswith(("#", "data:"))] == []
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!data:)", text)


def test_what_a_model_wrote_stays_text(page: Path) -> None:
    text = page.read_text()
    assert HOSTILE not in text
    # One script runs, the page's own; all others are inert data.
    assert [script for script in Outline(text).scripts if "type" not in script] == [{}]
    said = [part[1] for stage in rollout_data(text) for u in stage["updates"] for g in u["groups"] for m in g["m"] for part in m["t"]]  # fmt: skip  # noqa: E501
    assert any(HOSTILE in one for one in said)


def test_names_from_the_run_folder_are_escaped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "<b>run&", scale=0.05, prompts=2)
    line = json.loads((run / "1_math_code" / "evaluations.jsonl").read_text().splitlines()[0])
    line["domains"]["<i>new"] = line["domains"]["math"]
    (run / "1_math_code" / "evaluations.jsonl").write_text(json.dumps(line) + "\n")
    text = write_report(run).read_text()
    assert Outline(text).open == []
    assert "&lt;i&gt;new" in text
    assert "<i>new" not in text
    assert "<b>run&" not in text


def test_the_tables_hold_the_summary_figures(run: Path, page: Path) -> None:
    summary, text = json.loads((run / "summary.json").read_text()), page.read_text()
    for name, stage in summary["stages"].items():
        for area in stage["sets"].get("tiny/final", {"domains": {}})["domains"].values():
            for value in (area["sampled"]["mean"], area["greedy"]["mean"], area["pass_at_k"]["mean"]):
                assert f">{value:.2f}<" in text, name
    bound = summary["control"]["sets"]["tiny/final"]["domains"]["math"]["lower95"]
    assert f"<dt>at least</dt><dd>{bound:+.3f}</dd>" in text
    assert '<p class="figure">97 %</p>' in text


def test_every_section_is_there(page: Path) -> None:
    ids = Outline(page.read_text()).ids
    assert {"results", "learning", "training", "rollouts", "time", "judge", "provenance"} <= set(ids)


def test_the_page_says_how_many_rollouts_it_shows(page: Path) -> None:
    text = page.read_text()
    stage = rollout_data(text)[0]
    shown = sum(len(g["m"]) for u in stage["updates"] for g in u["groups"])
    assert f"1_math_code: {shown} of {stage['total']} rollouts, from 10 of 10 updates" in text


def test_the_same_run_gives_the_same_page(run: Path, page: Path, tmp_path: Path) -> None:
    assert write_report(run, out=tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_seeds_are_reported_together_and_each(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / "tiny" / f"seed-{seed}", seed, scale=0.05, prompts=2)
    outline = Outline(text := write_report(tmp_path / "tiny").read_text())
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert {"seed-0", "seed-1", "seed-2", "seed-2-rollouts"} <= set(outline.ids)
    means = [
        json.loads((tmp_path / "tiny" / f"seed-{seed}" / "summary.json").read_text())["stages"]["2_general"]["sets"][
            "tiny/final"
        ]["domains"]["math"]["sampled"]["mean"]
        for seed in range(3)
    ]
    each = " · ".join(f"{value:.2f}" for value in means)
    assert f'<span class="figure">{sum(means) / 3:.2f}</span> <span class="ci">{each}</span>' in text


def test_two_runs_are_compared_by_prompt(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", 1, prompts=2)
    text = write_report(run, other, tmp_path / "both.html").read_text()
    assert Outline(text).open == []
    assert "other − tiny<small>paired by prompt</small>" in text
    assert "<dt>prompts</dt><dd>60</dd>" in text
    assert "math, other" in text


def strip(run: Path, *names: str) -> None:
    for name in names:
        target = run / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()


PARTS = (
    ("summary.json", "pipeline.json"),
    ("evaluations", "summary.json"),
    ("1_control", "summary.json"),
    ("2_general", "2_reward_model", "summary.json", "evaluations"),
    ("1_math_code", "1_control", "2_general", "2_reward_model", "summary.json", "pipeline.json", "evaluations"),
)


@pytest.mark.parametrize("parts", PARTS, ids=" ".join)
def test_what_is_missing_is_said_and_the_rest_is_shown(parts: tuple[str, ...], tmp_path: Path) -> None:
    run = write_run(tmp_path / "half", scale=0.05, prompts=2)
    strip(run, *parts)
    text = write_report(run).read_text()
    assert Outline(text).open == []
    assert "Not on this page." in text
    assert 'class="line c0 line"' in text


def test_a_stage_that_has_just_begun_is_shown(tmp_path: Path) -> None:
    stage = tmp_path / "new" / "0_cold_start"
    stage.mkdir(parents=True)
    (stage / "resolved.yaml").write_text("kind: sft\n")
    text = write_report(tmp_path / "new").read_text()
    assert Outline(text).open == []
    assert "Nothing has been evaluated yet." in text


def test_the_page_stays_small_whatever_the_run_wrote(tmp_path: Path) -> None:
    run = write_run(tmp_path / "long", prompts=2)
    for path in run.glob("*/rollouts/*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line["segments"][0]["text"] = "<é>" * 20_000
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    size = write_report(run).stat().st_size
    assert 2_000_000 < size < 4_000_000


def thin(value: Any, draw: random.Random) -> Any:
    """The value with some of its fields absent and some null."""
    if isinstance(value, list):
        return [thin(item, draw) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: item for key, item in value.items() if draw.random() > 0.02}
    return {key: None if draw.random() < 0.02 else thin(item, draw) for key, item in kept.items()}


@pytest.mark.parametrize("seed", range(5))
def test_no_absent_or_null_field_breaks_the_page(seed: int, tmp_path: Path) -> None:
    draw, run = random.Random(seed), write_run(tmp_path / "thin", scale=0.05, prompts=2)
    for path in sorted(run.rglob("*.json")):
        path.write_text(json.dumps(thin(json.loads(path.read_text()), draw)))
    for path in sorted(run.rglob("*.jsonl")):
        lines = [json.dumps(thin(json.loads(line), draw)) for line in path.read_text().splitlines()]
        path.write_text("\n".join(lines) + "\n")
    assert Outline(write_report(run).read_text()).open == []


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "torn", scale=0.05, prompts=2)
    with (run / "2_general" / "metrics.jsonl").open("a") as file:
        file.write('{"update": 99, "rewa')
    assert Outline(write_report(run).read_text()).open == []


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "broken", scale=0.05, prompts=2)
    metrics = run / "2_general" / "metrics.jsonl"
    metrics.write_text("oops\n" + metrics.read_text())
    with pytest.raises(RunStateError, match=r"2_general/metrics\.jsonl:1: this line is damaged"):
        write_report(run)


def test_a_folder_that_is_no_run_is_refused_with_advice(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunStateError, match="is no run"):
        write_report(tmp_path)
    with pytest.raises(RunStateError, match="no such folder"):
        write_report(tmp_path / "nothing")
    with pytest.raises(RunStateError, match=f"give the run's folder: qwq-rl report {run}"):
        write_report(run / "0_cold_start")


def test_the_command_finds_a_run_by_name_and_prints_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs" / "mine", scale=0.05, prompts=2)
    monkeypatch.chdir(tmp_path)
    assert main(["mine"]) == 0
    printed = Path(capsys.readouterr().out.strip())
    assert printed == Path("runs/mine/report.html")
    assert printed.exists()
