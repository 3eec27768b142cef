"""Shared fixtures; Hypothesis is derandomised in CI, and found cases are kept as examples in the tests."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "shield", derandomize=bool(os.environ.get("CI")), deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
settings.load_profile("shield")
