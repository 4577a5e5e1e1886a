"""A headless Chromium, driven over the WebDriver protocol by plain HTTP on the loopback interface."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


@dataclass(frozen=True)
class Browser:
    """One session; `address` is its URL at the driver."""

    address: str

    def send(self, command: str, body: dict[str, Any]) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}/{command}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path, anchor: str = "") -> None:
        self.send("url", {"url": "about:blank"})
        self.send("url", {"url": f"{page.resolve().as_uri()}{anchor}"})

    def run(self, script: str) -> Any:
        return self.send("execute/sync", {"script": script, "args": []})

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.send("goog/cdp/execute", {"cmd": command, "params": parameters})

    def log(self) -> list[dict[str, Any]]:
        """Console messages and failed or refused loads since the last call."""
        return self.send("se/log", {"type": "browser"})


@contextmanager
def chrome() -> Iterator[Browser]:
    """A session of Chromium; skips the test where it is not installed."""
    binary, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("chromium and chromedriver are not on PATH")
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = next(m.group(1) for line in process.stdout if (m := re.search(r"successfully on port (\d+)", line)))
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            root = Browser(f"http://127.0.0.1:{port}")
            options = {"binary": binary, "args": [*SWITCHES, f"--user-data-dir={profile}"]}
            wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            session = root.send("session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
            browser = Browser(f"{root.address}/session/{session}")
            try:
                yield browser
            finally:
                request = urllib.request.Request(browser.address, method="DELETE")
                urllib.request.urlopen(request, timeout=60).close()
    finally:
        process.terminate()
        process.wait(timeout=20)
