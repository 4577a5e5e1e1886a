"""The image and the manifests agree with the server that they run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("fastapi", reason="the extra `sandbox-server` is not installed")
from sandbox_servers import TOKEN, Server

from qwq_rl.sandbox.http.serve import _parser

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"


def manifests() -> dict[str, Any]:
    """Every object by its kind."""
    folder = DEPLOY / "kubernetes"
    names = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    found = [one for name in names for one in yaml.safe_load_all((folder / name).read_text())]
    return {one["kind"]: one for one in found}


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    return dict(manifests()["Deployment"]["spec"]["template"]["spec"])


def image(instruction: str) -> list[str]:
    """The arguments of every such instruction of the Dockerfile."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.partition(" ")[2] for line in text.splitlines() if line.startswith(instruction + " ")]


def test_the_pod_runs_the_server_with_options_that_it_knows(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    given = _parser().parse_args(container["args"][1:])

    assert container["args"][0] == "serve"
    assert (given.require, given.host) == ("L2", "0.0.0.0")
    assert str(given.slots) == container["resources"]["limits"]["cpu"]
    assert given.slots * given.most_memory_mb + given.most_held_mb < 8 * 1024
    assert given.drain_s + 5 < pod["terminationGracePeriodSeconds"]
    assert given.port == container["ports"][0]["containerPort"] == manifests()["Service"]["spec"]["ports"][0]["port"]


def test_the_pod_has_no_rights_beyond_those_that_the_jail_needs(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]

    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert manifests()["NetworkPolicy"]["spec"]["egress"] == []
    assert [one["name"] for one in container["env"] if "value" in one] == []


def test_compose_runs_the_server_with_options_that_it_knows() -> None:
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["sandbox"]
    given = _parser().parse_args(service["command"][1:])

    assert given.slots == service["cpus"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_the_image_installs_what_the_extra_names() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["sandbox-server"]

    assert re.findall(r'"([^"]+)"', " ".join(image("RUN"))) == extra


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server made of nothing but what the image copies."""
    app = tmp_path_factory.mktemp("app")
    for source, target in (line.split() for line in image("COPY")):
        place = app / Path(target).relative_to("/app")
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, place)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(app), "QWQ_RL_SANDBOX_TOKEN": TOKEN}
    command = [sys.executable, "-m", "qwq_rl.sandbox", "serve", "--port", "0", "--slots", "1"]
    with subprocess.Popen(command, env=environment, cwd=app, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            yield Server(process, int(said.partition(", ")[0].rpartition(":")[2]), said)
        finally:
            process.terminate()
            process.wait(20)


def test_what_the_image_copies_is_enough_to_serve(container: Server, pod: dict[str, Any]) -> None:
    (one,) = pod["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container.ask("GET", one[probe]["httpGet"]["path"], token=None)[0] == 200
    status, told = container.ask("POST", "/v1/run", {"code": "print(1 + 1)"})
    assert (status, told["stdout"]) == (200, "2\n")
