"""The image: built without a Docker engine, run as nobody, from a base made here where the registry's is out of reach."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts import FULL, ROOT, missing, need

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fhirshield/image"


WRITABLE = """
import os
for folder, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/dev", "/sys")]
    for path in [folder, *(os.path.join(folder, name) for name in files)]:
        if os.access(path, os.W_OK) and not os.path.islink(path):
            print(path)
"""


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        missing("hadolint has no wheel for this machine")
    found = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def buildah(*arguments: str, timeout: float = 600) -> str:
    command = ["buildah", "--storage-driver", "vfs", "--root", str(CACHE / "store"), "--runroot", str(CACHE / "run"), *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-2000:]
    return found.stdout.strip()


@pytest.mark.skipif(not FULL, reason="the image is built with FULL=1")
def test_the_image_is_built_and_runs_as_nobody(tmp_path: Path) -> None:
    for program in ("buildah", "debootstrap"):
        need(program, "the image is built with it")
    subprocess.run([ROOT / "tools/image/base", CACHE / "base"], check=True, timeout=900)
    if "localhost/python" not in buildah("images"):
        base = buildah("from", "scratch")
        buildah("add", "-q", base, str(CACHE / "base/root"), "/")
        buildah("commit", "-q", base, "localhost/python:3.11")
        buildah("rm", base)
    context = tmp_path / "context"
    context.mkdir()
    for name in ("Dockerfile", "requirements.lock", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, context)
    for name in ("fhirshield", "rules"):
        shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
    shared = [f"--volume={path}:{path}:ro" for path in ("/etc/pip.conf", "/etc/ssl/certs") if Path(path).exists()]
    buildah(
        "build", "--isolation", "chroot", "--build-arg", "BASE=localhost/python:3.11", *shared, "-q", "-t", "fhirshield:tested", str(context),
        timeout=900,
    )  # fmt: skip
    told = json.loads(buildah("inspect", "--type", "image", "fhirshield:tested"))["OCIv1"]["config"]
    assert told["User"] == "10001:10001" and told["Entrypoint"] == ["/venv/bin/fhirshield"]
    container = buildah("from", "fhirshield:tested")
    try:
        run = ("run", "--isolation", "chroot", "--user", "10001:10001", container, "--")
        assert buildah(*run, "/venv/bin/fhirshield", "--version").startswith("fhirshield ")
        assert "which rule" in buildah(*run, "/venv/bin/fhirshield", "demo", "--smoke")
        found = set(buildah(*run, "/venv/bin/python", "-c", WRITABLE).splitlines())
        assert {path for path in found if not path.startswith(("/tmp", "/var/tmp", "/run/lock"))} == set()
    finally:
        buildah("rm", container)
