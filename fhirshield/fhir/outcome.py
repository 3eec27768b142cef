"""OperationOutcome (FHIR R4 §2.36)."""

from __future__ import annotations

from typing import Any

LIFTING = "https://fhirshield.org/fhir/CodeSystem/lifting"
"""The code system of what could lift a refusal."""


def outcome(
    code: str, diagnostics: str, severity: str = "error", expression: tuple[str, ...] = (), lifts: tuple[str, ...] = ()
) -> dict[str, Any]:  # fmt: skip
    """An outcome; ``code`` is from the value set issue-type, ``expression`` are FHIRPaths into the caller's body."""
    issue: dict[str, Any] = {"severity": severity, "code": code, "diagnostics": diagnostics}
    if expression:
        issue["expression"] = list(expression)
    return {"resourceType": "OperationOutcome", "issue": [issue, *map(lifting, lifts)]}


def lifting(code: str) -> dict[str, Any]:
    """What could show more, as an issue; it says nothing of what there is."""
    text = f"what may be shown could be more with: {code}"
    details = {"coding": [{"system": LIFTING, "code": code}]}
    return {"severity": "information", "code": "suppressed", "details": details, "diagnostics": text}
