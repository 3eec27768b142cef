"""Shared fixtures; Hypothesis is derandomised in CI, and found cases are kept as examples in the tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.tally import lines

settings.register_profile(
    "shield", derandomize=bool(os.environ.get("CI")), deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
settings.load_profile("shield")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of what was tried against the shield."""
    for line in lines():
        terminalreporter.write_line(line)
