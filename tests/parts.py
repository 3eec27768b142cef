"""What tests need beyond Python, and how many examples to run: seeded samples, or everything with FULL=1."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

FULL = os.environ.get("FHIRSHIELD_FULL", "") not in {"", "0"}
REQUIRE = os.environ.get("FHIRSHIELD_REQUIRE", "") == "all"
ROOT = Path(__file__).parent.parent


def count(full: int, sample: int) -> int:
    """How many examples: the count that a promise names, or a sample of it."""
    return full if FULL else sample


def need(command: str, why: str) -> str:
    """The path of a program, or a skip with a reason (a failure where nothing may skip)."""
    found = shutil.which(command) or shutil.which(command, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        missing(f"{command} is not on this machine: {why}")
    return str(found)


def missing(reason: str) -> None:
    """Skip, or fail where nothing may skip for want of a part."""
    if REQUIRE:
        pytest.fail(reason)
    pytest.skip(reason)


def data() -> Path:
    """The folder of realistic data that lies beside the project, or a skip."""
    folder = os.environ.get("FHIRSHIELD_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FHIRSHIELD_DATA names no folder with data")
    return Path(folder)
