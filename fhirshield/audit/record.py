"""What stands in a record: who, what, when, how it was decided. Never a value of a resource, never a token or a query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fhirshield.fhir.interaction import Interaction
from fhirshield.model import Denial, Grant, Permit, Principal, Reason, Situation, Tally, View

VERSION = 1
_MOST_PATIENTS = 1000


def released(permit: Permit, view: View) -> dict[str, Any]:
    """The record of an answer that is about to leave."""
    entry = _exchange(permit.situation, permit.interaction, permit.principal)
    entry |= {"outcome": "released", "status": view.status, "reason": view.reason.value}
    entry |= {"rules": permit.rules, "notes": list(permit.notes)} | _counts(view.tally)
    if view.created:
        entry["id"] = view.created
    return entry | ({"rule": view.rule} if view.rule else {})


def intended(permit: Permit, digest: str, gathered: Mapping[str, int], request: str = "") -> dict[str, Any]:
    """The record of a write that is about to go upstream: what, over which version, and a keyed digest of the new content.

    ``request`` is the id under which the upstream sees it, where that is a transaction's.
    """
    writing = permit.writing
    assert writing is not None
    entry = _exchange(permit.situation, permit.interaction, permit.principal)
    entry |= {"outcome": "intended", "rules": permit.rules, "patients": sorted(writing.patients), "creates": writing.creates}
    entry |= {"request": request} if request else {}
    return entry | {"over": writing.version, "content": digest} | asked(gathered)


def broken(permit: Permit, grant: Grant) -> dict[str, Any]:
    """The record of a glass that was broken: by whom, for whom, why, for how long. The reason is in the caller's own words."""
    entry = _exchange(permit.situation, permit.interaction, permit.principal)
    entry |= {"outcome": "break-glass", "break_glass": grant.id, "rule": grant.emergency.rule}
    entry |= {"patients": [grant.patient], "stated": grant.reason}
    return entry | {"seconds": grant.emergency.seconds, "replaces": sorted(grant.emergency.replaces)}


def unopened(decision: str, grant: Grant) -> dict[str, Any]:
    """The record that follows, where it can, that of a glass which was not broken: it could not be recorded in time."""
    return {"v": VERSION, "decision": decision, "outcome": "not opened", "break_glass": grant.id}


def recovered(decision: str, time: str, result: str, found: Mapping[str, str]) -> dict[str, Any]:
    """The record of what became of a write whose outcome was not known: ``carried out`` or ``not carried out``."""
    return {"v": VERSION, "decision": decision, "time": time, "outcome": "recovered", "result": result, **found}


def asked(gathered: Mapping[str, int]) -> dict[str, Any]:
    """What the shield read itself in order to decide, under its own name: requests by type."""
    return {"gathered": {"by": "fhirshield", "requests": dict(gathered)}} if gathered else {}


def bundle(situation: Situation, interaction: Interaction, principal: Principal, view: View) -> dict[str, Any]:
    """The record of a batch or a transaction as a whole; each entry has its own, by a decision of its own."""
    entry = _exchange(situation, interaction, principal)
    return entry | {
        "outcome": "released",
        "status": view.status,
        "reason": view.reason.value,
        "shown": view.tally.shown,
        "entries": list(view.entries),
    }


def denied(
    situation: Situation, interaction: Interaction | None, principal: Principal, denial: Denial, tally: Tally, reason: Reason
) -> dict[str, Any]:
    """The record of a refusal to an authenticated caller. ``reason`` may say more than the caller is told."""
    entry = _exchange(situation, interaction, principal)
    entry |= {"outcome": "denied", "status": denial.status, "reason": reason.value}
    return entry | _counts(tally) | ({"rule": denial.rule} if denial.rule else {})


def anonymous(situation: Situation, interaction: Interaction | None, status: int, reason: Reason) -> dict[str, Any]:
    """The record of an exchange without a valid token."""
    entry = _exchange(situation, interaction, None)
    return entry | {"outcome": "released" if status == 200 else "denied", "status": status, "reason": reason.value}


def sent(decision: str, size: int, complete: bool) -> dict[str, Any]:
    """The second, lazy record: how many bytes of a body left."""
    return {"v": VERSION, "decision": decision, "outcome": "sent", "bytes": size, "complete": complete}


def aggregated(counts: dict[str, int], first: str, last: str) -> dict[str, Any]:
    """The record of many exchanges without a valid token: ``prefix reason`` -> count."""
    return {"v": VERSION, "outcome": "denied", "aggregated": counts, "first": first, "last": last}


def _exchange(situation: Situation, interaction: Interaction | None, principal: Principal | None) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "v": VERSION,
        "decision": situation.decision,
        "time": situation.now.isoformat(timespec="milliseconds"),
        "upstream": situation.upstream,
        "address": situation.address,
    }
    if situation.facts.grant is not None:
        entry["break_glass"] = situation.facts.grant.id
    if interaction is not None:
        entry |= {"interaction": interaction.kind.value, "type": interaction.type}
        if interaction.id:
            entry["id"] = interaction.id
        if interaction.operation:
            entry["operation"] = interaction.operation
        if interaction.parameters:
            entry["parameters"] = sorted({parameter.name for parameter in interaction.parameters})
    if principal is not None:
        entry |= {
            "issuer": principal.issuer,
            "subject": principal.subject,
            "client": principal.client,
            "roles": sorted(principal.roles),
            "purposes": sorted(principal.purposes),
        }
        if principal.fhir_user:
            entry["fhir_user"] = principal.fhir_user
    return entry


def _counts(tally: Tally) -> dict[str, Any]:
    counts: dict[str, Any] = {"shown": tally.shown}
    if tally.withheld:
        counts["withheld"] = dict(tally.withheld)
    if tally.redacted:
        counts["redacted"] = dict(tally.redacted)
    if tally.granted:
        counts["granted"] = dict(tally.granted)
    if tally.patients:
        counts["patients"] = sorted(tally.patients)[:_MOST_PATIENTS]
        counts["patient_count"] = len(tally.patients)
    return counts
