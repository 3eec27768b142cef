"""OperationOutcome (FHIR R4 §2.28): how every refusal is told."""

from __future__ import annotations

from typing import Any


def outcome(code: str, diagnostics: str, *, severity: str = "error", expression: tuple[str, ...] = ()) -> dict[str, Any]:
    """One issue; ``code`` is from issue-type, ``diagnostics`` is text that names no data, ``expression`` FHIRPaths."""
    issue: dict[str, Any] = {"severity": severity, "code": code, "diagnostics": diagnostics}
    if expression:
        issue["expression"] = list(expression)
    return {"resourceType": "OperationOutcome", "issue": [issue]}
