"""Consents as tests write them: short words in, R4 or R5 out."""

from __future__ import annotations

from typing import Any

TERM = "http://terminology.hl7.org/CodeSystem/"
REASON, CODE, CONF, PART = TERM + "v3-ActReason", TERM + "v3-ActCode", TERM + "v3-Confidentiality", TERM + "v3-ParticipationType"
ACTION = TERM + "consentaction"
RANKS = "ULMNRV"


def coding(text: str, system: str) -> dict[str, str]:
    """``code`` of a system, or ``system|code``."""
    own, _, code = text.rpartition("|")
    return {"system": own or system, "code": code}


def label(text: str) -> dict[str, str]:
    """A security label: a confidentiality, or an ActCode."""
    return coding(text, CONF if text in RANKS else CODE)


def provision(kind: str | None = None, *inner: dict[str, Any], release: str = "R4", **said: Any) -> dict[str, Any]:
    """A provision: ``purpose="TREAT" actor="Practitioner/1" label="HIV" cls="Observation" code="sys|c" data=("instance", "X/1")``."""
    made: dict[str, Any] = {}
    if kind and release == "R4":
        made["type"] = kind
    for name, value in said.items():
        values = value if isinstance(value, list) else [value]
        if name == "purpose":
            made["purpose"] = [coding(one, REASON) for one in values]
        elif name == "label":
            made["securityLabel"] = [label(one) for one in values]
        elif name == "action":
            made["action"] = [{"coding": [coding(one, ACTION)]} for one in values]
        elif name == "cls":
            system = "http://hl7.org/fhir/resource-types" if release == "R4" else "http://hl7.org/fhir/fhir-types"
            made["class" if release == "R4" else "resourceType"] = [coding(one, system) for one in values]
        elif name == "code":
            made["code"] = [{"coding": [coding(one, "urn:c")]} for one in values]
        elif name == "actor":
            made["actor"] = [_actor(one) for one in values]
        elif name == "data":
            made["data"] = [{"meaning": how, "reference": {"reference": what}} for how, what in values]
        elif name in {"period", "dataPeriod"}:
            made[name] = {key: part for key, part in zip(("start", "end"), value.split("/"), strict=True) if part}
        else:
            made[name] = value
    if inner:
        made["provision"] = list(inner)
    return made


def _actor(text: str) -> dict[str, Any]:
    """``Practitioner/1``, ``CST:Organization/2``, ``#system|value`` (an identifier)."""
    role, _, name = text.rpartition(":") if text[:4].rstrip(":").isupper() and ":" in text[:5] else ("IRCP", "", text)
    reference: dict[str, Any] = {"reference": name}
    if name.startswith("#"):
        system, _, value = name[1:].partition("|")
        reference = {"identifier": {"system": system, "value": value}}
    return {"role": {"coding": [{"system": PART, "code": role}]}, "reference": reference}


def scope(code: str) -> dict[str, Any]:
    """A scope of a Consent."""
    return {"coding": [{"system": TERM + "consentscope", "code": code}]}


def consent(identity: str, patient: str, root: dict[str, Any] | None, **over: Any) -> dict[str, Any]:
    """An active privacy Consent of R4."""
    made: dict[str, Any] = {
        "resourceType": "Consent",
        "id": identity,
        "status": "active",
        "scope": {"coding": [{"system": TERM + "consentscope", "code": "patient-privacy"}]},
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": {"reference": f"Patient/{patient}"},
        "dateTime": "2026-01-01",
        "policy": [{"uri": "urn:policy:base"}],
    }
    if root is not None:
        made["provision"] = root
    return {name: value for name, value in (made | over).items() if value is not None}


def consent5(identity: str, patient: str, decision: str | None, *provisions: dict[str, Any], **over: Any) -> dict[str, Any]:
    """The same of R5: a decision, and exceptions of it."""
    made: dict[str, Any] = {
        "resourceType": "Consent",
        "id": identity,
        "status": "active",
        "subject": {"reference": f"Patient/{patient}"},
        "date": "2026-01-01",
        "decision": decision,
        "provision": list(provisions) or None,
    }
    return {name: value for name, value in (made | over).items() if value is not None}
