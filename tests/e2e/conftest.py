"""Real servers for the tests: HAPI FHIR and Keycloak, started once a run by the project's own scripts, stopped by their pid."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from fhirshield.demo.patients import generate
from tests.parts import ROOT, missing, need


def _start(script: str, *arguments: str) -> tuple[int, str]:
    for command in ("java", "mvn", "bash"):
        need(command, f"{script} needs it")
    path = ROOT / "tools/servers" / script / "start"
    found = subprocess.run([path, *arguments], capture_output=True, text=True, check=False, timeout=900)
    if found.returncode:
        missing(f"{script} did not start: {found.stderr[-500:]}")
    pid, url = found.stdout.split()
    return int(pid), url


def _stop(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGTERM)


@pytest.fixture(scope="session")
def hapi() -> Iterator[str]:
    """The base URL of a HAPI FHIR server that holds the demo's patients (FHIRSHIELD_HAPI names one that runs already)."""
    running = os.environ.get("FHIRSHIELD_HAPI")
    pid, url = (0, running) if running else _start("hapi")
    try:
        load(url, generate(12))
        yield url
    finally:
        if pid:
            _stop(pid)


@pytest.fixture(scope="session")
def keycloak() -> Iterator[str]:
    """The URL of the realm ``tests`` (FHIRSHIELD_KEYCLOAK names one that runs already)."""
    running = os.environ.get("FHIRSHIELD_KEYCLOAK")
    if running:
        yield running
        return
    for command in ("unzip", "curl"):
        need(command, "keycloak's start script needs it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pid, url = _start("keycloak", str(port))
    try:
        yield url
    finally:
        _stop(pid)


def load(url: str, resources: list[dict[str, Any]]) -> None:
    """Put resources by one transaction."""
    entries = [{"resource": r, "request": {"method": "PUT", "url": f"{r['resourceType']}/{r['id']}"}} for r in resources]
    post(url, {"resourceType": "Bundle", "type": "transaction", "entry": entries})


def put(url: str, resource: dict[str, Any]) -> None:
    """PUT one resource under its own id."""
    target = f"{url}/{resource['resourceType']}/{resource['id']}"
    headers = {"Content-Type": "application/fhir+json"}
    request = urllib.request.Request(target, json.dumps(resource).encode(), headers, method="PUT")
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def post(url: str, body: dict[str, Any]) -> Any:
    """POST one resource; the parsed answer, decimals as text."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/fhir+json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.loads(answer.read(), parse_float=str)
