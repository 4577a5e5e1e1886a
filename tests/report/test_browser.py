"""The page in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chrome import Browser, chrome


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chrome() as session:
        yield session


def text(browser: Browser, selector: str) -> str:
    return browser.run(f"return document.querySelector({selector!r}).innerText")


def count(browser: Browser, selector: str) -> int:
    return browser.run(f"return document.querySelectorAll({selector!r}).length")


def test_the_page_opens_without_an_error_and_fits_a_phone(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.log() == []
    assert browser.run("return document.title") == "tiny"
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    browser.devtools("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    browser.devtools("Emulation.clearDeviceMetricsOverride")


def test_the_address_selects_rollouts_and_hostile_text_is_shown_as_text(browser: Browser, page: Path) -> None:
    browser.open(page, "#rollouts/1_math_code/2")
    assert "</script><script>document.title='broken'</script><img src=x" in text(browser, ".groups")
    assert browser.run("return document.title") == "tiny"
    assert count(browser, ".groups img, .groups script") == 0
    assert browser.log() == []


def test_the_controls_filter_and_step(browser: Browser, page: Path) -> None:
    browser.open(page, "#rollouts/1_math_code/3")
    assert count(browser, ".mate") == 24
    browser.run("document.querySelector('[data-role=verdict-wrong]').click()")
    shown = browser.run("return [...document.querySelectorAll('.mate header span')].map(node => node.innerText)")
    assert {word for word in shown if not word.startswith("reward")} == {"✗ wrong"}
    assert browser.run("return location.hash") == "#rollouts/1_math_code/3//wrong"
    browser.run(
        "const s = document.querySelector('[data-role=step]'); s.value = 0; s.dispatchEvent(new Event('input'))"
    )
    assert browser.run("return location.hash") == "#rollouts/1_math_code/1//wrong"
    browser.run(
        "const s = document.querySelector('[data-role=area]'); s.value = 'code'; s.dispatchEvent(new Event('change'))"
    )
    names = browser.run("return [...document.querySelectorAll('.group b')].map(node => node.innerText)")
    assert names
    assert all(name.startswith("code/") for name in names)


def test_thinking_and_special_tokens_are_set_apart(browser: Browser, page: Path) -> None:
    browser.open(page, "#rollouts/1_math_code/1/math/correct")
    assert text(browser, ".mate .think").endswith("\n") or "+" in text(browser, ".mate .think")
    assert text(browser, ".mate .answer").strip().startswith("\\boxed{")
    assert text(browser, ".mate .token:last-child") == "<|im_end|>"


def test_a_chart_tells_exact_values_to_the_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run(
        "const plot = document.querySelector('#learning .plot'); plot.focus();"
        "plot.dispatchEvent(new KeyboardEvent('keydown', {key: 'End', bubbles: true}))"
    )
    tip = text(browser, "#tip")
    assert "general, update 6" in tip
    assert "math, final set" in tip


def test_families_unfold_and_the_axis_switches(browser: Browser, page: Path) -> None:
    browser.open(page)
    hidden = "return document.querySelector('tr.families').hidden"
    assert browser.run(hidden) is True
    browser.run("document.querySelector('button.fold').click()")
    assert browser.run(hidden) is False
    browser.run("document.querySelector('[data-toggle=axis] input[value=cpu]').click()")
    shown = "return getComputedStyle(document.querySelector('div[data-axis={}]')).display"
    assert browser.run(shown.format("cpu")) == "block"
    assert browser.run(shown.format("updates")) == "none"
