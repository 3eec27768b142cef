"""What is installed is all that is needed: the wheel alone checks, demonstrates and serves."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.parts import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout and unpacked where nothing else of the project is."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "fhirshield", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_wheel_has_packs_schemas_and_tables(installed: Path) -> None:
    names = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert {"fhirshield/schemas/rules.json", "fhirshield/fhir/tables/r4.json", "fhirshield/rules/nurse.yaml"} <= names
    assert not [name for name in names if name.startswith(("tests/", "tools/")) or name.endswith(".pyc")]


def test_the_wheel_demonstrates(installed: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [sys.executable, "-c", "import fhirshield; print(fhirshield.__file__)"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert where.startswith(str(installed))
    found = run(installed, tmp_path, "demo", "--smoke")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "which rule" in found.stdout


def test_the_wheel_checks_the_clusters_settings(installed: Path, tmp_path: Path) -> None:
    found = run(installed, tmp_path, "check", str(ROOT / "k8s/fhirshield.yaml"))
    assert found.returncode == 0, found.stdout + found.stderr
