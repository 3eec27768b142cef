"""OperationOutcome (FHIR R4 §2.28): how every refusal is told."""

from __future__ import annotations

from typing import Any


def outcome(code: str, diagnostics: str, *, severity: str = "error") -> dict[str, Any]:
    """One issue; ``code`` is from issue-type, ``diagnostics`` is text that names no data."""
    return {
        "resourceType": "OperationOutcome",
        "issue": [{"severity": severity, "code": code, "diagnostics": diagnostics}],
    }
